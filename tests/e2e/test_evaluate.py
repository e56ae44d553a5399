"""`maisi evaluate` as a user runs it."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Maisi, files_in

from maisi.evaluation.features import PLANES, PROTOCOLS
from maisi.evaluation.fidelity import box_blur
from maisi.evaluation.memorization import in_place
from maisi.evaluation.memorized_labels import mirrored
from maisi.evaluation.neighbours import Neighbour
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume
from maisi.storage.sums import sha256


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered abdomens: six as real, six others as synthetic, and the real ones blurred."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("real", "other", "blurred"):
        (folder / name).mkdir()
    for k in range(12):
        rng = np.random.default_rng(k)
        volume = render_phantom(draw_phantom("abdomen", Grid.centered((48, 40, 12), (8, 8, 8)), rng), rng)
        write_volume(volume, folder / ("real" if k < 6 else "other") / f"{k}_ct.nii.gz")
        if k < 6:
            write_volume(box_blur(volume), folder / "blurred" / f"{k}_ct.nii.gz")
            write_volume(volume, folder / "real" / f"{k}_labels.nii.gz")  # by its name no image
    return folder


def evaluate(maisi: Maisi, sets: Path, synthetic: str, out: Path, *more: object) -> dict:
    done = maisi("evaluate", "images", sets / "real", sets / synthetic, "--out", out, "--draws", 10, "--json", *more)
    assert done.code == 0, done.err
    return done.json


def test_what_is_blurred_is_further_away_than_other_volumes_and_both_stand_beside_halves(
    maisi: Maisi, sets: Path, tmp_path: Path
) -> None:
    other, blurred = (evaluate(maisi, sets, name, tmp_path / name) for name in ("other", "blurred"))
    assert other["real"]["volumes"] == other["synthetic_set"]["volumes"] == 6
    assert blurred["synthetic"]["frechet_mean"]["low"] > other["synthetic"]["frechet_mean"]["high"]
    assert blurred["synthetic"]["precision"]["value"] < other["synthetic"]["precision"]["value"]
    assert other["halves"]["frechet_mean"]["value"] < blurred["matched"]["frechet_mean"]["low"]
    for each in (other, blurred):
        for name in ("frechet_mean", "kernel", "precision", "recall"):
            figure = each["synthetic"][name]
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert any("singular" in note for note in other["notes"])
    assert {"images.json", "images.html"} <= set(files_in(tmp_path / "other"))
    assert "<script" not in (tmp_path / "other" / "images.html").read_text()


def test_the_same_seed_gives_the_same_intervals(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    first, again, other = (
        evaluate(maisi, sets, "other", tmp_path / str(k), "--seed", seed) for k, seed in enumerate((1, 1, 2))
    )
    assert first["synthetic"] == again["synthetic"] != other["synthetic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--features", "inception"), "unknown features 'inception'; accepted: scattering, a file of SqueezeNet"),
        (("--features", "none.pt"), "no features at none.pt; accepted: scattering, a file of SqueezeNet"),
        (("--features", "maisi:nothing"), "cannot be imported"),
        (("--real-split", "training"), "a folder of files, which knows no split training; accepted: a manifest"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    maisi: Maisi, sets: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    done = maisi("evaluate", "images", sets / "real", sets / "other", "--out", out, *arguments)
    assert done.code == 2
    assert message in done.err
    assert not out.exists()


def test_an_empty_set_is_refused(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = maisi("evaluate", "images", sets / "real", tmp_path / "empty", "--out", tmp_path / "out")
    assert done.code == 2
    assert "has 0 images; a comparison needs at least 2" in done.err


def test_what_is_not_there_is_told_with_what_would_be_accepted(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"cases": [{"id": "one", "image": "one.nii.gz"}]}')
    for given, said in (
        ((sets / "real", tmp_path / "nowhere"), "found no such file or folder; accepted: a manifest"),
        ((tmp_path / "m.json", sets / "real", "--real-split", "x"), "no split 'x'; accepted: training"),
    ):
        done = maisi("evaluate", "images", *given, "--out", tmp_path / "out")
        assert done.code == 2
        assert said in done.err


def test_a_set_of_one_patient_and_a_volume_without_a_body_are_refused(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    cases = [{"id": str(k), "patient": "one", "image": str(sets / "real" / f"{k}_ct.nii.gz")} for k in range(2)]
    (tmp_path / "one.json").write_text(json.dumps({"cases": cases}))
    (tmp_path / "air").mkdir()
    thin = np.full((24, 24, 24), -1000.0, np.float32)
    thin[12, 12, 12] = 40.0  # less than a plane shows of a body
    for k in range(2):
        write_volume(Volume(thin, Grid.centered(thin.shape, (8, 8, 8))), tmp_path / "air" / f"{k}_ct.nii.gz")
    for real, made, said in (
        (tmp_path / "one.json", sets / "other", "of one patient, and halves need two or more"),
        (tmp_path / "air", sets / "real", "0_ct.nii.gz: no plane of it shows a body"),
    ):
        done = maisi("evaluate", "images", real, made, "--out", tmp_path / "out", "--draws", 10)
        assert done.code == 2, done.err
        assert said in done.err
        assert files_in(tmp_path / "out") == []


NAN = "def nan(images):\n    return images.mean((2, 3)) * float('nan')\n"
SAME = "def same(images):\n    return images.mean((2, 3)) * 0 + 1\n"
WRONG = "def wrong(images):\n    return images.flatten(1) @ images\n"


def test_features_that_say_nothing_are_told(
    maisi: Maisi, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_features.py").write_text(NAN + SAME + WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    told = f"sha256:{sha256(tmp_path / 'odd_features.py')[:12]}"
    for name, said in (
        ("nan", f"0_ct.nii.gz: odd_features:nan {told} gives features that are NaN or infinite"),
        ("same", "all 3 features are the same for every real plane"),
        ("wrong", f"0_ct.nii.gz: features by odd_features:wrong {told} failed: RuntimeError"),
    ):
        given = (sets / "real", sets / "other", "--features", f"odd_features:{name}")
        done = maisi("evaluate", "images", *given, "--out", tmp_path / name)
        assert done.code == 2, done.err
        assert said in done.err
        assert len(done.err.splitlines()) == 1


def test_a_run_that_stopped_goes_on_with_the_features_that_it_has(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    whole = evaluate(maisi, sets, "other", tmp_path / "whole")
    broken = tmp_path / "other"
    shutil.copytree(sets / "other", broken)
    kept = (broken / "9_ct.nii.gz").read_bytes()
    (broken / "9_ct.nii.gz").write_bytes(b"no image")
    ask = ("evaluate", "images", sets / "real", broken, "--out", tmp_path / "out", "--draws", 10, "--json")
    stopped = maisi(*ask)
    assert stopped.code != 0
    left = files_in(tmp_path / "out")
    assert "features_real_0_ct.nii.gz.npz" in left
    assert "images.json" not in left
    made = (tmp_path / "out" / "features_real_0_ct.nii.gz.npz").stat().st_ino
    (broken / "9_ct.nii.gz").write_bytes(kept)
    done = maisi(*ask)
    assert done.code == 0, done.err
    assert done.json["synthetic"] == whole["synthetic"]
    assert (tmp_path / "out" / "features_real_0_ct.nii.gz.npz").stat().st_ino == made


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    ask = ("evaluate", "images", sets / "real", sets / "other", "--out", tmp_path / "out", "--draws", 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, before[1]))  # features of a volume are 29 kB
    try:
        done = maisi(*ask)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert f"error: cannot write to {tmp_path / 'out'}: File too large" in done.err
    assert not any(name.endswith((".npz", ".json")) for name in files_in(tmp_path / "out"))


def test_sets_of_other_spacing_and_size_are_told(maisi: Maisi, sets: Path, tmp_path: Path) -> None:
    (tmp_path / "thick").mkdir()
    for k in range(2):
        rng = np.random.default_rng(k)
        volume = render_phantom(draw_phantom("abdomen", Grid.centered((48, 40, 10), (8, 8, 10)), rng), rng)
        write_volume(volume, tmp_path / "thick" / f"{k}_ct.nii.gz")
    done = maisi("evaluate", "images", sets / "real", tmp_path / "thick", "--out", tmp_path / "out", "--draws", 10)
    assert done.code == 0, done.err
    assert "spacings differ (mm): real 8 x 8 x 8; synthetic 8 x 8 x 10; the protocol resamples all alike" in done.err
    assert "fields of view differ (mm): real 384 x 320 x 96" in done.err


def test_the_papers_protocol_is_that_of_the_report_and_leaves_no_plane_out(
    maisi: Maisi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = PROTOCOLS["paper"].model_copy(update={"size": 48})  # 512 takes minutes
    monkeypatch.setitem(PROTOCOLS, "paper", small)
    for k in range(3):
        rng = np.random.default_rng(k)
        volume = render_phantom(draw_phantom("abdomen", Grid.centered((12, 10, 4), (8, 8, 8)), rng), rng)
        for name in ("real", "copy"):
            (tmp_path / name).mkdir(exist_ok=True)
            write_volume(volume, tmp_path / name / f"{k}_ct.nii.gz")
    found = evaluate(maisi, tmp_path, "copy", tmp_path / "out", "--protocol", "paper")
    assert (found["protocol_name"], found["protocol"]) == ("paper", small.model_dump())
    each = 33 - 14  # 30 % to 70 % of 48 planes, with or without body
    assert found["real"]["planes"] == found["synthetic_set"]["planes"] == dict.fromkeys(PLANES, 3 * each)
    assert found["synthetic"]["frechet_mean"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["halves"]["frechet_mean"]["low"] > 0.01


def test_a_planted_copy_is_found_whether_shifted_or_mirrored(maisi: Maisi, tmp_path: Path) -> None:
    for name in ("training", "held_out", "made"):
        (tmp_path / name).mkdir()
    volumes = []
    for k in range(9):
        rng = np.random.default_rng(k)
        volumes.append(render_phantom(draw_phantom("abdomen", Grid.centered((48, 40, 16), (8, 8, 8)), rng), rng))
    for k, volume in enumerate(volumes[:8]):
        write_volume(volume, tmp_path / ("training" if k < 4 else "held_out") / f"{k}_ct.nii.gz")
    noise = np.random.default_rng(9).normal(0, 20, volumes[0].array.shape).astype(np.float32)
    mirrored = Volume(volumes[1].array[::-1] + noise, volumes[1].grid)
    shifted = Volume(np.roll(volumes[2].array, (3, -2, 1), (0, 1, 2)) + noise, volumes[2].grid)
    for name, volume in (("mirrored", mirrored), ("shifted", shifted), ("new", volumes[8])):
        write_volume(volume, tmp_path / "made" / f"{name}_ct.nii.gz")
    ask = ("evaluate", "memorization", tmp_path / "made", tmp_path / "training", "--held-out", tmp_path / "held_out")
    done = maisi(*ask, "--out", tmp_path / "out", "--json", "--gate")
    assert done.code == 1, done.err
    assert done.out, done.err
    assert set(done.json["copies"]) == {"mirrored_ct.nii.gz", "shifted_ct.nii.gz"}
    found = {each["name"].partition("_")[0]: each for each in done.json["images"]["generated"]}
    assert (found["mirrored"]["nearest"], found["mirrored"]["mirrored"]) == ("1_ct.nii.gz", True)
    assert found["shifted"]["nearest"] == "2_ct.nii.gz"
    assert not found["new"]["is_copy"]
    for name, original in (("mirrored", 1), ("shifted", 2)):  # as the pictures show them: one upon the other
        pair, made = Neighbour.model_validate(found[name]), {"mirrored": mirrored, "shifted": shifted}[name]
        apart = np.abs(in_place(volumes[original], pair, made.grid).array - made.array)[6:-6, 6:-6, 3:-3]
        assert np.median(apart) < 40  # noise of 20 HU
    assert {"memorization.json", "memorization.html", "pair_00.png"} <= set(files_in(tmp_path / "out"))
    assert "src='data:image/png;base64," in (tmp_path / "out" / "memorization.html").read_text()
    honest = maisi(*ask, "--out", tmp_path / "again")
    assert honest.code == 0


def test_a_planted_label_map_is_found_whether_moved_scaled_or_mirrored(maisi: Maisi, tmp_path: Path) -> None:
    grid = Grid.centered((44, 36, 24), (8, 8, 8))
    maps = [draw_phantom("abdomen", grid, np.random.default_rng(k)) for k in range(9)]
    for name, chosen in (("training", maps[:4]), ("held_out", maps[4:8])):
        (tmp_path / name).mkdir()
        for k, each in enumerate(chosen):
            write_labels(each, tmp_path / name / f"{name}{k}_labels.nii.gz")
    (tmp_path / "made").mkdir()
    larger = LabelMap(maps[2].array, Grid.axis_aligned(grid.shape, (9.0, 8.5, 8.0), (5.0, -20.0, 3.0)))
    for name, each in (("mirrored", mirrored(maps[1])), ("larger", larger), ("new", maps[8])):
        write_labels(each, tmp_path / "made" / f"{name}_labels.nii.gz")
    ask = ("evaluate", "memorization", tmp_path / "made", tmp_path / "training", "--held-out", tmp_path / "held_out")
    done = maisi(*ask, "--of", "labels", "--out", tmp_path / "out", "--json", "--gate")
    assert done.code == 1, done.err
    assert set(done.json["copies"]) == {"mirrored_labels.nii.gz", "larger_labels.nii.gz"}
    found = {each["name"].partition("_")[0]: each for each in done.json["labels"]["generated"]}
    assert (found["mirrored"]["nearest"], found["mirrored"]["mirrored"]) == ("training1_labels.nii.gz", True)
    assert found["larger"]["nearest"] == "training2_labels.nii.gz"
    assert done.json["images"] is None
    assert "labels_pair_00.png" in files_in(tmp_path / "out")
