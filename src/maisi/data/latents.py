"""Encoded volumes: what they are, their one file format, and batches of them for training the diffusion networks.

A latent is stored as mean and log-variance of its posterior, never as one frozen draw: training samples it anew.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.data.buckets import Buckets
from maisi.data.lazy import LazySequence
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import draw_latent
from maisi.shapes import Frozen, LatentBatch, Size3, Spacing3
from maisi.space.grid import Grid
from maisi.space.volume import OUTSIDE, Modality
from maisi.storage.atomic import write_atomically

FORMAT = 2
"""Of the files that are written. Format 1 had no number, and a form each for `maisi encode` and for training."""

LATENTS = "latents.jsonl"
"""The index in a folder of latents."""

KEPT_BYTES = 4 << 30
"""Of stored latents that stay in memory between two draws."""

FIRST_MR_CODE = 8
"""Codes of the class embedding from this one on are of MR, as in the released models."""

Content = Literal["volume", "labels"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Latent:
    """The posterior of an encoded volume or label map, and the grid of the voxels that it stands for.

    What training knows besides: `labels` on the voxel grid, the `span` of regions, the `modality_code` of the class
    embedding, and the `group` that is drawn by weight. `made_from` names file and bundle for a reader.
    """

    mean: Tensor  # (1, c, u, v, w)
    log_variance: Tensor  # (1, c, u, v, w)
    grid: Grid
    modality: Modality = "ct"
    content: Content = "volume"
    made_from: str = ""
    labels: Tensor | None = None  # (x, y, z) uint8
    span: RegionSpan | None = None
    modality_code: int | None = None
    group: str = "default"

    def __post_init__(self) -> None:
        if self.mean.ndim != 5 or self.mean.shape[0] != 1 or self.mean.shape != self.log_variance.shape:
            raise InvalidRequestError(
                f"mean {tuple(self.mean.shape)} and log-variance {tuple(self.log_variance.shape)} are no posterior of "
                "one volume; accepted: one shape (1, c, u, v, w)"
            )
        if self.modality not in OUTSIDE or self.content not in get_args(Content):
            raise InvalidRequestError(
                f"a latent of modality {self.modality!r} and content {self.content!r} is unknown; accepted: "
                f"{', '.join(OUTSIDE)}; {', '.join(get_args(Content))}"
            )
        if self.labels is not None and tuple(self.labels.shape) != self.grid.shape:
            raise InvalidRequestError(
                f"labels of {tuple(self.labels.shape)} do not lie on the latent's grid of {self.grid.shape} voxels"
            )

    @property
    def factor(self) -> int:
        """How many voxels a latent voxel is long: the power of two for which the padded sizes agree."""
        return _factor(self.grid.shape, self.mean.shape[2:])

    @property
    def extent(self) -> Size3:
        """Its size in whole latent voxels (u, v, w), without what was padded."""
        x, y, z = (n // self.factor for n in self.grid.shape)
        return x, y, z

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        tensors = (self.mean, self.log_variance) + (() if self.labels is None else (self.labels,))
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _factor(voxels: Sequence[int], latent_voxels: Sequence[int]) -> int:
    for factor in (1, 2, 4, 8, 16, 32):
        if all(-(-n // factor) == size for n, size in zip(voxels, latent_voxels, strict=True)):
            return factor
    raise InvalidRequestError(f"a latent of {tuple(latent_voxels)} is not of {tuple(voxels)} voxels")


# --- files ---


def write_latent(latent: Latent, path: Path) -> None:
    """Write a latent as safetensors, its tensors in the format that they have, beside and renamed."""
    facts = {
        "format": FORMAT,
        "shape": latent.grid.shape,
        "affine": latent.grid.affine.tolist(),
        "modality": latent.modality,
        "content": latent.content,
        "made_from": latent.made_from,
        "span": latent.span and [latent.span.top.name, latent.span.bottom.name],
        "modality_code": latent.modality_code,
        "group": latent.group,
    }
    tensors = {"mean": latent.mean, "log_variance": latent.log_variance, "labels": latent.labels}
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None},
        metadata={"maisi": json.dumps(facts)},
    )
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def read_latent(path: Path) -> Latent:
    """Read what `write_latent` wrote, now or before formats had numbers; `InvalidRequestError` for anything else."""
    return _read(path, _latent)


def read_group(path: Path) -> str:
    """The group of a stored latent, without reading its tensors."""
    return _read(path, lambda file, facts: str(facts.get("group", "default")))


def read_origin(path: Path) -> str:
    """The `Latent.made_from` of a stored latent, without reading its tensors."""
    return _read(path, lambda file, facts: str(facts.get("made_from", "")))


def read_extent(path: Path) -> Size3:
    """The `Latent.extent` of a stored latent, without reading its tensors."""
    return _read(path, _extent)


def _extent(file: Any, facts: Mapping[str, Any]) -> Size3:
    shape = file.get_slice("labels").get_shape() if "labels" in file.keys() else facts["shape"]  # noqa: SIM118
    factor = _factor(shape, file.get_slice("mean").get_shape()[-3:])
    x, y, z = (n // factor for n in shape)
    return x, y, z


def _read(path: Path, take: Callable[[Any, Mapping[str, Any]], T]) -> T:
    """What `take` makes of an open file and its facts."""
    try:
        with safe_open(path, framework="pt") as file:
            return take(file, _facts(path, file.metadata() or {}))
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no latent at {path}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InvalidRequestError(f"{path} is not a latent that `maisi encode` or training wrote: {error}") from error


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of its latent, in the words of the present format."""
    if "facts" in metadata:  # format 1 of training, where the modality was a code
        facts = json.loads(metadata["facts"])
        modality = "ct" if facts["modality"] < FIRST_MR_CODE else "mr"
        return {**facts, "modality": modality, "modality_code": facts["modality"]}
    facts = json.loads(metadata.get("maisi", "null"))
    if not isinstance(facts, dict):
        raise InvalidRequestError(
            f"{path} is not a latent that `maisi encode` or training wrote: it says nothing of it"
        )
    if facts.get("format", 1) not in (1, FORMAT):
        raise InvalidRequestError(
            f"{path} is a latent of format {facts['format']}; this version of maisi reads up to {FORMAT}"
        )
    return facts


