"""What lies in a DICOM folder beside whole slices: read, passed over by name, or refused by name."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_slices import (
    SLICES,
    STEP_MM,
    enhanced,
    expected_hu,
    header,
    stored_slice,
    write_series,
    write_slice,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
    generate_uid,
)

from maisi.errors import InvalidVolumeError
from maisi.space.dicom import is_dicom, read_series
from maisi.space.files import read_volume
from maisi.space.reading import Finding, ReadOptions


def warned(findings: list[Finding]) -> str:
    return "; ".join(f"{finding.found}: {finding.decided}" for finding in findings if finding.is_warning)


def slices(folder: Path) -> list[Path]:
    return sorted(folder.glob("1.2.3_*.dcm"))


def rewrite(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


# --- files without what marks DICOM --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[132:],
        lambda data: data[128:],
        lambda data: data[:128] + data[132:],
        lambda data: data[:128] + b"\0\0\0\0" + data[132:],
    ],
    ids=["neither preamble nor prefix", "no preamble", "no prefix", "an empty prefix"],
)
def test_files_without_preamble_or_prefix_are_read(tmp_path, change):
    write_series(tmp_path)
    for path in slices(tmp_path):
        rewrite(path, change)
        assert is_dicom(path)
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert not findings


@pytest.mark.parametrize("is_implicit", [True, False])
def test_files_that_begin_with_the_data_set_are_read(tmp_path, is_implicit):
    write_series(tmp_path / "marked")
    (tmp_path / "bare").mkdir()
    for path in slices(tmp_path / "marked"):
        dataset = pydicom.dcmread(path)
        dataset.file_meta, dataset.preamble = FileMetaDataset(), None
        target = tmp_path / "bare" / path.name
        dataset.save_as(target, implicit_vr=is_implicit, little_endian=True, enforce_file_format=False)
        assert target.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_volume(tmp_path / "bare").array, expected_hu())


def test_files_without_an_ending_and_in_subfolders_are_read(tmp_path):
    for k in range(SLICES):
        (tmp_path / f"S{k % 2}").mkdir(exist_ok=True)
        write_slice(tmp_path / f"S{k % 2}" / f"IMG{k}", k)
    np.testing.assert_array_equal(read_volume(tmp_path).array, expected_hu())


def big_endian(dataset: Dataset) -> None:
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("syntax", "change"),
    [
        (ImplicitVRLittleEndian, lambda d: None),
        (ExplicitVRBigEndian, big_endian),
        (DeflatedExplicitVRLittleEndian, lambda d: None),
    ],
)
def test_implicit_and_big_endian_and_deflated_files_are_read(tmp_path, syntax, change):
    write_series(tmp_path / "plain")
    (tmp_path / "coded").mkdir()
    for path in slices(tmp_path / "plain"):
        plain = pydicom.dcmread(path)
        coded = Dataset({element.tag: element for element in plain})
        coded.file_meta = plain.file_meta
        coded.file_meta.TransferSyntaxUID = syntax
        change(coded)
        pydicom.dcmwrite(tmp_path / "coded" / path.name, coded, enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "coded").array, expected_hu())


def test_one_enhanced_file_is_read_without_its_folder_and_one_slice_is_refused_by_its_name(tmp_path):
    path = tmp_path / "enhanced"
    enhanced(path, list(range(SLICES))).save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(path).array, expected_hu())
    write_slice(tmp_path / "one.dcm", 0)
    with pytest.raises(InvalidVolumeError, match=r"a single slice \(2-D\), one\.dcm; accepted: .* given by its folder"):
        read_volume(tmp_path / "one.dcm")


# --- damaged and foreign files -------------------------------------------------------------------------------------


DAMAGE = {
    "emptied": (lambda data: b"", "an empty file"),
    "cut in the pixels": (lambda data: data[:-40], "200 of 240 bytes of pixels: it is cut short"),
    "cut before the pixels": (lambda data: data[: len(data) - 260], "no pixels: it is cut short"),
    "cut in the header": (lambda data: data[:500], "no pixels: it is cut short"),
    "cut after the file meta": (lambda data: data[:400], "DICOM"),
    "cut in the preamble": (lambda data: data[:100], "not DICOM"),
    "zeros": (lambda data: bytes(len(data)), "not DICOM"),
    "a web page": (lambda data: b"<!DOCTYPE html><html>session expired</html>", "not DICOM"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_damaged_slice_is_named_and_the_reading_stops(tmp_path, name, at):
    change, words = DAMAGE[name]
    write_series(tmp_path)
    path = slices(tmp_path)[at]
    rewrite(path, change)
    with pytest.raises(InvalidVolumeError, match=words) as error:
        read_series(tmp_path)
    assert path.name in str(error.value)
    assert "1 damaged file" in str(error.value)


def test_several_damaged_slices_are_named_together(tmp_path):
    write_series(tmp_path)
    for path in slices(tmp_path)[1::2]:
        rewrite(path, lambda data: b"")
    with pytest.raises(InvalidVolumeError, match="4 damaged files among the slices") as error:
        read_series(tmp_path)
    assert all(path.name in str(error.value) for path in slices(tmp_path)[1::2])


def test_a_file_that_is_no_companion_by_its_name_stops_the_reading(tmp_path):
    write_series(tmp_path)
    (tmp_path / "IMG0099").write_text("?")
    with pytest.raises(InvalidVolumeError, match=r"1 damaged file among the slices: IMG0099 \(not DICOM\)"):
        read_series(tmp_path)


def test_damage_in_the_folder_of_another_series_does_not_stop_the_reading(tmp_path):
    write_series(tmp_path / "a", "1.2.3")
    write_series(tmp_path / "b", "1.2.4")
    (tmp_path / "b" / "broken.dcm").write_bytes(b"")
    volume, findings = read_series(tmp_path, ReadOptions(series="1.2.3"))
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "b/broken.dcm" in warned(findings)
    with pytest.raises(InvalidVolumeError, match=r"b/broken\.dcm"):
        read_series(tmp_path, ReadOptions(series="1.2.4"))


def test_a_folder_of_damaged_files_alone_is_refused_by_their_names(tmp_path):
    write_series(tmp_path)
    for path in slices(tmp_path):
        rewrite(path, lambda data: data[:500])
    with pytest.raises(InvalidVolumeError, match=r"no CT image among 8 files: .*cut short") as error:
        read_series(tmp_path)
    assert slices(tmp_path)[0].name in str(error.value)


def test_no_file_of_random_bytes_gives_another_error(tmp_path):
    write_series(tmp_path)
    path = slices(tmp_path)[3]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for start in (0, 128, 132, 300):
        data = bytearray(whole)
        data[start : start + 200] = rng.integers(0, 256, 200, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        with pytest.raises(InvalidVolumeError, match=path.name):
            read_series(tmp_path)


def test_a_slice_that_names_another_modality_than_its_class_stops_the_reading(tmp_path):
    write_series(tmp_path, slices=range(SLICES - 1))
    write_slice(tmp_path / "last.dcm", SLICES - 1, change=lambda d: setattr(d, "Modality", "MR"))
    with pytest.raises(InvalidVolumeError, match=r"last\.dcm \(an image of the class CT that names the modality MR\)"):
        read_series(tmp_path)


# --- what is passed over -------------------------------------------------------------------------------------------


def test_companions_are_passed_over_without_a_warning_and_hidden_files_unseen(tmp_path):
    write_series(tmp_path)
    for name in ("README", "LICENSE", "notes.txt", "labels.csv", "meta.json", "preview.png", "seg.nii.gz", "MD5SUMS"):
        (tmp_path / name).write_bytes(b"some text")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._IMG0001.dcm").write_bytes(b"\0\5\x16\7")
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert not warned(findings)
    (told,) = findings
    assert "9 not DICOM (LICENSE, MD5SUMS, README, " in told.found


def test_other_dicom_beside_the_series_is_passed_over_with_a_warning_that_names_it(tmp_path):
    write_series(tmp_path / "study")
    others = {
        "structures.dcm": (RTStructureSetStorage, "RTSTRUCT"),
        "dose.dcm": (XRayRadiationDoseSRStorage, "SR"),
        "capture.dcm": (SecondaryCaptureImageStorage, "CT"),
        "pet.dcm": (PositronEmissionTomographyImageStorage, "PT"),
        "DICOMDIR": (MediaStorageDirectoryStorage, ""),
    }
    for name, (sop_class, modality) in others.items():
        dataset = header(tmp_path / name, generate_uid(), sop_class, modality)
        dataset.save_as(tmp_path / name, enforce_file_format=True)
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    for words in (
        "1 RTSTRUCT (structures.dcm)",
        "1 SR (dose.dcm)",
        "1 CT as Secondary Capture Image Storage (capture.dcm)",
        "1 PT (pet.dcm)",
        "1 DICOMDIR (DICOMDIR)",
    ):
        assert words in warned(findings)


def scout_marked(path: Path, series: str) -> None:
    write_slice(path, 0, series, change=lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))


def scout_unmarked(path: Path, series: str) -> None:
    stored = np.tile(stored_slice(2), (3, 1))
    write_slice(path, 0, series, orientation=(1.0, 0, 0, 0, 0, -1.0), stored=stored)


def scout_by_size_alone(path: Path, series: str) -> None:
    write_slice(path, 2, series, stored=np.tile(stored_slice(2), (6, 1)))


@pytest.mark.parametrize("make", [scout_marked, scout_unmarked, scout_by_size_alone])
@pytest.mark.parametrize("series", ["1.2.3", "1.2.7"])
def test_scouts_in_the_series_or_beside_it_are_passed_over_with_a_warning(tmp_path, make, series):
    write_series(tmp_path)
    make(tmp_path / "scout.dcm", series)
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "scout.dcm" in warned(findings)


def test_a_front_and_a_side_view_are_passed_over(tmp_path):
    write_series(tmp_path)
    scout_unmarked(tmp_path / "front.dcm", "1.2.7")
    write_slice(tmp_path / "side.dcm", 0, "1.2.7", orientation=(0, 1.0, 0, 0, 0, -1.0))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "2 CT scout without a mark (front.dcm, side.dcm)" in warned(findings)


def sheet(dataset) -> None:
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, name)


@pytest.mark.parametrize("number", [1, 3])
def test_sheets_without_a_position_are_passed_over_with_a_warning(tmp_path, number):
    write_series(tmp_path)
    for k in range(number):
        write_slice(tmp_path / f"sheet{k}.dcm", k, change=sheet)
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert f"{number} CT sheet without a position (sheet0.dcm" in warned(findings)


def test_every_second_slice_without_its_position_is_not_taken_for_a_sheet(tmp_path):
    write_series(tmp_path, slices=range(0, SLICES, 2))
    for k in range(1, SLICES, 2):
        write_slice(tmp_path / f"lost{k}.dcm", k, change=lambda d: delattr(d, "ImagePositionPatient"))
    with pytest.raises(InvalidVolumeError, match="4 images that look like the 4 slices but have no position: lost1"):
        read_series(tmp_path)


def test_a_slice_without_its_position_leaves_a_gap_that_is_named_with_it(tmp_path):
    write_series(tmp_path, slices=[k for k in range(SLICES) if k != 3])
    write_slice(tmp_path / "lost.dcm", 3, change=lambda d: delattr(d, "ImagePositionPatient"))
    with pytest.raises(InvalidVolumeError, match=r"1 missing slice .*; passed over as no slices: lost\.dcm"):
        read_series(tmp_path)


# --- copies --------------------------------------------------------------------------------------------------------


def test_equal_copies_count_once(tmp_path):
    write_series(tmp_path)
    (tmp_path / "copy").mkdir()
    for path in slices(tmp_path)[:3]:
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    rewrite(tmp_path / "copy" / slices(tmp_path)[0].name, lambda data: b"x" * 128 + data[128:])
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "3 equal copies of slices: " in warned(findings)


def test_two_different_images_of_one_instance_are_refused_with_both_names(tmp_path):
    write_series(tmp_path)
    original = slices(tmp_path)[2]
    changed = bytearray(original.read_bytes())
    changed[-7] ^= 64
    (tmp_path / "other.dcm").write_bytes(changed)
    with pytest.raises(InvalidVolumeError, match=r"two different images of one SOPInstanceUID .*: .* and .*") as error:
        read_series(tmp_path)
    assert original.name in str(error.value)
    assert "other.dcm" in str(error.value)


# --- gaps ----------------------------------------------------------------------------------------------------------


def test_every_second_slice_that_is_missing_is_told_by_number_and_thickness(tmp_path):
    def thin(dataset) -> None:
        dataset.SliceThickness = STEP_MM

    write_series(tmp_path, slices=range(0, 16, 2), change=thin)
    _, findings = read_series(tmp_path)
    assert "slices 3 mm thick that lie 6 mm apart, of which only each 2th number is there" in warned(findings)


def test_a_series_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    write_series(tmp_path, "1.2.3")
    with pytest.raises(
        InvalidVolumeError, match=r"no CT series 9\.9; accepted: one of: 1\.2\.3 \(series of CT, 8 files\)"
    ):
        read_series(tmp_path, ReadOptions(series="9.9"))


def test_a_slice_whose_series_differs_is_not_taken_for_a_scout(tmp_path):
    write_series(tmp_path, slices=range(SLICES - 1))
    write_slice(tmp_path / "last.dcm", SLICES - 1, "1.2.8")
    with pytest.raises(InvalidVolumeError, match=r"2 CT series: 1\.2\.3 .*; 1\.2\.8 \(series of CT, 1 file\)"):
        read_series(tmp_path)
