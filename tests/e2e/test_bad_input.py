"""Bad input: each a clear error, exit 2, and nothing written."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from command_line import Maisi, files_in
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from maisi.bundle.bundle import load_bundle, save_bundle

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


def refused(maisi: Maisi, out: Path, *arguments: object) -> str:
    """What a command says when it refuses: without a traceback, exit 2, and no file or folder made."""
    before = files_in(out.parent)
    answer = maisi(*arguments, "--out", out)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    assert files_in(out.parent) == before
    return answer.err


# Not a CT -----------------------------------------------------------------------------------------------------------


def nifti(array: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(array, AFFINE), folder / "ct.nii.gz")
        return folder / "ct.nii.gz"

    return write


def ct_array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 900, shape).astype(np.int16)


def with_nan(folder: Path) -> Path:
    array = ct_array(8, 8, 8).astype(np.float32)
    array[2, 2, 2] = np.nan
    return nifti(array)(folder)


def truncated(folder: Path) -> Path:
    path = nifti(ct_array(12, 12, 12))(folder)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def corrupt(folder: Path) -> Path:
    path = nifti(ct_array(12, 12, 12))(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def cut_inside_gzip(folder: Path) -> Path:
    path = nifti(ct_array(12, 12, 12))(folder)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-200]))
    return path


def colour(folder: Path) -> Path:
    rgb = np.zeros((8, 8, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return nifti(rgb)(folder)


def text(folder: Path) -> Path:
    (folder / "ct.nii").write_text("not an image")
    return folder / "ct.nii"


def picture(folder: Path) -> Path:
    (folder / "ct.png").write_bytes(b"\x89PNG")
    return folder / "ct.png"


def nothing(folder: Path) -> Path:
    return folder / "nothing.nii.gz"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (colour, "found colour (RGB) voxels; accepted: one real number a voxel"),
        (nifti(ct_array(8, 8)), "found a 2-D image of 8x8"),
        (nifti(ct_array(8, 8, 8, 3)), "found a 4-D image of 8x8x8x3"),
        (nifti(np.zeros((8, 8, 8), np.int16)), "found the same value 0 in every voxel"),
        (with_nan, "found 1 voxels that are NaN or infinite"),
        (nifti(np.abs(ct_array(12, 12, 12))), "which are not HU of a CT"),
        (truncated, "found a truncated or corrupt gzip"),
        (corrupt, "found a truncated or corrupt gzip"),
        (cut_inside_gzip, "the file is truncated"),
        (text, "found a file that is not NIfTI"),
        (picture, "accepted: .nii, .nii.gz, .nrrd, .mha, or a folder of DICOM files"),
        (nothing, "found no such file"),
        (empty, "found an empty folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_a_ct_is_refused(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, make: Callable[[Path], Path], complaint: str
) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    said = refused(maisi, tmp_path / "out", "reconstruct", source, "-b", tiny_bundle)
    assert str(source) in said
    assert complaint in said


# DICOM --------------------------------------------------------------------------------------------------------------


def write_slice(folder: Path, number: int, series: str, modality: str = "CT") -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{series[-4:]}_{number}.dcm"
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = modality, series, "1.2.3"
    ds.Rows = ds.Columns = 8
    ds.PixelSpacing, ds.SliceThickness = [5.0, 5.0], 5.0
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0.0, 0.0, 5.0 * number], [1, 0, 0, 0, 1, 0]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = np.random.default_rng(number).integers(0, 2000, (8, 8)).astype(np.uint16).tobytes()
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def test_several_series_in_a_folder_are_listed_and_one_can_be_chosen(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        write_slice(tmp_path / "in", number, "1.2.3.1111")
        write_slice(tmp_path / "in", number, "1.2.3.2222")
    ask = ("reconstruct", tmp_path / "in", "-b", tiny_bundle)
    said = refused(maisi, tmp_path / "out", *ask)
    assert "1.2.3.1111" in said
    assert "1.2.3.2222" in said
    assert "no CT series 1.2.3.4" in refused(maisi, tmp_path / "out", *ask, "--series", "1.2.3.4")
    assert maisi(*ask, "--series", "1.2.3.2222", "--out", tmp_path / "out").code == 0


def test_missing_slices_are_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (0, 1, 2, 3, 6, 7):
        write_slice(tmp_path / "in", number, "1.2.3.1111")
    assert "missing" in refused(maisi, tmp_path / "out", "reconstruct", tmp_path / "in", "-b", tiny_bundle)


def test_a_series_of_another_modality_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_slice(tmp_path / "in", number, "1.2.3.1111", modality="MR")
    assert "4 MR" in refused(maisi, tmp_path / "out", "reconstruct", tmp_path / "in", "-b", tiny_bundle)


# Labels -------------------------------------------------------------------------------------------------------------


def test_labels_without_a_body_are_warned_of(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    array = np.zeros((16, 16, 16), np.uint8)
    array[4:12, 4:12, 4:12] = 1
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "labels.nii.gz")
    ask = ("generate", "-b", tiny_bundle, "--labels", tmp_path / "labels.nii.gz", "--force", "--steps", 1)
    assert "warning: " in (told := maisi(*ask, "--out", tmp_path / "organ").err)
    assert "labels.nii.gz has no body (200): between and around its structures the CT will be air" in told
    assert "no body" not in maisi(*ask, "--enclose", "--out", tmp_path / "enclosed").err
    assert 200 in np.asarray(nib.load(tmp_path / "enclosed" / "sample_000_labels.nii.gz").dataobj)
    array[2:14, 2:14, 2:14][array[2:14, 2:14, 2:14] == 0] = 200
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "labels.nii.gz")
    assert "no body" not in maisi(*ask, "--out", tmp_path / "patient").err


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.full((16, 16, 16), 199, np.uint8), "199, 4096 voxels, one at"),
        (np.full((16, 16, 16), 3000, np.uint16), "3000, 4096 voxels, one at"),
        (np.full((16, 16, 16), 1.5, np.float32), "values that are not whole, such as 1.5"),
        (np.full((16, 16, 16), -1, np.int16), "whole numbers from 0 to 65535"),
        (np.zeros((16, 16, 16), np.uint8), "these labels tell no body region"),
        (np.ones((16, 16), np.uint8), "2-D array"),
    ],
)
def test_a_label_map_that_cannot_be_followed_is_refused(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, array: np.ndarray, complaint: str
) -> None:
    labels = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(array, AFFINE), labels)
    assert complaint in refused(maisi, tmp_path / "out", "generate", "-b", tiny_bundle, "--labels", labels)


def test_a_field_of_view_beside_the_labels_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    array = np.zeros((40, 40, 40), np.uint8)
    array[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "labels.nii.gz")
    ask = ("generate", "-b", tiny_bundle, "--labels", tmp_path / "labels.nii.gz", "--size", 8, 8, 8)
    assert "lies in a field of view" in refused(maisi, tmp_path / "out", *ask, "--spacing", 5, 5, 5)


# Requests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("--size", 18, 16, 16),
            "size (18, 16, 16) is not a multiple of 4 on every axis; nearest: (16, 16, 16)",
        ),
        (("--size", 16, 16, 16.5), "size.2: '16.5' is not accepted; it should be a valid integer"),
        (("--size", 0, 16, 16), "an axis without voxels"),
        (("--size", 16, 16), "'--size': '16 16 --out' is not three numbers. See maisi generate --help."),
        (("--size", 16, 16, "many"), "'16 16 many' is not three numbers"),
        (("--enclose",), "name them by --labels FILE, or leave it out"),
        (("--steps", 1001), "the number of sampling steps is 1 to 1000, not 1001"),
        (("--size", 64, 16, 16), "size 64 x 16 x 16 is above the 48 x 48 x 48"),
        (("--size", 16, 16, 16, "--spacing", 1, 5, 5), "spacing 1 x 5 x 5 mm is below the 2 x 2 x 2 mm"),
        (("--size", 16, 16, 16, "--spacing", 5, 5, 30), "--force goes on"),
        (("--spacing", 5, 5, -1), "is not between 0 and 100 mm"),
        (("--region", "chst"), "did you mean 'chest'?"),
        (("--count", 0), "count: 0 is not accepted; it should be greater than or equal to 1"),
        (("--seed", -1), "seed: -1 is not accepted"),
        (("--steps", 0), "steps: 0 is not accepted"),
        (("--solver", "magic"), "'multistep', 'euler' or 'ancestral'"),
        (("--precision", "half"), "'float32', 'bfloat16' or 'float16'"),
        (("--precision", "float16"), "float16 is for a GPU; on the CPU accepted: float32, bfloat16"),
        (("--modality", "xray"), "unknown modality 'xray'"),
        (("--modality", "phantom"), "was not trained for modality 'phantom'"),
        (("--format", "tiff"), "'nii.gz', 'nii', 'nrrd', 'mha' or 'dicom'"),
        (("--memory", "8 bananas"), "an amount of memory; write 8GB, 500MB or 2GiB"),
        (("--device", "gpu"), "device: 'gpu' is no device; accepted: cpu, cuda or cuda:N"),
        (("--device", "cuda:77"), "there is no device cuda:77 here; accepted: cpu"),
        (("--threads", 0), "threads: 0 is not accepted"),
        (("--labels", "nowhere.nii.gz"), "found no such file"),
        (("--stepz", 3), "No such option: --stepz"),
        (("-s", "stepz=3"), "unknown setting 'stepz'; did you mean 'steps'?"),
        (("-s", "zebra=3"), "unknown setting 'zebra'; there are: bundle, region"),
        (("-s", "steps.inner=3"), "steps"),
        (("-s", "steps"), "'steps' assigns nothing; accepted: name=value"),
        (("-s", "size=[1, 2"), "is no YAML"),
        (("-c", "nowhere.yaml"), "no settings file nowhere.yaml"),
        (("extra",), "extra"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_request_that_cannot_be_met_is_refused(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, arguments: tuple[object, ...], complaint: str
) -> None:
    assert complaint in refused(maisi, tmp_path / "out", "generate", "-b", tiny_bundle, *arguments)


def test_every_wrong_setting_of_a_file_has_its_line(maisi: Maisi, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("stepz: 3\ncount: many\nsize: [1, 2]\n")
    said = refused(maisi, tmp_path / "out", "generate", "-c", config)
    lines = said.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert "error: count: 'many' is not accepted; it should be a valid integer" in said


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "command: reconstruct\n"])
def test_a_file_that_holds_no_settings_of_the_command_is_refused(maisi: Maisi, tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    assert "settings.yaml" in refused(maisi, tmp_path / "out", "generate", "-c", tmp_path / "settings.yaml")


def test_beyond_the_limits_force_goes_on(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", "-b", tiny_bundle, "--size", 16, 16, 16, "--spacing", 30, 30, 30, "--steps", 1)
    refused(maisi, tmp_path / "out", *ask)
    assert maisi(*ask, "--force", "--out", tmp_path / "out").code == 0


def test_a_file_in_the_place_of_the_folder_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    said = refused(maisi, tmp_path / "out", "generate", "-b", tiny_bundle, "--size", 16, 16, 16, "--spacing", 9, 9, 9)
    assert "is a file; accepted: a new or empty folder" in said


# Bundles ------------------------------------------------------------------------------------------------------------


def test_an_unknown_bundle_is_refused(maisi: Maisi, tmp_path: Path) -> None:
    assert "no bundle 'ct-smal'" in refused(maisi, tmp_path / "out", "generate", "-b", "ct-smal")


def test_a_folder_that_is_no_bundle_is_refused(maisi: Maisi, tmp_path: Path) -> None:
    assert "is no bundle" in refused(maisi, tmp_path / "out", "generate", "-b", tmp_path)


@pytest.mark.parametrize("name", ["unet/model.safetensors", "unet/config.yaml", "bundle.yaml"])
@pytest.mark.parametrize("command", ["generate", "info"])
def test_an_altered_bundle_is_refused_by_its_checksum(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, name: str, command: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(bytes(content))
    if command == "info":
        if name == "unet/model.safetensors":
            pytest.skip("weights are not read for a description")
        answer = maisi("info", bundle)
        assert answer.code == 2
        assert name in answer.err
    else:
        said = refused(maisi, tmp_path / "out", "generate", "-b", bundle, "--size", 16, 16, 16, "--spacing", 9, 9, 9)
        assert f"{name} was altered or damaged" in said


def test_a_bundle_without_a_part_that_is_needed_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "unet" / "model.safetensors").unlink()
    assert "missing: unet/model.safetensors" in refused(maisi, tmp_path / "out", "generate", "-b", tmp_path / "bundle")


def test_a_region_that_the_bundle_was_not_trained_for_needs_force(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    whole = load_bundle(tiny_bundle)
    limits = whole.limits.model_copy(update={"regions": ("head",)})
    save_bundle(replace(whole, info=whole.info.model_copy(update={"limits": limits})), tmp_path / "heads")
    ask = ("generate", "-b", tmp_path / "heads", "--size", 16, 16, 16, "--spacing", 9, 9, 9, "--steps", 1)
    assert "was not trained for chest; accepted: head" in refused(maisi, tmp_path / "out", *ask)
    assert maisi(*ask, "--force", "--out", tmp_path / "forced").code == 0
    assert maisi(*ask, "--region", "head", "--out", tmp_path / "head").code == 0


def test_info_of_what_does_not_exist_names_all_that_could_be_told(maisi: Maisi) -> None:
    answer = maisi("info", "nowhere.nii.gz")
    assert answer.code == 2
    assert answer.err.startswith("error: no bundle, file or folder 'nowhere.nii.gz'; accepted: ")


def test_info_of_what_is_neither_ct_nor_labels_tells_both_reasons(maisi: Maisi, tmp_path: Path) -> None:
    answer = maisi("info", with_nan(tmp_path))
    assert answer.code == 2
    assert "is not a volume that can be used" in answer.err
    assert "is not a label map that can be used" in answer.err


def test_an_error_is_a_line_and_with_debug_a_traceback(maisi: Maisi, tmp_path: Path) -> None:
    (tmp_path / "bundle.yaml").write_text("name: x")
    assert len(maisi("info", tmp_path).err.splitlines()) == 1
    with pytest.raises(Exception, match="checksums"):
        maisi("info", tmp_path, "--debug")


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("ct-smal", "--manifest", "m.json"),
            "no recipe 'ct-smal'; accepted: ct-labels, ct-segmenter, ct-small, ct-small-refined, inpaint, paper, ",
        ),
        (("ct-small", "--manifest", "nowhere.json"), "no manifest at nowhere.json"),
        (("ct-small", "--manifest", "nowhere.json", "-s", "sed=1"), "unknown setting 'sed'; did you mean 'seed'?"),
        (("ct-small",), "Missing option '--manifest'. See maisi train recipe --help."),
    ],
)
def test_a_training_that_cannot_start_is_refused(
    maisi: Maisi, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused(maisi, tmp_path / "out", "train", "recipe", *arguments)


def test_another_recipe_in_the_folder_of_a_run_is_refused(maisi: Maisi, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"cases": [{"id": "one", "image": "ct.nii.gz"}]}')
    (tmp_path / "ct.nii.gz").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("command: generate\n")
    said = refused(maisi, tmp_path / "out", "train", "recipe", "tiny", "--manifest", tmp_path / "m.json")
    assert "holds an unfinished run of other settings (command)" in said


@pytest.mark.parametrize(
    ("cases", "complaint"),
    [
        ([{"id": "gone", "image": "nowhere.nii.gz"}], "case gone: no file at"),
        (
            [
                {"id": "a", "image": "a.nii", "patient": "P"},
                {"id": "b", "image": "a.nii", "patient": "P", "split": "validation"},
            ],
            "patient P is on two sides of the split: a in training, b in validation",
        ),
    ],
)
def test_cases_that_cannot_be_trained_on_are_refused_before_anything_is_written(
    maisi: Maisi, tmp_path: Path, cases: list[dict[str, str]], complaint: str
) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases}))
    ask = ("train", "autoencoder", "tiny", "--manifest", tmp_path / "manifest.json")
    assert complaint in refused(maisi, tmp_path / "out", *ask)


def test_a_controlnet_that_cannot_steer_the_bundle_is_refused_before_anything_is_encoded(
    maisi: Maisi, tmp_path: Path
) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [{"id": "a", "image": "a.nii"}]}))
    ask = ("train", "controlnet", "tiny", "--manifest", tmp_path / "manifest.json", "--bundle", "ct-small")
    assert "to steer this U-Net it must be (32, 64, 128)" in refused(maisi, tmp_path / "out", *ask)
