"""Encoded cases on disk, and random crops of them for training the diffusion networks.

A case is stored as the mean and the log-variance of its posterior, never as one frozen draw: training samples it anew.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, draw_latent
from maisi.shapes import LatentBatch, Size3, Spacing3
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.volume import LabelMap, Volume, check_same_grid
from maisi.storage.atomic import write_atomically


@dataclass(frozen=True)
class LatentCase:
    """One encoded volume with the labels on its voxel grid."""

    mean: Tensor  # (c, u, v, w)
    log_variance: Tensor  # (c, u, v, w)
    labels: Tensor  # (x, y, z) uint8
    grid: Grid
    span: RegionSpan
    modality: int
    group: str = "default"


@dataclass(frozen=True)
class LatentExample:
    """A batch of one, ready for a training step."""

    latent: LatentBatch  # (1, c, u, v, w), unscaled
    labels: Tensor  # (x, y, z) uint8
    spacing: Spacing3
    span: RegionSpan
    modality: int


@torch.inference_mode()
def encode_case(
    autoencoder: Autoencoder, volume: Volume, labels: LabelMap, span: RegionSpan, modality: int, group: str
) -> LatentCase:
    """The latent case of a volume whose size the autoencoder accepts."""
    check_same_grid(labels, volume)
    x = torch.from_numpy(to_unit(volume.array, volume.modality))[None, None]
    mean, log_variance = autoencoder.encode(x)
    ids = torch.from_numpy(labels.array.astype(np.uint8))
    return LatentCase(mean[0].half(), log_variance[0].half(), ids, volume.grid, span, modality, group)


def write_latent(case: LatentCase, path: Path) -> None:
    """Write a latent case as safetensors, beside and renamed."""
    facts = {
        "affine": case.grid.affine.tolist(),
        "span": [case.span.top.name, case.span.bottom.name],
        "modality": case.modality,
        "group": case.group,
    }
    tensors = {"mean": case.mean, "log_variance": case.log_variance, "labels": case.labels}
    with write_atomically(path) as temporary:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"facts": json.dumps(facts)}
        )


def read_latent(path: Path) -> LatentCase:
    """Read what `write_latent` wrote; raises `InvalidRequestError` for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            mean, log_variance, labels = (file.get_tensor(name) for name in ("mean", "log_variance", "labels"))
        span = RegionSpan(*(BodyRegion[name] for name in facts["span"]))
        grid = Grid(tuple(labels.shape), np.array(facts["affine"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InvalidRequestError(f"{path} is not a latent case: {error}") from error
    return LatentCase(mean, log_variance, labels, grid, span, facts["modality"], facts["group"])


def latent_scale(cases: Iterable[LatentCase]) -> float:
    """1 / standard deviation of sampled latents over all cases, by merging (count, mean, M2) in float64 (Chan)."""
    count, mean, m2 = 0, 0.0, 0.0
    for case in cases:
        values = case.mean.double()
        n, mu = values.numel(), float(values.mean())
        spread = float((values - mu).square().sum() + case.log_variance.double().exp().sum())
        delta = mu - mean
        m2 += spread + delta**2 * count * n / (count + n)
        mean += delta * n / (count + n)
        count += n
    if count < 2 or m2 <= 0:
        raise InvalidRequestError("a latent scale needs at least one case that is not constant")
    return float((m2 / (count - 1)) ** -0.5)


class LatentSource:
    """Random crops of encoded cases; groups are drawn by weight, cases of a group alike."""

    def __init__(self, cases: Sequence[LatentCase], weights: dict[str, float], multiple: int) -> None:
        self.cases = list(cases)
        self.multiple = multiple
        counts = {group: sum(case.group == group for case in cases) for group in {case.group for case in cases}}
        shares = np.array([weights.get(case.group, 0.0) / counts[case.group] for case in cases])
        if not len(shares) or shares.sum() <= 0:
            raise InvalidRequestError(f"no latent case in the groups {sorted(weights)}; found {counts}")
        self.shares = shares / shares.sum()

    def draw(self, size: Size3, rng: np.random.Generator, draw: torch.Generator) -> LatentExample:
        """A random crop of at most `size` latent voxels, sampled from the posterior."""
        case = self.cases[int(rng.choice(len(self.cases), p=self.shares))]
        extent = case.mean.shape[1:]
        part = [min(s, n) // self.multiple * self.multiple for s, n in zip(size, extent, strict=True)]
        start = [
            int(rng.integers(0, (n - p) // self.multiple + 1)) * self.multiple
            for p, n in zip(part, extent, strict=True)
        ]
        box = tuple(slice(a, a + p) for a, p in zip(start, part, strict=True))
        factor = case.labels.shape[0] // extent[0]
        voxels = tuple(slice(b.start * factor, b.stop * factor) for b in box)
        latent = draw_latent(case.mean[:, *box].float(), case.log_variance[:, *box].float(), draw)
        return LatentExample(latent[None], case.labels[voxels], case.grid.spacing, case.span, case.modality)
