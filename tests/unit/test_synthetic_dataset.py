"""Samples in a training loop: deterministic, in any process, mixed with real items in a ratio."""

import copy
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import save_tiny_bundle
from torch.utils.data import DataLoader

from maisi.anatomy.classes import Classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidConfigError, InvalidLabelsError, InvalidRequestError
from maisi.pipelines import dataset as home
from maisi.pipelines.dataset import MixedDataset, Synthesized, SyntheticDataset
from maisi.pipelines.many.store import Kept
from maisi.space.files import write_labels
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap

CLASSES = ("liver", "lungs", "spleen")


@pytest.fixture(scope="module")
def request_of_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundle = save_tiny_bundle(tmp_path_factory.mktemp("bundles"))
    return {
        "count": 4,
        "seed": 3,
        "bundle": str(bundle),
        "size": 16,
        "spacing": {"uniform": [14, 18]},
        "region": {"choice": ["chest", "abdomen"]},
        "steps": 1,
        "quality": {"on_failure": "keep"},
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_an_item_is_image_label_affine_and_id(request_of_four: dict) -> None:
    samples = SyntheticDataset(request_of_four)
    item = samples[1]
    assert len(samples) == 4
    assert item["image"].shape == item["label"].shape == (1, 16, 16, 16)
    assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
    assert torch.equal(item["image"], item["image"].round())
    assert item["id"] == "sample_00001"
    assert 14 <= float(item["affine"][0, 0]) <= 18
    load_vocabulary().check_ids(item["label"].numpy())
    assert same(item, SyntheticDataset({**request_of_four, "count": 2})[-1])
    assert not same(item, samples[2])
    with pytest.raises(IndexError):
        samples[4]


def test_classes_are_numbered_from_one_in_their_order(request_of_four: dict) -> None:
    samples = SyntheticDataset(request_of_four)
    plain, samples.classes = samples[0]["label"], Classes.of(CLASSES)
    few = samples[0]["label"]
    vocabulary = load_vocabulary()
    for number, name in enumerate(CLASSES, start=1):
        assert torch.equal(few == number, torch.from_numpy(np.isin(plain.numpy(), vocabulary.members(name))))
    assert int(few.max()) <= 3
    with pytest.raises(InvalidLabelsError, match="did you mean 'liver'"):
        SyntheticDataset(request_of_four, classes=["livre"])


def test_a_cache_gives_the_same_items_without_any_network(
    request_of_four: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cached = SyntheticDataset(request_of_four), SyntheticDataset(request_of_four, cache=tmp_path / "cache")
    first = cached[2]
    assert same(first, plain[2])
    monkeypatch.setattr(home, "bundle_for", None)
    assert same(cached[2], first)
    other = SyntheticDataset({**request_of_four, "steps": 2}, cache=tmp_path / "cache")
    with pytest.raises(TypeError):
        other[2]  # of other settings: it would be made


def test_a_cache_keeps_classes_that_a_bundle_declares(request_of_four: dict, tmp_path: Path) -> None:
    cached = SyntheticDataset(request_of_four, cache=tmp_path / "cache")
    cached[0]
    (path,) = (tmp_path / "cache").glob("*_labels.nii.gz")
    labels = read_labels(path)
    own = np.where(labels.array == labels.array.max(), np.uint8(210), labels.array)
    write_labels(LabelMap(own, labels.grid), path)
    assert 210 in cached[0]["label"]


def test_it_is_the_same_in_processes_that_are_spawned(request_of_four: dict) -> None:
    samples = SyntheticDataset({**request_of_four, "count": 2}, classes=CLASSES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = [samples[k] for k in range(2)]
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")
    there = list(DataLoader(samples, batch_size=None, num_workers=1, multiprocessing_context=context))
    assert [same(a, b) for a, b in zip(here, there, strict=True)] == [True, True]


def test_a_transform_is_applied_last(request_of_four: dict) -> None:
    samples = SyntheticDataset(request_of_four, transform=lambda item: item["image"].mean())
    assert samples[0].shape == ()


def test_meta_tensors_hold_the_affine(request_of_four: dict) -> None:
    monai = pytest.importorskip("monai.data")
    item = SyntheticDataset(request_of_four, meta_tensors=True)[0]
    assert isinstance(item["image"], monai.MetaTensor)
    assert torch.equal(item["label"].affine, item["affine"])


def test_a_sample_that_cannot_be_made_gives_way_to_another(
    request_of_four: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = SyntheticDataset(request_of_four)
    real = SyntheticDataset.sample
    monkeypatch.setattr(
        SyntheticDataset, "sample", lambda self, k: real(self, k) if k > 4 else Kept(None, None, "no room")
    )
    assert samples[1]["id"] == "sample_00005"
    monkeypatch.setattr(SyntheticDataset, "sample", lambda self, k: Kept(None, None, "no room"))
    with pytest.raises(InvalidRequestError, match="sample 1 and 7 in its place cannot be made: no room"):
        samples[1]


def test_what_cannot_be_drawn_is_refused_when_the_dataset_is_made(request_of_four: dict) -> None:
    with pytest.raises(InvalidConfigError, match="did you mean 'region'"):
        SyntheticDataset({**request_of_four, "regoin": "chest"})
    with pytest.raises(InvalidConfigError, match=r"request \d: steps: 0 is not accepted"):
        SyntheticDataset({**request_of_four, "steps": {"whole": [0, 1]}})


def test_a_dictionary_that_names_a_sample_becomes_it_and_others_go_another_way(request_of_four: dict) -> None:
    samples = SyntheticDataset(request_of_four)
    load = Synthesized(samples, otherwise=lambda data: {**data, "read": True})
    made = load({"synthetic": 1, "fold": 0})
    assert made.pop("fold") == 0
    assert same(made, samples[1])
    assert load({"image": "a.nii.gz"}) == {"image": "a.nii.gz", "read": True}
    assert Synthesized(samples)({"image": "a.nii.gz"}) == {"image": "a.nii.gz"}
    for wrong in ("x", None):
        with pytest.raises(InvalidRequestError, match=rf"'synthetic' is {wrong!r}; accepted: the number of a sample"):
            load({"synthetic": wrong})


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8])
def test_an_epoch_has_every_real_item_once_and_the_share_of_synthetic_ones(share: float) -> None:
    mixed = MixedDataset([f"r{k}" for k in range(30)], [f"s{k}" for k in range(1000)], share=share, seed=1)
    items = list(mixed)
    counts = Counter(item[0] for item in items)
    assert counts["r"] == 30 == len({item for item in items if item[0] == "r"})
    assert counts["s"] == len({item for item in items if item[0] == "s"})
    assert counts["s"] / len(items) == pytest.approx(share, abs=0.01)
    assert items == list(copy.deepcopy(mixed))


def test_epochs_take_other_synthetic_items_until_all_were_there() -> None:
    mixed = MixedDataset(list(range(10)), [f"s{k}" for k in range(25)], share=0.5)
    seen: Counter[Any] = Counter()
    for epoch in range(5):
        mixed.set_epoch(epoch)
        seen.update(item for item in mixed if isinstance(item, str))
    assert len(seen) == 25
    assert set(seen.values()) == {2}


def test_a_mix_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="share of 1 is not from 0 to below 1"):
        MixedDataset([1], [2], share=1)
    with pytest.raises(InvalidRequestError, match="no synthetic item"):
        MixedDataset([1], [], share=0.5)
    with pytest.raises(
        InvalidRequestError, match=r"a share of 0\.1 beside 4 real items is no synthetic one; accepted: 0, or 0\.2"
    ):
        MixedDataset([1, 2, 3, 4], [2], share=0.1)
