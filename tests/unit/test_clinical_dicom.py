"""DICOM series, SEG and RT-STRUCT: as written, as other programs read them, and what is refused of them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from made_clinical import GRID, made_labels, made_provenance, made_segments, made_volume
from pydicom.uid import JPEGLSLossless, RLELossless

from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.space.dicom.identity import Study
from maisi.space.dicom.slices import Slices
from maisi.space.dicom.write_ct import write_ct
from maisi.space.dicom.write_rtstruct import write_rtstruct
from maisi.space.dicom.write_seg import write_seg
from maisi.space.origin import read_provenance
from maisi.space.volume import LabelMap

KINDS = ("seg_binary.dcm", "seg_labelmap.dcm", "rtstruct.dcm")
NEWER_THAN_ITS_DICTIONARY = "(0x0008,0x001c)"  # Synthetic Data, PS3.6 2024b; Debian's dciodvfy is of 2023
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")


def write_all(folder: Path) -> Slices:
    """The made patient: ct/, a SEG of either encoding, and contours."""
    study = Study.of(made_volume(), "sample_000", made_provenance(), "ABDOMEN")
    slices = write_ct(made_volume(), folder / "ct", study)
    for encoding in ("binary", "labelmap"):
        write_seg(made_labels(), made_segments(), slices, folder / f"seg_{encoding}.dcm", study, encoding)
    write_rtstruct(made_labels(), made_segments(), slices, folder / "rtstruct.dcm", study)
    return slices


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_all(folder)
    return folder


@pytest.fixture
def patient(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(written, tmp_path / "patient")
    return tmp_path / "patient"


def test_a_series_is_read_as_it_was_written(written: Path) -> None:
    again, report = open_volume(written / "ct")
    assert np.array_equal(again.array, made_volume().array)
    assert again.grid.is_close(GRID, 1e-6)
    assert report.findings == ()


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_read_as_they_were_written(name: str, written: Path) -> None:
    again, _ = open_labels(written / name)
    assert np.array_equal(again.array, made_labels().array)
    assert again.grid.is_close(GRID, 1e-6)


@pytest.mark.parametrize("name", ["ct", "ct/0004.dcm", *KINDS])
def test_every_file_says_what_made_it(name: str, written: Path) -> None:
    assert read_provenance(written / name) == made_provenance()


def test_equal_cases_give_equal_files_and_others_other_uids(written: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    names = sorted(path.relative_to(written) for path in written.rglob("*.dcm"))
    assert len(names) == GRID.shape[2] + 3
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    other = made_provenance().model_copy(update={"seed": 8})
    assert Study.of(made_volume(), "a", other).uid("ct") != Study.of(made_volume(), "a", made_provenance()).uid("ct")


def test_what_is_synthetic_is_marked_in_every_file(written: Path) -> None:
    uids = set()
    for path in written.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        uids.add(dataset.SOPInstanceUID)
        assert all(part.isdigit() for part in dataset.SOPInstanceUID.split("."))
        assert len(dataset.SOPInstanceUID) <= 64
        assert dataset.get_item((0x0008, 0x001C)).value in ("YES", b"YES ")
        assert dataset.PatientName.family_name == "SYNTHETIC"
        purpose = dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert "seed 7" in dataset.ContributingEquipmentSequence[0].ContributionDescription
    assert len(uids) == GRID.shape[2] + 3
    ct = pydicom.dcmread(written / "ct" / "0001.dcm")
    assert list(ct.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert ct.DerivationDescription.startswith("Synthetic, not for diagnosis")
    assert ct.RescaleType == "HU"
    assert ct.WindowCenter[0] == 40


def test_what_is_not_synthetic_is_not_marked(tmp_path: Path) -> None:
    study = Study.of(made_volume(), "a", made_provenance(command="export"))
    write_ct(made_volume(), tmp_path / "ct", study)
    dataset = pydicom.dcmread(tmp_path / "ct" / "0001.dcm")
    assert "SyntheticData" not in dataset
    assert dataset.PatientName.family_name == "ANONYMOUS"


def test_a_segmentation_refers_to_its_slices_with_codes_and_colours(written: Path) -> None:
    seg = hd.seg.segread(written / "seg_binary.dcm")
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in (written / "ct").iterdir()}
    assert {sop for _, _, sop in seg.get_source_image_uids()} == uids
    found = [seg.get_segment_description(number) for number in seg.segment_numbers]
    descriptions = {each.segment_label: each for each in found}
    assert set(descriptions) == {"liver", "hepatic tumor", "left kidney", "body"}
    tumour = descriptions["hepatic tumor"]
    assert (tumour.segmented_property_type.value, tumour.anatomic_regions[0].value) == ("108369006", "10200004")
    kidney = descriptions["left kidney"].SegmentedPropertyTypeCodeSequence[0]
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    for each in descriptions.values():
        assert "RecommendedDisplayCIELabValue" in each


@pytest.mark.parametrize("name", ["seg_binary.dcm", "seg_labelmap.dcm"])
def test_highdicom_reads_the_segments_at_their_place(name: str, written: Path) -> None:
    seg = hd.seg.segread(written / name)
    volume = seg.get_volume(combine_segments=True).to_patient_orientation("RAF")
    ids = made_labels().array
    names = {number: seg.get_segment_description(number).segment_label for number in np.unique(volume.array) if number}
    ours = {"body": 200, "liver": 1, "hepatic tumor": 26, "left kidney": 14}
    found = np.zeros(volume.array.shape, np.uint8)
    for number, label in names.items():
        found[volume.array == number] = ours[label]
    low = np.rint(GRID.index(np.array(volume.affine[:3, 3]) * (-1, -1, 1))).astype(int)
    along_ras = _along_ras(found, volume.affine)
    assert low[2] in (0, GRID.shape[2] - 1)
    assert np.array_equal(along_ras, ids)


def _along_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """An array whose axes run along LPS ones in some order and direction."""
    order = [int(np.abs(affine[world, :3]).argmax()) for world in range(3)]
    signs = [np.sign(affine[world, order[world]]) * (-1, -1, 1)[world] for world in range(3)]
    flips = tuple(slice(None, None, int(sign)) for sign in signs)
    return array.transpose(order)[flips]


def test_simpleitk_reads_the_series(written: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(written / "ct")))
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[::-1, ::-1]
    assert np.array_equal(array, made_volume().array)
    assert np.allclose(image.GetSpacing(), GRID.spacing, atol=1e-5)
    corner = GRID.world(np.array([GRID.shape[0] - 1, GRID.shape[1] - 1, 0])) * (-1, -1, 1)
    assert np.allclose(image.GetOrigin(), corner, atol=1e-4)


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package {package})")
    return found


@pytest.mark.parametrize("name", ["ct/0001.dcm", "seg_binary.dcm", "rtstruct.dcm"])
def test_dciodvfy_finds_no_error(name: str, written: Path) -> None:
    done = subprocess.run(
        [tool("dciodvfy", "dicom3tools"), str(written / name)], capture_output=True, text=True, check=False
    )
    said = (done.stdout + done.stderr).splitlines()
    assert any(line in ("CTImage", "Segmentation", "RTStructureSet") for line in said)
    errors = [line for line in said if line.startswith("Error") and NEWER_THAN_ITS_DICTIONARY not in line]
    assert errors == []


@pytest.mark.parametrize("name", ["ct/0001.dcm", *KINDS])
def test_dcmdump_reads_every_element(name: str, written: Path) -> None:
    done = subprocess.run([tool("dcmdump", "dcmtk"), str(written / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if line.startswith(("E:", "F:"))]
    assert "[SYNTHETIC^]" in done.stdout


def test_plastimatch_lays_the_contours_onto_the_same_voxels(written: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    command = [tool("plastimatch", "plastimatch"), "convert", "--input", str(written / "rtstruct.dcm")]
    command += ["--referenced-ct", str(written / "ct"), "--output-prefix", str(tmp_path / "masks")]
    subprocess.run([*command, "--prefix-format", "nrrd"], check=True, capture_output=True)
    masks = {path.stem: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (tmp_path / "masks").iterdir()}
    assert len(masks) == len(made_segments())
    for segment in made_segments():
        mask = next(mask for name, mask in masks.items() if segment.name.replace(" ", "_") == name.replace(" ", "_"))
        found = mask.transpose(2, 1, 0)[::-1, ::-1].astype(bool)
        assert np.array_equal(found, made_labels().array == segment.id), segment.name


# Reading what others write --------------------------------------------------------------------------------------------


def change(path: Path, how: Callable[[Any], object]) -> Path:
    dataset = pydicom.dcmread(path)
    how(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices_are_read(syntax: str, patient: Path) -> None:
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    for path in (patient / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    assert np.array_equal(open_volume(patient / "ct")[0].array, made_volume().array)


def test_an_enhanced_ct_in_one_file_is_read(patient: Path, tmp_path: Path) -> None:
    slices = [pydicom.dcmread(path) for path in sorted((patient / "ct").iterdir())]
    for each in slices:
        each.AcquisitionDate = each.AcquisitionTime = each.ContentDate = each.ContentTime = ""
    legacy = hd.legacy.LegacyConvertedEnhancedCTImage(slices, "1.2.3.4", 1, "1.2.3.4.5", 1)
    legacy.save_as(tmp_path / "enhanced.dcm")
    again, _ = open_volume(tmp_path / "enhanced.dcm")
    assert np.array_equal(again.array, made_volume().array)
    assert again.grid.is_close(GRID, 1e-6)


@pytest.mark.parametrize("name", ["seg_binary.dcm", "seg_labelmap.dcm"])
def test_segments_whose_names_nobody_knows_are_told_by_their_codes(name: str, patient: Path) -> None:
    dataset = pydicom.dcmread(patient / name)
    for item in dataset.SegmentSequence:
        item.SegmentLabel = f"Segment_{item.SegmentNumber}"
    dataset.save_as(patient / name)
    again, report = open_labels(patient / name)
    assert np.array_equal(again.array, made_labels().array)
    told = next(each.decided for each in report.findings if "standard codes" in each.found)
    assert "(Neoplasm) as hepatic tumor" in told
    assert "(Kidney) as left kidney" in told


@pytest.mark.parametrize(
    "change",
    [
        lambda kidney: setattr(kidney.SegmentedPropertyTypeCodeSequence[0], "CodeValue", "123"),
        lambda kidney: delattr(
            kidney.SegmentedPropertyTypeCodeSequence[0], "SegmentedPropertyTypeModifierCodeSequence"
        ),
        lambda kidney: delattr(kidney, "SegmentedPropertyTypeCodeSequence"),
    ],
    ids=["another code", "no side", "no code"],
)
def test_a_segment_with_neither_name_nor_code_is_refused(change: Callable[[Any], None], patient: Path) -> None:
    dataset = pydicom.dcmread(patient / "seg_binary.dcm")
    kidney = next(item for item in dataset.SegmentSequence if item.SegmentLabel == "left kidney")
    kidney.SegmentLabel = "Niere"
    change(kidney)
    dataset.save_as(patient / "seg_binary.dcm")
    with pytest.raises(InvalidLabelsError, match=r"names that the vocabulary does not know: \d+ \(Niere\)"):
        open_labels(patient / "seg_binary.dcm")


def test_a_segmentation_without_its_series_keeps_its_place(written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "seg_binary.dcm", tmp_path / "alone.dcm")
    labels, report = open_labels(tmp_path / "alone.dcm")
    assert any("without their CT series" in finding.found for finding in report.findings)
    assert np.array_equal(labels.array, made_labels().array)  # the body is on every slice
    assert labels.grid.is_close(GRID, 1e-6)


def test_labels_are_laid_onto_slices_in_any_order_and_direction(written: Path, tmp_path: Path) -> None:
    """A sagittal series that runs from left to right, feet first."""
    volume, study = made_volume(), Study.of(made_volume(), "sagittal", None)
    slices = write_ct(volume, tmp_path / "ct", study)
    turned = []
    for i in range(GRID.shape[0]):
        dataset = pydicom.dcmread(tmp_path / "ct" / "0001.dcm")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = study.uid("sagittal", i)
        dataset.SeriesInstanceUID, dataset.InstanceNumber = study.uid("sagittal"), i + 1
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # columns to the back, rows to the feet
        x, y, z = GRID.world(np.array([i, GRID.shape[1] - 1, GRID.shape[2] - 1]))
        dataset.ImagePositionPatient = [f"{value:.9g}" for value in (-x, -y, z)]
        dataset.PixelSpacing = [f"{GRID.spacing[2]:.9g}", f"{GRID.spacing[1]:.9g}"]
        pixels = volume.array[i, ::-1, ::-1].T.astype("<i2")
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        turned.append(dataset)
    shutil.rmtree(tmp_path / "ct")
    (tmp_path / "ct").mkdir()
    for i, dataset in enumerate(turned):
        dataset.save_as(tmp_path / "ct" / f"{i}.dcm")
    from maisi.space.dicom.series import read_slices
    from maisi.space.reading import ReadOptions

    slices = read_slices(tmp_path / "ct", ReadOptions())
    write_seg(made_labels(), made_segments(), slices, tmp_path / "seg.dcm", study)
    write_rtstruct(made_labels(), made_segments(), slices, tmp_path / "rtstruct.dcm", study)
    assert np.array_equal(open_volume(tmp_path / "ct")[0].array, volume.array)
    for name in ("seg.dcm", "rtstruct.dcm"):
        again, _ = open_labels(tmp_path / name)
        assert np.array_equal(again.array, made_labels().array)
        assert again.grid.is_close(GRID, 1e-5)


def _other_frame(dataset: Any) -> None:
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = "1.2.3"


def _two_series(dataset: Any) -> None:
    series = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    second = pydicom.Dataset()
    second.SeriesInstanceUID = "1.2.3"
    series.append(second)


def _between(dataset: Any) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    values = np.array(contour.ContourData, float).reshape(-1, 3)
    values[:, 2] += GRID.spacing[2] / 2
    contour.ContourData = [f"{value:.4f}" for value in values.ravel()]


def _renamed(dataset: Any) -> None:
    dataset.StructureSetROISequence[0].ROIName = "PTV_boost_xyz"


def _label(dataset: Any) -> None:
    dataset.SegmentSequence[-1].SegmentLabel = "flux capacitor"
    dataset.SegmentSequence[-1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "88"


def _fractional(dataset: Any) -> None:
    dataset.SegmentationType = "FRACTIONAL"


def _moved(dataset: Any) -> None:
    dataset.FrameOfReferenceUID = "1.2.3"


def _undescribed(dataset: Any) -> None:
    del dataset.SegmentSequence[-1]


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("rtstruct.dcm", _other_frame, "in another frame of reference"),
        ("rtstruct.dcm", _two_series, "contours on 2 series"),
        ("rtstruct.dcm", _between, "between slices"),
        ("rtstruct.dcm", _renamed, "names that the vocabulary does not know: .*PTV_boost_xyz"),
        ("seg_binary.dcm", _label, "names that the vocabulary does not know: .*flux capacitor"),
        ("seg_labelmap.dcm", _label, "names that the vocabulary does not know: .*flux capacitor"),
        ("seg_binary.dcm", _fractional, "type FRACTIONAL; accepted: BINARY or LABELMAP"),
        ("seg_binary.dcm", _moved, "in another frame of reference"),
        ("seg_binary.dcm", _undescribed, "which has no description"),
        ("seg_labelmap.dcm", _undescribed, "ids without a name"),
        ("ct/0001.dcm", lambda dataset: None, "a DICOM file of CT Image Storage; accepted: a DICOM SEG"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    name: str, how: Callable[[Any], object], message: str, patient: Path
) -> None:
    path = change(patient / name, how)
    with pytest.raises(InvalidRequestError, match=message) as raised:
        open_labels(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_a_file_that_is_cut_short_is_refused(name: str, share: float, patient: Path) -> None:
    content = (patient / name).read_bytes()
    (patient / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidRequestError) as raised:
        open_labels(patient / name)
    assert "\n" not in str(raised.value)


def test_contours_without_their_series_are_refused(written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "rtstruct.dcm", tmp_path / "alone.dcm")
    with pytest.raises(InvalidRequestError, match="accepted: the file in a folder with its CT series"):
        open_labels(tmp_path / "alone.dcm")


def test_a_folder_with_one_segmentation_is_taken_and_one_with_two_is_not(patient: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"3 DICOM files of labels: rtstruct.dcm, seg_binary.dcm"):
        open_labels(patient)
    for name in ("rtstruct.dcm", "seg_binary.dcm"):
        (patient / name).unlink()
    assert np.array_equal(open_labels(patient)[0].array, made_labels().array)


def test_labels_of_another_grid_and_without_structures_are_not_written(written: Path, tmp_path: Path) -> None:
    study = Study.of(made_volume(), "a", None)
    slices = write_ct(made_volume(), tmp_path / "ct", study)
    small = LabelMap(made_labels().array[1:], GRID.window((1, 0, 0), (17, 15, 12)))
    with pytest.raises(InvalidRequestError, match="labels on the grid of their CT"):
        write_seg(small, made_segments(), slices, tmp_path / "seg.dcm", study)
    empty = LabelMap(np.zeros(GRID.shape, np.uint8), GRID)
    for write in (write_seg, write_rtstruct):
        with pytest.raises(InvalidRequestError, match="one structure or more"):
            write(empty, made_segments(), slices, tmp_path / "empty.dcm", study)


def test_labels_are_laid_onto_a_series_with_a_scout_that_says_nothing_of_it(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "case")
    first = sorted((tmp_path / "case" / "ct").iterdir())[0]
    scout = pydicom.dcmread(first)
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    scout.ImageOrientationPatient, scout.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [0, 0, 99]
    scout.save_as(tmp_path / "case" / "ct" / "scout.dcm")
    labels, _ = open_labels(tmp_path / "case" / "rtstruct.dcm")
    assert labels.grid.is_close(GRID, 1e-6)
