"""`maisi generate --format`, `maisi export --to` and `maisi reproduce FILE`: the formats of viewers and archives."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from command_line import Maisi, Patient, files_in

from maisi.cli import main
from maisi.data.door import open_labels, open_volume
from maisi.space.files import read_volume
from maisi.space.label_files import read_labels
from maisi.space.origin import read_provenance

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")


@pytest.fixture(scope="module")
def run(tiny_bundle: Path, patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two DICOM samples that follow a label map."""
    out = tmp_path_factory.mktemp("run") / "out"
    ask = [
        "generate",
        "-b",
        tiny_bundle,
        "--labels",
        patient.labels,
        "--steps",
        1,
        "-n",
        2,
        "--format",
        "dicom",
        "-o",
        out,
    ]
    assert main([str(word) for word in ask]) == 0
    return out


def test_samples_in_dicom_are_a_series_and_a_segmentation_each(run: Path, patient: Patient) -> None:
    names = [name for name in files_in(run) if "/" not in name]
    kinds = ("ct", "preview.png", "quality.json", "seg.dcm")
    assert names == sorted([*(f"sample_00{n}_{kind}" for n in (0, 1) for kind in kinds), "run.json", "run.yaml"])
    given = read_labels(patient.labels)
    for n in (0, 1):
        volume, _ = open_volume(run / f"sample_00{n}_ct")
        labels, _ = open_labels(run / f"sample_00{n}_seg.dcm")
        assert volume.grid.is_close(labels.grid)
        start = np.rint(labels.grid.index(np.array(given.grid.origin))).astype(int)
        inside = tuple(slice(a, a + n) for a, n in zip(start, given.grid.shape, strict=True))
        assert np.array_equal(labels.array[inside], given.array)
    uids = {pydicom.dcmread(path).StudyInstanceUID for path in run.rglob("*.dcm")}
    assert len(uids) == 2
    assert read_provenance(run / "sample_001_ct").request["first"] == 1


@pytest.mark.parametrize("name", ["sample_001_ct", "sample_001_ct/0002.dcm", "sample_001_seg.dcm"])
def test_a_file_says_what_makes_it_again(name: str, run: Path, maisi: Maisi) -> None:
    answer = maisi("reproduce", run / name)
    assert answer.code == 0, answer.err
    assert answer.out == f"same  {run / name}\n"


@pytest.mark.parametrize(
    ("to", "files"),
    [
        ("mha", ("sample_000_ct.mha", "sample_000_labels.mha")),
        ("nrrd", ("sample_000_ct.nrrd", "sample_000_labels.seg.nrrd")),
        ("seg.nrrd", (None, "sample_000_labels.seg.nrrd")),
        ("seg", (None, "sample_000/seg.dcm")),
        ("dicom", ("sample_000/ct", "sample_000/seg.dcm")),
    ],
)
def test_a_folder_of_samples_becomes_files_of_other_formats(
    to: str, files: tuple[str | None, str], run: Path, maisi: Maisi, tmp_path: Path
) -> None:
    answer = maisi("export", run, "--to", to, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    image, labels = files
    if image is not None:
        assert np.array_equal(open_volume(tmp_path / "out" / image)[0].array, read_volume(run / "sample_000_ct").array)
        assert read_provenance(tmp_path / "out" / image) == read_provenance(run / "sample_000_ct")
    original = open_labels(run / "sample_000_seg.dcm")[0]
    assert np.array_equal(open_labels(tmp_path / "out" / labels)[0].array, original.array)
    assert read_provenance(tmp_path / "out" / labels) == read_provenance(run / "sample_000_seg.dcm")


def test_a_converted_file_is_made_again_and_compared_by_its_voxels(run: Path, maisi: Maisi, tmp_path: Path) -> None:
    assert maisi("export", run, "--to", "mha", "--out", tmp_path / "out").code == 0
    answer = maisi("reproduce", tmp_path / "out" / "sample_001_labels.mha")
    assert (answer.code, answer.out.split("  ")[0]) == (0, "same voxels"), answer.err
    content = (run / "sample_000_ct" / "0005.dcm").read_bytes()
    (tmp_path / "sample_000_ct").mkdir()
    for path in (run / "sample_000_ct").iterdir():
        (tmp_path / "sample_000_ct" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sample_000_ct" / "0005.dcm").write_bytes(content[:-2] + b"\x11\x11")
    answer = maisi("reproduce", tmp_path / "sample_000_ct", "--json")
    assert (answer.code, answer.json["identical"], answer.json["same"]) == (1, False, False)


def test_contours_and_chosen_structures_of_single_files(patient: Patient, maisi: Maisi, tmp_path: Path) -> None:
    ask = ("export", patient.ct, "--labels", patient.labels, "--out", tmp_path / "out", "--to", "rtstruct")
    answer = maisi(*ask, "--classes", "liver", "body")
    assert answer.code == 0, answer.err
    found = next(path for path in (tmp_path / "out").rglob("rtstruct.dcm"))
    ids = read_labels(patient.labels).array
    kept = np.where(np.isin(ids, (1, 200)), ids, 0)
    assert np.array_equal(open_labels(found)[0].array, kept)
    dataset = pydicom.dcmread(found)
    assert "SyntheticData" not in dataset
    made = read_provenance(found)
    assert (made.command, made.file) == ("export", f"{found.parent.name}/rtstruct.dcm")
    assert set(made.inputs) == {str(patient.ct), str(patient.labels)}
    answer = maisi("reproduce", found)
    assert (answer.code, answer.out.split("  ")[0]) == (0, "same"), answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "seg"), "has no labels to write as seg; name them by --labels FILE"),
        (("--to", "segg"), "'dicom', 'seg', 'rtstruct'"),
        (("--to", "nrrd", "--encoding", "binary"), "binary is an encoding of a SEG"),
        (("--to", "mha", "--classes", "livre"), "did you mean 'liver'"),
        (("--to", "msd", "--labels", "x.nii"), "leave out labels"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    words: tuple[str, ...], message: str, patient: Patient, maisi: Maisi, tmp_path: Path
) -> None:
    answer = maisi("export", patient.ct, *words, "--out", tmp_path / "out")
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["nrrd", "dicom"])
def test_two_cases_of_one_file_name_are_refused(to: str, patient: Patient, maisi: Maisi, tmp_path: Path) -> None:
    cases = [{"id": id, "image": str(patient.ct)} for id in ("p1 a", "p1_a")]
    (tmp_path / "m.json").write_text(json.dumps({"cases": cases}))
    answer = maisi("export", tmp_path / "m.json", "--to", to, "--out", tmp_path / "out")
    assert (answer.code, "would have one file name: p1_a" in answer.err) == (2, True), answer.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_say_what_made_it_is_refused(patient: Patient, maisi: Maisi) -> None:
    answer = maisi("reproduce", patient.ct)
    assert answer.code == 2
    assert "does not say how it was made; accepted: a file that maisi wrote" in answer.err
