"""The built-in backend: a small 3-D U-Net of MONAI, trained on random patches for a fixed number of steps.

Nothing is chosen by validation. A class that nobody looked for in a case takes no part in the loss of its patches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maisi.downstream.backends.backend import Exercise, OnStep
from maisi.downstream.experiment import TrainingSettings
from maisi.downstream.store import StoredCase
from maisi.errors import InvalidRequestError
from maisi.shapes import Size3
from maisi.space.volume import LabelMap

WINDOWS = ((-1000.0, 1000.0), (-160.0, 240.0))
"""HU of the two channels that the network sees: everything, and soft tissue."""

FOREGROUND = 2 / 3
"""Share of the patches that are drawn around a voxel of a class."""

NOISE_HU, SHIFT_HU, CONTRAST = 15.0, 15.0, 0.1
"""Augmentation: noise up to, a shift up to, contrast changed by up to."""

LEAST = 1e-5


@dataclass(frozen=True)
class Arrays:
    """A case in memory: HU and classes `[x y z]`, which channels are known, and whether it is synthetic."""

    hu: np.ndarray
    classes: np.ndarray
    known: np.ndarray
    synthetic: bool = False


@dataclass(frozen=True)
class Builtin:
    """A U-Net that learns within minutes on a CPU."""

    def check(self) -> None:
        if find_spec("monai") is None:
            raise InvalidRequestError("the built-in backend needs MONAI; install it by: pip install 'maisi[train]'")

    def segment(self, exercise: Exercise, scratch: Path, on_step: OnStep) -> Iterator[tuple[StoredCase, LabelMap]]:
        cases = [arrays_of(case, exercise.folder, exercise.classes) for case in exercise.training]
        network = train(cases, len(exercise.classes), exercise.settings, exercise.seed, on_step)
        for case in exercise.test:
            volume = case.volume(exercise.folder)
            yield case, LabelMap(found(network, volume.array, exercise.settings), volume.grid)


def arrays_of(case: StoredCase, folder: Path, classes: tuple[str, ...]) -> Arrays:
    """A stored case in memory."""
    known = np.array([name in case.known for name in classes])
    return Arrays(case.volume(folder).array, case.classes(folder).array, known, case.synthetic)


def train(cases: list[Arrays], num_classes: int, settings: TrainingSettings, seed: int, on_step: OnStep) -> Any:
    """The network after its steps, from the cases and the seed alone."""
    rng = np.random.default_rng([seed, 1])
    network = build(num_classes, settings, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=LEAST)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1
    )
    network.train()
    for step in range(settings.steps):
        image, classes, known = batch_of(seen_at(step, cases, settings), settings, rng)
        loss = dice_and_entropy(network(image), one_hot(classes, num_classes), known, settings.balance)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, settings.steps)
    return network.eval()


def seen_at(step: int, cases: list[Arrays], settings: TrainingSettings) -> list[Arrays]:
    """The cases that a step draws from: at the end of a training, where asked for, real ones alone."""
    if step < round((1 - settings.real_last) * settings.steps):
        return cases
    return [case for case in cases if not case.synthetic] or cases


def build(num_classes: int, settings: TrainingSettings, seed: int) -> Any:
    """A residual U-Net with weights of a seed; random states elsewhere stay as they are."""
    from monai.networks.nets import UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=3,
            in_channels=len(WINDOWS) + 3 * settings.coordinates,
            out_channels=num_classes,
            channels=settings.channels,
            strides=(2,) * (len(settings.channels) - 1),
            num_res_units=1,
            norm=("instance", {"affine": True}),
        )


def batch_of(
    cases: list[Arrays], settings: TrainingSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches: what the network sees (b, d, x, y, z), classes (b, x, y, z), known channels (b, c)."""
    chosen = [cases[k] for k in rng.integers(len(cases), size=settings.batch)]
    patches = [patch_of(case, settings, rng) for case in chosen]
    hu, classes, places = (torch.from_numpy(np.stack(each)) for each in zip(*patches, strict=True))
    image = torch.cat([seen(hu), places], dim=1) if settings.coordinates else seen(hu)
    return image, classes, torch.from_numpy(np.stack([case.known for case in chosen]))


