"""Copies among volumes: where they lie, what tells what near is, and what is no held-out set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from maisi.errors import InvalidRequestError, InvalidVolumeError
from maisi.evaluation import memorization
from maisi.evaluation.features import PROTOCOLS
from maisi.evaluation.memorization import Sight, find_copies, in_place, sight_of
from maisi.evaluation.neighbours import Neighbour, judged
from maisi.evaluation.requests import EvaluateMemorizationRequest
from maisi.evaluation.sets import NamedImage
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.preview import comparison
from maisi.runs.carry_out import carry_out
from maisi.runs.tasks import evaluate_memorization
from maisi.space.files import write_volume
from maisi.space.grid import Grid
from maisi.space.volume import Volume


def phantom(seed: int, size: tuple[int, int, int] = (39, 36, 15)) -> Volume:
    rng = np.random.default_rng(seed)
    return render_phantom(draw_phantom("abdomen", Grid.centered(size, (8.0, 8.0, 8.0)), rng), rng)


def named(name: str, volume: Volume) -> NamedImage:
    return NamedImage(name, name, Path(name), lambda: volume)


def pair(name: str, distance: float) -> Neighbour:
    return Neighbour(name=name, nearest="t", distance=distance, nearest_by_features="t", features=0.0, mirrored=False)


class Brightness:
    """A feature that costs nothing: nearest by image is what counts here."""

    name = "brightness"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_a_copy_lies_upon_its_original_whatever_the_parity_of_its_sizes() -> None:
    original = phantom(0, (39, 36, 15))
    flipped = Volume(np.ascontiguousarray(original.array[::-1]), original.grid)
    shorter = Volume(original.array[:-1, :, :-2], Grid(original.array[:-1, :, :-2].shape, original.grid.affine))
    seen = {
        name: sight_of(named(name, volume), Brightness(), PROTOCOLS["maisi"])
        for name, volume in (("flipped", flipped), ("shorter", shorter), ("original", original), ("a", phantom(2)))
    }
    found = find_copies([seen["flipped"], seen["shorter"]], [seen["original"]], [seen["a"]])
    told = {each.name: each for each in found.generated}
    assert told["flipped"].mirrored
    assert told["flipped"].shift_mm == pytest.approx((0, 0, 0), abs=1e-6)
    for name, made in (("flipped", flipped), ("shorter", shorter)):
        assert np.array_equal(in_place(original, told[name], made.grid).array, made.array)


def test_what_was_held_out_but_is_of_training_tells_nothing_of_what_near_is() -> None:
    found = judged([pair("copy", 0.05)], [pair(f"leak {k}", 0.0) for k in range(3)] + [pair("a", 0.6)], 5)
    assert found.least == 0.6
    assert [each.name for each in found.copies] == ["copy"]
    assert sum("is as near to t as a copy" in note for note in found.notes) == 3


def test_blocks_of_training_volumes_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def sight(name: str) -> Sight:
        fine = rng.normal(size=(memorization.THUMB_SIZE,) * 3).astype(np.float32)
        return Sight(name, rng.normal(size=3), fine / np.linalg.norm(fine), np.full(3, 31.5))

    training, others = [sight(f"t{k}") for k in range(3)], [sight("a"), sight("b")]
    copies = [replace(training[2].mirrored, name="copy")]
    whole = find_copies(copies, training, others)
    monkeypatch.setattr(memorization, "AT_A_TIME", 2)
    steps: list[tuple[str, int, int]] = []
    assert find_copies(copies, training, others, lambda *told: steps.append(told)) == whole
    assert (whole.generated[0].nearest, whole.generated[0].mirrored) == ("t2", True)
    assert steps[-1][1] == steps[-1][2] == 2


def test_a_held_out_set_that_is_all_of_training_is_refused_before_anything_generated_is_looked_at() -> None:
    with pytest.raises(InvalidRequestError, match="all 2 held out are as near to training as copies"):
        judged([pair("copy", 0.0)], [pair("a", 0.0), pair("b", 0.001)], 2)
    fine = np.random.default_rng(0).normal(size=(memorization.THUMB_SIZE,) * 3).astype(np.float32)
    one = Sight("one", np.zeros(3), fine / np.linalg.norm(fine), np.full(3, 31.5))
    stages: set[str] = set()
    with pytest.raises(InvalidRequestError, match="all 1 held out are as near"):
        find_copies([one], [one], [one], lambda stage, done, total: stages.add(stage))
    assert stages == {"neighbours of what was held out"}


def test_a_split_that_is_named_holds_with_a_held_out_set_too() -> None:
    def splits(**given: object) -> tuple[str | None, str | None]:
        return EvaluateMemorizationRequest.model_validate({"generated": "a", "real": "b", **given}).splits

    assert splits() == ("training", "validation")
    assert splits(held_out_split="testing") == ("training", "testing")
    assert splits(held_out="c") == (None, None)
    assert splits(held_out="c", training_split="training") == ("training", None)


@pytest.mark.parametrize("more", [{"held_out": "real"}, {"held_out_split": "training"}])
def test_training_volumes_are_no_held_out_set_by_the_request_alone(more: dict[str, str]) -> None:
    request = EvaluateMemorizationRequest.model_validate({"generated": "made", "real": "real", **more})
    with pytest.raises(InvalidRequestError, match="what was held out is what was trained on: real, split"):
        evaluate_memorization.check(request)


def test_two_volumes_of_one_name_are_compared() -> None:
    volume = Volume(np.full((8, 8, 8), 40, np.float32), Grid.centered((8, 8, 8), (8.0, 8.0, 8.0)))
    sheet = comparison(volume, volume, names=("sample_000_ct", "sample_000_ct"))
    assert sheet.size == comparison(volume, volume, names=("one", "other")).size


def test_a_run_goes_on_with_what_it_has_of_the_volumes_that_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_memorization, "find_extractor", lambda name: Brightness())
    rng = np.random.default_rng(0)
    paths = {}
    for name, count in (("made", 1), ("training", 2), ("held_out", 2)):
        (tmp_path / name).mkdir()
        for k in range(count):
            noise = rng.normal(40, 50, (16, 16, 16)).astype(np.float32)
            paths[name, k] = tmp_path / name / f"{name}{k}_ct.nii"
            write_volume(Volume(noise, Grid.centered((16, 16, 16), (8.0, 8.0, 8.0))), paths[name, k])
    asked = EvaluateMemorizationRequest(
        generated=tmp_path / "made", real=tmp_path / "training", held_out=tmp_path / "held_out"
    )
    whole = paths["held_out", 1].read_bytes()
    paths["held_out", 1].write_bytes(b"no volume")
    out = tmp_path / "out"
    with pytest.raises(InvalidVolumeError):
        carry_out(evaluate_memorization.EVALUATE_MEMORIZATION, asked, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("sight_*.npz")}
    assert len(before) == 4
    paths["held_out", 1].write_bytes(whole)
    paths["training", 1].write_bytes(paths["training", 0].read_bytes() + b"\0")  # another took its place
    carry_out(evaluate_memorization.EVALUATE_MEMORIZATION, asked, out)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("sight_*.npz")}
    assert len(after) == 5
    assert [name for name in before if before[name] != after[name]] == ["sight_training_training1_ct.nii.npz"]
    assert (out / "memorization.json").is_file()
