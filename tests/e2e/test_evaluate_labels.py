"""`maisi evaluate labels` as a user runs it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Answer, Maisi, files_in

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id("liver")
GRID = Grid.centered((16, 16, 12), (4.0, 4.0, 4.0))
TOOL = """
import sys
import numpy as np
import nibabel as nib
image = nib.load(sys.argv[1])
hu = np.asarray(image.dataobj)
if hu[0, 0, 0] > -990:
    sys.exit('out of memory')
nib.save(nib.Nifti1Image(((hu > 60) & (hu < 200)).astype(np.uint8) * %d, image.affine), sys.argv[2])
"""


def box(k: int) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[3 : 11 + k % 2, 4 : 10 + k % 3, 3:9] = True
    return mask


def case(folder: Path, name: str, k: int, *, fault: int = 0, corner: float = -1000.0, structure: int = ID) -> None:
    """A liver of 100 HU in a body; with a fault, one that shows less by so many planes than its labels say."""
    folder.mkdir(exist_ok=True)
    mask = box(k)
    hu = np.full(GRID.shape, -1000.0, np.float32)
    hu[1:-1, 1:-1] = 40.0
    shown = mask.copy()
    shown[: 3 + fault] = False
    hu[shown] = 100.0
    hu += np.random.default_rng(k).normal(0, 3, hu.shape).astype(np.float32) * (hu > -1000)
    hu[0, 0, 0] = corner
    write_volume(Volume(hu, GRID), folder / f"{name}_ct.nii.gz")
    write_labels(LabelMap(mask.astype(np.uint8) * structure, GRID), folder / f"{name}_labels.nii.gz")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for k in range(3):
        case(folder / "real", f"p{k}", k)
        case(folder / "alike", f"p{k}", k)
        case(folder / "apart", f"other{k}", k, fault=4)
    case(folder / "alike", "broken", 0, corner=-900.0)
    for k in range(2):
        case(folder / "spleens", f"s{k}", k, structure=VOCABULARY.id("spleen"))
    (folder / "tool.py").write_text(TOOL % ID)
    return folder


def ask(maisi: Maisi, sets: Path, synthetic: str, out: Path, *more: object) -> Answer:
    segmenter = f"{sys.executable} {sets / 'tool.py'} {{image}} {{labels}}"
    return maisi("evaluate", "labels", sets / "real", sets / synthetic, "--segmenter", segmenter, "-o", out, *more)


def test_pairs_that_are_alike_are_equivalent_and_a_case_that_fails_is_left_out(
    maisi: Maisi, sets: Path, tmp_path: Path
) -> None:
    done = ask(maisi, sets, "alike", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    (liver,) = done.json["structures"]
    assert liver["name"] == "liver"
    assert liver["test"]["paired"]
    assert liver["test"]["verdict"] == "equivalent"
    assert liver["real"]["dice"]["mean"] == 1.0
    assert liver["synthetic"]["hd95_mm"]["mean"] == 0.0
    (failed,) = done.json["failures"]
    assert (failed["id"], failed["set"]) == ("broken", "synthetic")
    assert "out of memory" in failed["words"]
    assert {"labels.json", "labels.html", "case_real_p0.json"} <= set(files_in(tmp_path / "out"))
    assert "out of memory" in (tmp_path / "out" / "labels.html").read_text()


def test_labels_that_the_volumes_do_not_show_are_not_equivalent(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    done = ask(maisi, sets, "apart", tmp_path / "out")
    assert done.code == 0, done.err
    assert "not equivalent" in done.out
    assert "liver" in done.out


def test_sets_without_a_structure_in_common_are_refused(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    done = ask(maisi, sets, "spleens", tmp_path / "out")
    assert done.code == 2
    assert "no structure is in both sets: real has liver; synthetic has spleen" in done.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_judged_is_refused_in_one_line(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    few = ask(maisi, sets, str(tmp_path / "empty"), tmp_path / "out")
    assert few.code == 2
    assert "has 0 CTs with label maps; a comparison needs at least 2" in few.err
    both = maisi("evaluate", "labels", sets / "real", sets / "alike", "--out", tmp_path / "out")
    assert both.code == 2
    assert "neither given; accepted: one of the two" in both.err
    bundle = maisi("evaluate", "labels", sets / "real", sets / "alike", "-b", "ct-small", "--out", tmp_path / "out")
    assert bundle.code == 2
    assert "has no segmenter" in bundle.err
    assert not (tmp_path / "out").exists()


def test_cases_of_one_label_map_are_paired_whatever_they_are_called(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    for k in range(3):
        case(tmp_path / "renamed", f"sample_{k}", k)
    done = ask(maisi, sets, str(tmp_path / "renamed"), tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert done.json["structures"][0]["test"]["paired"]
    assert done.json["structures"][0]["test"]["numbers"] == [3]


def test_sets_are_resampled_when_asked_and_only_then(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    done = ask(maisi, sets, "alike", tmp_path / "out", "--json", "--spacing", 2, 2, 2)
    assert done.code == 0, done.err
    assert {tuple(each["spacing_mm"]) for each in done.json["cases"]} == {(2.0, 2.0, 2.0)}