def patch_of(
    case: Arrays, settings: TrainingSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random patch: HU, augmented, classes, and where it is; beyond the volume is air."""
    present = [k for k in np.flatnonzero(np.bincount(case.classes.ravel())) if k > 0]
    size, shape = np.array(settings.patch), np.array(case.hu.shape)
    if present and rng.random() < FOREGROUND:
        places = np.flatnonzero(case.classes == rng.choice(present))
        middle = np.array(np.unravel_index(int(rng.choice(places)), case.hu.shape))
        start = middle - rng.integers(size // 4, 3 * size // 4 + 1)
    else:
        start = rng.integers(np.minimum(0, shape - size), np.maximum(0, shape - size) + 1)
    start = np.clip(start, np.minimum(0, shape - size), np.maximum(0, shape - size))
    hu, classes = (_cut(each, start, settings.patch, fill) for each, fill in ((case.hu, -1024), (case.classes, 0)))
    places = places_in(case.hu.shape, start.tolist(), settings)
    if settings.flips and rng.random() < 0.5:
        hu, classes, places = hu[::-1].copy(), classes[::-1].copy(), places[:, ::-1].copy()
    noise = rng.uniform(0, NOISE_HU) * rng.standard_normal(hu.shape, dtype=np.float32)
    gain, shift = 1 + rng.uniform(-CONTRAST, CONTRAST), rng.uniform(-SHIFT_HU, SHIFT_HU)
    return (gain * hu + shift + noise).astype(np.float32), classes.astype(np.int64), places


def places_in(shape: Sequence[int], start: Sequence[int], settings: TrainingSettings) -> np.ndarray:
    """Where the voxels of a patch are in their volume (3, x, y, z), -1 to 1 on each axis; with flips left is right."""
    axes = [
        2 * (np.arange(n) + a) / max(size - 1, 1) - 1 for n, a, size in zip(settings.patch, start, shape, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    if settings.flips:
        places[0] = np.abs(places[0])
    return places


def _cut(array: np.ndarray, start: np.ndarray, size: Size3, fill: float) -> np.ndarray:
    """A box of an array, `fill` where it reaches beyond."""
    result = np.full(size, fill, array.dtype)
    low = np.maximum(start, 0)
    high = np.minimum(start + size, array.shape)
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    result[target] = array[source]
    return result


def seen(hu: Tensor) -> Tensor:
    """HU (b, x, y, z) as the network sees it: a channel for each window, -1 to 1."""
    return torch.stack([(2 * (hu - a) / (b - a) - 1).clamp(-1, 1) for a, b in WINDOWS], dim=1)


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Masks (b, c, x, y, z) of classes (b, x, y, z), without what is none."""
    return torch.stack([(classes == k).float() for k in range(1, num_classes + 1)], dim=1)


def dice_and_entropy(logits: Tensor, masks: Tensor, known: Tensor, balance: float) -> Tensor:
    """1 - soft Dice (Milletari et al., 2016) plus binary cross-entropy, of the known channels (b, c).

    With a balance the mean entropy of the voxels of a class counts by that much besides, and Dice only where there are
    any: what fills a thousandth of a patch is else forgotten before it is learnt.
    """
    weight, space = known.to(logits.dtype), (2, 3, 4)
    each = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    found, inside = logits.sigmoid(), masks.sum(space)
    entropy = each.mean(space) + balance * (each * masks).sum(space) / (inside + 1)
    dice = 1 - (2 * (found * masks).sum(space) + 1) / (found.sum(space) + inside + 1)
    counted = weight * (inside > 0) if balance else weight
    return _mean(entropy, weight) + _mean(dice, counted)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)


@torch.inference_mode()
def found(network: Any, hu: np.ndarray, settings: TrainingSettings) -> np.ndarray:
    """The map of classes, uint8 `[x y z]`: the likeliest where any is likelier than not."""
    from monai.inferers import sliding_window_inference

    image = seen(torch.from_numpy(np.ascontiguousarray(hu, np.float32))[None])
    if settings.coordinates:
        whole = settings.model_copy(update={"patch": hu.shape})
        image = torch.cat([image, torch.from_numpy(places_in(hu.shape, (0, 0, 0), whole))[None]], dim=1)
    scores = sliding_window_inference(
        image, settings.patch, 1, network, overlap=0.25, mode="gaussian", padding_mode="constant", cval=-1.0
    )[0]
    best, channel = scores.max(dim=0)
    return np.where(best.numpy() > 0, channel.numpy() + 1, 0).astype(np.uint8)
