"""Generated samples inside a training loop: a dataset of torch, a dictionary transform, and a mix with real cases."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from maisi.anatomy.classes import Classes
from maisi.bundle.places import lasting_name_of
from maisi.compute.across import Across
from maisi.errors import InvalidRequestError, RunError
from maisi.pipelines.many.requests import ManyRequest, absolute, draw_request, read_requests, request_of
from maisi.pipelines.many.stages import Maker, SampleWork, bundle_for
from maisi.pipelines.many.store import Kept, keep_sample, kept_sample
from maisi.pipelines.validate import compute_for, validate_generate
from maisi.space.volume import LabelMap, Volume
from maisi.storage.settings import check_settings

logger = logging.getLogger(__name__)

Item = TypeVar("Item", covariant=True)
MOST_CHECKED = 1000
"""Samples whose requests are checked when a dataset is made."""

MOST_OTHERS = 8
"""Samples that are tried in place of one that cannot be made."""


class SyntheticDataset(Dataset[Any]):
    """Samples as a training loop takes them; sample i depends on the seed of the request and on i alone.

    An item is a dictionary: `image` float32 (1, x, y, z) in HU, `label` uint8 (1, x, y, z), `affine` float64 (4, 4) to
    RAS mm, `id`; and what `transform` makes of it. `label` has the ids of the vocabulary, or with `classes` (names of
    structures or groups) 1, 2, ... in their order. With `meta_tensors` the image and the label are MONAI's.

    `source` is a request file, its settings, or a folder that `maisi generate --requests` has filled; samples are read
    from `cache`, such a folder, where they are there, and made and kept there where not. One that cannot be made gives
    way to the sample of index i + len. Networks are loaded by each process that makes a sample; in the last bits a
    sample depends on the number of threads too. Raises `InvalidRequestError` for what cannot be drawn.
    """

    def __init__(
        self,
        source: ManyRequest | Mapping[str, Any] | str | Path,
        *,
        cache: str | Path | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        meta_tensors: bool = False,
    ) -> None:
        self.request = _lasting(_request(source))
        folder = Path(source) if isinstance(source, str | Path) and Path(source).is_dir() else None
        self.cache = folder if cache is None else Path(cache)
        self.classes = None if classes is None else Classes.of(classes)
        self.transform, self.meta_tensors = transform, meta_tensors
        for index in range(min(self.request.count, MOST_CHECKED)):
            request_of(draw_request(self.request, index))

    def __len__(self) -> int:
        return self.request.count

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        item = self.item(index % len(self))
        return item if self.transform is None else self.transform(item)

    def item(self, index: int) -> dict[str, Any]:
        """Sample `index` as a dictionary, or the one that stands in for it."""
        for stand_in in range(index, index + MOST_OTHERS * len(self), len(self)):
            kept = self.sample(stand_in)
            if kept.volume is not None:
                return self._as_item(kept.volume, kept.labels, draw_request(self.request, stand_in).stem)
            logger.warning("sample %d cannot be made: %s", stand_in, kept.failed)
        raise InvalidRequestError(f"sample {index} and {MOST_OTHERS - 1} in its place cannot be made: {kept.failed}")

    def sample(self, index: int) -> Kept:
        """Volume and labels of a sample, values rounded as files hold them."""
        drawn = draw_request(self.request, index)
        kept = kept_sample(self.cache, drawn, request_of(drawn)) if self.cache is not None else None
        if kept is not None:
            return kept
        drawn.settings["compute"] = compute_for(self.request.compute, None)
        maker = Maker(bundle_for(self.request.bundle, drawn.settings["compute"]))
        request = validate_generate(request_of(drawn), maker.bundle).request
        made = maker.make(maker.prepare(SampleWork(drawn, request, self.cache or Path())))
        if made.trouble:
            raise RunError(f"sample {index}: {made.trouble}")
        if self.cache is not None:
            keep_sample(self.cache, made, maker.bundle)
        if made.sample is None or made.failed:
            return Kept(None, None, made.failed)
        volume = made.sample.volume
        return Kept(Volume(np.rint(volume.array), volume.grid, volume.modality), made.sample.labels)

    def _as_item(self, volume: Volume, labels: LabelMap | None, id: str) -> dict[str, Any]:
        affine = torch.from_numpy(volume.grid.affine.astype(np.float32).astype(np.float64))  # as files hold it
        item: dict[str, Any] = {"image": torch.from_numpy(volume.array[None]), "affine": affine, "id": id}
        if labels is not None:
            shown = labels if self.classes is None else self.classes.renumbered(labels)
            item["label"] = torch.from_numpy(np.ascontiguousarray(shown.array)[None])
        if self.meta_tensors:
            from monai.data import MetaTensor

            item |= {name: MetaTensor(item[name], affine=affine) for name in ("image", "label") if name in item}
        return item


class Synthesized:
    """A dictionary transform: `{"synthetic": i}` becomes sample i of a `SyntheticDataset`; other keys stay.

    What has no such key goes through `otherwise` (such as what loads real files), or stays as it is. So one list of
    dictionaries may name real cases and samples, in any ratio, for any dataset that takes a list and a transform.
    """

    def __init__(
        self,
        samples: SyntheticDataset,
        key: str = "synthetic",
        otherwise: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.samples, self.key, self.otherwise = samples, key, otherwise

    def __call__(self, data: Mapping[str, Any]) -> Any:
        if self.key not in data:
            return dict(data) if self.otherwise is None else self.otherwise(dict(data))
        rest = {name: value for name, value in data.items() if name != self.key}
        return {**rest, **self.samples[self._index(data[self.key])]}

    def _index(self, said: Any) -> int:
        try:
            return int(said)
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{self.key!r} is {said!r}; accepted: the number of a sample") from error


@runtime_checkable
class Items(Protocol[Item]):
    """A dataset that has a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


