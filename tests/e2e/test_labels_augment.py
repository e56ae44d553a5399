"""`maisi labels augment`: tumours planted and varied, by the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Maisi, files_in
from PIL import Image

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.door import open_labels
from maisi.phantom.draw import draw_phantom
from maisi.space.files import write_labels
from maisi.space.grid import Grid

ID = load_vocabulary().id
TUMOUR, LIVER = ID("hepatic tumor"), ID("liver")


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "abdomen.nii.gz"
    write_labels(draw_phantom("abdomen", Grid.centered((52, 44, 36), (7.0, 7.0, 7.0)), np.random.default_rng(3)), path)
    return path


def ids_of(path: Path) -> np.ndarray:
    return open_labels(path)[0].array


def test_a_planted_tumour_is_varied_and_all_else_stays(maisi: Maisi, abdomen: Path, tmp_path: Path) -> None:
    planted, varied = tmp_path / "planted", tmp_path / "varied"
    answer = maisi("labels", "augment", abdomen, "-o", planted, "--add", "liver tumor", "--diameter", 45, "-n", 2)
    assert answer.code == 0, answer.err
    samples = [f"sample_{k:03d}_{what}" for k in range(2) for what in ("labels.nii.gz", "preview.png")]
    assert files_in(planted) == ["run.json", "run.yaml", *samples]
    assert maisi("labels", "augment", planted / samples[0], "-o", varied, "--seed", 5).code == 0
    healthy, first, second = (
        ids_of(path) for path in (abdomen, planted / samples[0], varied / "sample_000_labels.nii.gz")
    )
    assert np.array_equal(np.where(first == TUMOUR, LIVER, first), healthy)
    assert np.array_equal(np.where(second == TUMOUR, LIVER, second), healthy)
    assert not np.array_equal(first, second)
    with Image.open(planted / samples[1]) as picture:
        assert picture.width > 500
    assert str(abdomen) in json.loads((planted / "run.json").read_text())["inputs"]


def test_variants_are_those_of_their_seed_and_number(maisi: Maisi, abdomen: Path, tmp_path: Path) -> None:
    plant = ("labels", "augment", abdomen, "--add", "hepatic tumor")
    assert maisi(*plant, "-o", tmp_path / "three", "-n", 3).code == 0
    assert maisi(*plant, "-o", tmp_path / "one", "--volume", 40).code == 0
    assert (
        maisi("labels", "augment", abdomen, "-o", tmp_path / "again", "-c", tmp_path / "three" / "run.yaml").code == 0
    )
    assert maisi("reproduce", tmp_path / "three", "--json").json["identical"]
    maps = [ids_of(path) for path in sorted((tmp_path / "three").glob("*.nii.gz"))]
    assert not np.array_equal(maps[0], maps[1])
    again = [ids_of(path) for path in sorted((tmp_path / "again").glob("*.nii.gz"))]
    assert all(np.array_equal(a, b) for a, b in zip(maps, again, strict=True))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ((), "holds no tumour to vary"),
        (("--add", "livr tumor"), "did you mean 'hepatic tumor'"),
        (("--add", "brain tumor"), "brain tumor grows in brain, which this label map does not hold"),
        (("--add", "hepatic tumor", "--diameter", 300), "larger than its organ"),
        (("--add", "hepatic tumor", "--at", 0, 0, 900), "lies outside the volume"),
        (("--add", "hepatic tumor", "--at", 0, 0), "--at"),
        (("--add", "hepatic tumor", "--diameter", 20, "--volume", 3), "give one of"),
        (("--add", "hepatic tumor", "--strength", 2), "strength is of tumours that the map holds"),
        (("--diameter", 20), "name it by --add"),
        (("--add", "hepatic tumor", "--number", 0), "number"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_written(
    maisi: Maisi, abdomen: Path, tmp_path: Path, options: tuple[object, ...], answer: str
) -> None:
    found = maisi("labels", "augment", abdomen, "-o", tmp_path / "out", *options)
    assert found.code == 2
    assert answer in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert files_in(tmp_path / "out") == []
