"""Latents: one kind, one file format, and crops of them for training."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maisi.anatomy.regions import RegionSpan
from maisi.data.latents import (
    Latent,
    LatentExample,
    LatentSource,
    LatentStore,
    latent_scale,
    read_group,
    read_latent,
    write_latent,
)
from maisi.errors import InvalidRequestError
from maisi.space.grid import Grid

SPAN = RegionSpan.named("chest")


def latent(seed: int = 0, shape: tuple[int, int, int] = (8, 8, 8), group: str = "real") -> Latent:
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn((1, 2, *(-(-n // 2) for n in shape)), generator=draw).half()
    labels = torch.randint(0, 200, shape, generator=draw, dtype=torch.uint8)
    return Latent(
        mean,
        mean / 8 - 4,
        Grid.centered(shape, (2.0, 2.0, 3.0)),
        made_from=f"case {seed}",
        labels=labels,
        span=SPAN,
        modality_code=2,
        group=group,
    )


def same(ours: Latent, theirs: Latent) -> bool:
    for name in ("mean", "log_variance", "labels"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if (a is None) != (b is None) or (a is not None and not (a.dtype == b.dtype and torch.equal(a, b))):
            return False
    plain = ("modality", "content", "made_from", "span", "modality_code", "group")
    return ours.grid.is_close(theirs.grid) and all(getattr(ours, n) == getattr(theirs, n) for n in plain)


def write(path: Path, latents: list[Latent]) -> list[Path]:
    paths = [path / f"{i}.safetensors" for i in range(len(latents))]
    for each, target in zip(latents, paths, strict=True):
        write_latent(each, target)
    return paths


def test_the_files_of_the_first_encode_command_are_read(tmp_path: Path) -> None:
    mean = latent().mean.float()
    facts = {"shape": (7, 8, 8), "affine": latent().grid.affine.tolist(), "modality": "ct"}
    save_file({"mean": mean, "log_variance": -mean}, tmp_path / "l", metadata={"maisi": json.dumps(facts)})
    back = read_latent(tmp_path / "l")
    assert same(back, Latent(mean, -mean, Grid((7, 8, 8), latent().grid.affine)))


@pytest.mark.parametrize(("code", "modality"), [(7, "ct"), (9, "mr")])
def test_the_files_of_the_first_training_are_read(tmp_path: Path, code: int, modality: str) -> None:
    wanted = dataclasses.replace(latent(), made_from="", modality=modality, modality_code=code)
    facts = {"affine": wanted.grid.affine.tolist(), "span": ["CHEST", "CHEST"], "modality": code, "group": "real"}
    tensors = {"mean": wanted.mean[0], "log_variance": wanted.log_variance[0], "labels": wanted.labels}
    save_file(tensors, tmp_path / "l", metadata={"facts": json.dumps(facts)})
    assert same(read_latent(tmp_path / "l"), wanted)
    assert read_group(tmp_path / "l") == "real"


def test_another_file_is_no_latent(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(InvalidRequestError, match="no latent at"):
        read_latent(path)
    path.write_bytes(b"something else")
    with pytest.raises(InvalidRequestError, match="is not a latent"):
        read_latent(path)
    save_file({"mean": torch.zeros(1)}, path)
    with pytest.raises(InvalidRequestError, match="is not a latent"):
        read_latent(path)
    save_file({"mean": torch.zeros(1)}, path, metadata={"maisi": json.dumps({"format": 3})})
    with pytest.raises(InvalidRequestError, match="format 3; this version of maisi reads up to 2"):
        read_latent(path)


def test_tensors_that_are_no_posterior_are_refused() -> None:
    good = latent()
    with pytest.raises(InvalidRequestError, match=r"accepted: one shape \(1, c, u, v, w\)"):
        dataclasses.replace(good, mean=good.mean[0])
    with pytest.raises(InvalidRequestError, match="no posterior"):
        dataclasses.replace(good, log_variance=good.log_variance[:, :1])
    with pytest.raises(InvalidRequestError, match="do not lie on"):
        dataclasses.replace(good, labels=torch.zeros((4, 4, 4), dtype=torch.uint8))
    with pytest.raises(InvalidRequestError, match="'pet'"):
        dataclasses.replace(good, modality="pet")


def test_the_factor_is_that_of_the_padded_size() -> None:
    assert latent(shape=(7, 8, 5)).factor == 2
    with pytest.raises(InvalidRequestError, match="is not of"):
        _ = dataclasses.replace(latent(), grid=Grid.centered((30, 8, 8), (1, 1, 1)), labels=None).factor


def drawn(source: LatentSource, count: int = 12) -> list[LatentExample]:
    return [source.draw(4, number, 1, [(3, 4, 4)])[0] for number in range(count)]


@pytest.mark.parametrize("kept_bytes", [0, 3000, 1 << 30])
def test_stored_latents_are_drawn_like_those_in_memory(tmp_path: Path, kept_bytes: int) -> None:
    latents = [latent(0), latent(1), latent(2, (12, 8, 8), "made")]
    paths, weights = write(tmp_path, latents), {"real": 0.5, "made": 0.5}
    stored = LatentSource(LatentStore(paths, kept_bytes=kept_bytes), weights, 1)
    for ours, theirs in zip(drawn(stored), drawn(LatentSource(latents, weights, 1)), strict=True):
        assert torch.equal(ours.latent, theirs.latent)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.spacing, ours.span, ours.modality) == (theirs.spacing, theirs.span, theirs.modality)
    assert latent_scale(LatentStore(paths)) == latent_scale(latents)


def test_of_groups_without_a_weight_no_latent_is_left(tmp_path: Path) -> None:
    store = LatentStore(write(tmp_path, [latent(0), latent(1, group="made"), latent(2)]))
    assert [each.made_from for each in store.of_groups({"real": 1.0, "made": 0.0})] == ["case 0", "case 2"]
    assert len(store.of_groups({})) == len(store.of_groups({"nobody": 1.0})) == 3
    drawn_ = LatentSource(store.of_groups({"made": 0.5}), {"made": 0.5}, 1)
    assert drawn_.num_cases == 1


def test_stored_latents_are_changed_when_they_are_read(tmp_path: Path) -> None:
    store = LatentStore(write(tmp_path, [latent(0), latent(1)]))
    doubled = store.with_change(lambda each: dataclasses.replace(each, mean=2 * each.mean))
    named = doubled.with_change(lambda each: dataclasses.replace(each, made_from=f"twice {each.made_from}"))
    assert torch.equal(named[1].mean, 2 * latent(1).mean)
    assert named[1].made_from == "twice case 1"
    assert same(store[1], latent(1))


def test_a_crop_of_labels_lies_on_the_crop_of_its_latent() -> None:
    ramp = torch.arange(32, dtype=torch.uint8)[:, None, None].expand(32, 32, 32)
    mean = torch.arange(16, dtype=torch.float32)[None, None, :, None, None].expand(1, 4, 16, 16, 16)
    marked = Latent(
        mean,
        torch.full_like(mean, -30.0),
        Grid.centered(ramp.shape, (3, 3, 3)),
        labels=ramp,
        span=SPAN,
        modality_code=1,
    )
    example = LatentSource([marked], {}, 2).draw(3, 0, 1, [(8, 8, 8)])[0]
    assert example.latent.shape[2:] == (8, 8, 8)
    assert example.labels is not None
    first = float(example.latent[0, 0, 0, 0, 0])
    assert float(example.labels[0, 0, 0]) == pytest.approx(2 * first, abs=1e-4)


def test_what_was_padded_is_not_trained_on() -> None:
    odd = latent(shape=(7, 8, 9))
    for example in drawn(LatentSource([odd], {"real": 1.0}, 1)):
        assert tuple(example.labels.shape) == tuple(2 * n for n in example.latent.shape[2:])
    (example,) = drawn(LatentSource([odd], {"real": 1.0}, 1), 1)
    assert example.latent.shape[2:] == (3, 4, 4)


def test_heads_of_files_tell_the_sizes_of_latents(tmp_path: Path) -> None:
    latents = [latent(), latent(1, (7, 8, 9)), dataclasses.replace(latent(2, (12, 8, 6)), labels=None)]
    store = LatentStore(write(tmp_path, latents))
    assert store.extents == tuple(each.extent for each in latents) == ((4, 4, 4), (3, 4, 4), (6, 4, 3))


def test_a_batch_holds_cases_of_one_shape_whole_where_no_size_is_asked(tmp_path: Path) -> None:
    latents = [latent(0), latent(1, (12, 8, 8)), latent(2), latent(3, (12, 8, 8))]
    source = LatentSource(LatentStore(write(tmp_path, latents)), {}, 1)
    seen = set()
    for number in range(4):
        examples = source.draw(0, number, 2)
        assert {example.name for example in examples} in ({"case 0", "case 2"}, {"case 1", "case 3"})
        assert len({example.latent.shape for example in examples}) == 1
        seen |= {(example.name, tuple(example.latent.shape[2:])) for example in examples}
    assert seen == {("case 0", (4, 4, 4)), ("case 2", (4, 4, 4)), ("case 1", (6, 4, 4)), ("case 3", (6, 4, 4))}


def test_a_latent_without_what_training_needs_is_refused_by_its_origin() -> None:
    bare = dataclasses.replace(latent(), labels=None)
    with pytest.raises(InvalidRequestError, match="made from case 0 cannot be trained on: it has no labels"):
        drawn(LatentSource([bare], {"real": 1.0}, 1))
    assert LatentSource([bare], {}, 1, labelled=False).draw(0, 0)[0].labels is None
    with pytest.raises(InvalidRequestError, match=r"groups \['other'\]; found \{'real': 1\}"):
        LatentSource([bare], {"other": 1.0}, 1)