def _latent(file: Any, facts: Mapping[str, Any]) -> Latent:
    mean, log_variance = file.get_tensor("mean"), file.get_tensor("log_variance")
    if mean.ndim == 4:
        mean, log_variance = mean[None], log_variance[None]
    labels = file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118 (not a mapping)
    shape = labels.shape if labels is not None else facts["shape"]
    span = facts.get("span")
    return Latent(
        mean,
        log_variance,
        Grid(tuple(shape), np.array(facts["affine"])),
        facts["modality"],
        facts.get("content", "volume"),
        facts.get("made_from", ""),
        labels,
        RegionSpan(*(BodyRegion[name] for name in span)) if span else None,
        facts.get("modality_code"),
        facts.get("group", "default"),
    )


class LatentEntry(Frozen):
    """A line of `latents.jsonl`, the index in a folder of latents: file, its sum, and which autoencoder made it."""

    id: str
    file: str
    sha256: str
    split: str = "training"
    autoencoder: str = ""  # SHA-256 of its weights


def write_entries(entries: Iterable[LatentEntry], path: Path) -> None:
    """Write the index of a folder of latents."""
    text = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_entries(folder: Path) -> tuple[LatentEntry, ...]:
    """The index of a folder of latents; raises `InvalidRequestError` for a folder without, or with another."""
    path = folder / LATENTS
    if not path.is_file():
        raise InvalidRequestError(f"{folder} has no {LATENTS}; accepted: the folder of `maisi encode --manifest`")
    try:
        lines = filter(None, path.read_text(encoding="utf-8").split("\n"))
        return tuple(LatentEntry.model_validate_json(line) for line in lines)
    except (UnicodeDecodeError, ValidationError) as error:
        raise InvalidRequestError(f"{path} is no index of latents: {str(error).splitlines()[0]}") from error