class MixedDataset(Dataset[Any]):
    """Every real item once in an epoch, and as many synthetic ones that these are `share` of all.

    The order is drawn from the seed. `set_epoch` takes other synthetic items, until all were there; what order and
    items there are depends on seed and epoch alone. Raises `InvalidRequestError` for a share that is no part of 1.
    """

    def __init__(self, real: Items[Any], synthetic: Items[Any], *, share: float = 0.5, seed: int = 0) -> None:
        if not 0 <= share < 1:
            raise InvalidRequestError(f"a share of {share} is not from 0 to below 1; accepted: 0.5 for one to one")
        self.real, self.synthetic, self.seed, self.epoch = real, synthetic, seed, 0
        self.num_synthetic = round(len(real) * share / (1 - share))
        if share and len(real) and not self.num_synthetic:
            raise InvalidRequestError(
                f"a share of {share} beside {len(real)} real items is no synthetic one; accepted: 0, or "
                f"{1 / (len(real) + 1):.2g} and more"
            )
        if self.num_synthetic and not len(synthetic):
            raise InvalidRequestError("there is no synthetic item to mix in; accepted: a dataset of some, or share=0")

    def set_epoch(self, epoch: int) -> None:
        """Take the synthetic items of an epoch, from 0; before workers are started."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.real) + self.num_synthetic

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        kind, place = self.place(index % len(self))
        return self.real[place] if kind == "real" else self.synthetic[place]

    def place(self, index: int) -> tuple[str, int]:
        """Where an item of this epoch comes from: "real" or "synthetic", and its index there."""
        place = int(np.random.default_rng([self.seed, self.epoch]).permutation(len(self))[index])
        if place < len(self.real):
            return "real", place
        nth = self.epoch * self.num_synthetic + place - len(self.real)
        return "synthetic", nth % len(self.synthetic)


def _lasting(request: ManyRequest) -> ManyRequest:
    """The request as it says the same in any process of this machine, wherever that was started."""
    return absolute(request.model_copy(update={"bundle": lasting_name_of(request.bundle)}))


def _request(source: ManyRequest | Mapping[str, Any] | str | Path) -> ManyRequest:
    if isinstance(source, ManyRequest):
        return source
    if isinstance(source, Mapping):
        return check_settings(ManyRequest, source)
    path = Path(source)
    return read_requests(path / "run.yaml" if path.is_dir() else path, {}, Across())