class LatentStore(LazySequence[Latent]):
    """Latents of files, read when they are asked for; `change` makes of each the one that is given.

    The last used stay in memory, up to `kept_bytes`.
    """

    def __init__(
        self, paths: Sequence[Path], change: Callable[[Latent], Latent] | None = None, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.paths, self.change, self.kept_bytes = tuple(paths), change, kept_bytes
        super().__init__(
            [partial(self._load, path) for path in self.paths], lambda latent: latent.num_bytes, kept_bytes
        )

    def _load(self, path: Path) -> Latent:
        latent = read_latent(path)
        return latent if self.change is None else self.change(latent)

    def with_change(self, change: Callable[[Latent], Latent]) -> "LatentStore":
        """The same latents, each of them changed once more."""
        before = self.change
        return LatentStore(
            self.paths, change if before is None else (lambda latent: change(before(latent))), self.kept_bytes
        )

    def of_groups(self, weights: Mapping[str, float]) -> "LatentStore":
        """The latents of groups that have a weight; all where there are no weights, or none of these groups."""
        drawn = [path for path, group in zip(self.paths, self.groups, strict=True) if weights.get(group, 0) > 0]
        return LatentStore(drawn, self.change, self.kept_bytes) if drawn and len(drawn) < len(self) else self

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each latent, told by the heads of the files."""
        return tuple(read_group(path) for path in self.paths)

    @property
    def extents(self) -> tuple[Size3, ...]:
        """The size of each latent, told by the heads of the files."""
        return tuple(read_extent(path) for path in self.paths)


# --- training ---


@dataclass(frozen=True)
class LatentExample:
    """A batch of one, ready for a training step."""

    latent: LatentBatch  # (1, c, u, v, w), unscaled
    labels: Tensor | None  # (x, y, z) uint8
    spacing: Spacing3
    span: RegionSpan
    modality: int
    name: str = ""  # of what it was made from


def latent_scale(latents: Iterable[Latent]) -> float:
    """1 / standard deviation of sampled latents over all cases, by merging (count, mean, M2) in float64 (Chan)."""
    count, mean, m2 = 0, 0.0, 0.0
    for latent in latents:
        values = latent.mean[0].double()
        n, mu = values.numel(), float(values.mean())
        spread = float((values - mu).square().sum() + latent.log_variance[0].double().exp().sum())
        delta = mu - mean
        m2 += spread + delta**2 * count * n / (count + n)
        mean += delta * n / (count + n)
        count += n
    if count < 2 or m2 <= 0:
        raise InvalidRequestError("a latent scale needs at least one case that is not constant")
    return float((m2 / (count - 1)) ** -0.5)


class LatentSource:
    """Encoded cases, or random crops of them, in batches of one shape.

    Groups are drawn by weight, cases of a group alike, groups without a weight never; without any weights the cases
    come in turn, see `Buckets`. Latents of a `LatentStore` are read when they are drawn. `labelled` sources refuse a
    case without labels.
    """

    def __init__(
        self, latents: Sequence[Latent], weights: Mapping[str, float], multiple: int, labelled: bool = True
    ) -> None:
        self.latents, self.labelled = latents, labelled
        stored = isinstance(latents, LatentStore)
        groups = latents.groups if stored else tuple(latent.group for latent in latents)  # type: ignore[attr-defined]
        extents = latents.extents if stored else tuple(latent.extent for latent in latents)  # type: ignore[attr-defined]
        self.buckets = Buckets(extents, _shares(groups, weights) if weights else None, multiple)

    @property
    def num_cases(self) -> int:
        """How many latents there are."""
        return len(self.latents)

    def draw(self, seed: int, number: int, count: int = 1, sizes: Sequence[Size3] = ()) -> tuple["LatentExample", ...]:
        """Batch `number`: examples of one shape, crops of at most one of `sizes`, sampled from their posteriors."""
        shape, chosen = self.buckets.chosen(seed, number, count, sizes)
        words = np.random.SeedSequence([seed, number, count]).generate_state(2, np.uint64)
        rng, draw = np.random.default_rng(int(words[0])), torch.Generator().manual_seed(int(words[1] >> np.uint64(1)))
        return tuple(self._crop(self.latents[index], shape, rng, draw) for index in chosen)

    def chosen(
        self, seed: int, number: int, count: int = 1, sizes: Sequence[Size3] = ()
    ) -> tuple[Size3, tuple[str, ...]]:
        """The shape of batch `number`, and what tells its cases apart: their files, or what they were made from."""
        shape, indices = self.buckets.chosen(seed, number, count, sizes)
        if isinstance(self.latents, LatentStore):
            return shape, tuple(self.latents.paths[index].name for index in indices)
        return shape, tuple(self.latents[index].made_from for index in indices)

    def _crop(self, latent: Latent, shape: Size3, rng: np.random.Generator, draw: torch.Generator) -> "LatentExample":
        labels, span, modality = latent.labels, latent.span, latent.modality_code
        if (labels is None and self.labelled) or span is None or modality is None:
            raise InvalidRequestError(
                f"the latent made from {latent.made_from or 'an unknown volume'} cannot be trained on: it has no "
                "labels, no region span or no modality code"
            )
        factor, multiple = latent.factor, self.buckets.multiple
        start = [
            int(rng.integers(0, (n - p) // multiple + 1)) * multiple for p, n in zip(shape, latent.extent, strict=True)
        ]
        box = tuple(slice(a, a + p) for a, p in zip(start, shape, strict=True))
        voxels = tuple(slice(b.start * factor, b.stop * factor) for b in box)
        mean, log_variance = (tensor[0][:, *box].float() for tensor in (latent.mean, latent.log_variance))
        return LatentExample(
            draw_latent(mean, log_variance, draw)[None],
            None if labels is None else labels[voxels],
            latent.grid.spacing,
            span,
            modality,
            latent.made_from,
        )


def _shares(groups: Sequence[str], weights: Mapping[str, float]) -> np.ndarray:
    """How often each case is drawn: groups by weight, cases of a group alike."""
    counts = {group: groups.count(group) for group in set(groups)}
    shares = np.array([weights.get(group, 0.0) / counts[group] for group in groups])
    if not len(shares) or shares.sum() <= 0:
        raise InvalidRequestError(f"no latent case in the groups {sorted(weights)}; found {counts}")
    return shares / shares.sum()
