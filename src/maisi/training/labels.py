"""Training of the autoencoder of label maps: cross-entropy on the bits of ids, and KL (MAISI, 2409.11169, section 3.3).

The U-Net that draws label maps learns as any other, see `training.diffusion`: its context are the sizes of structures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.bits import NUM_BITS, label_bits
from maisi.compute.compute import Device
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig, draw_latent
from maisi.shapes import BitsBatch, Frozen, Size3, VoxelBatch
from maisi.training.bits_start import check_bits_start, start_at_bits
from maisi.training.learner import TOTAL, Learner, MicroBatch, mixed_precision
from maisi.training.loop import LoopConfig, OnStep, fit, step_generators, training_device
from maisi.training.losses import kl_divergence
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState


class LabelAutoencoderTraining(Frozen):
    """Recipe of an autoencoder of label maps; the number of its logits follows from the channels.

    A structure that fills a share s of a batch counts s^-balance in each of its voxels: small ones are not forgotten.
    With `start: bits` it begins by averaging bits, see `bits_start`.
    """

    network: AutoencoderConfig = AutoencoderConfig()
    loop: LoopConfig
    optimization: Optimization = Optimization(learning_rate=1e-3, warmup=50, average_decay=0.995)
    batch_size: int = Field(default=2, ge=1)
    patch: Size3 = (48, 48, 48)
    kl_weight: float = Field(default=1e-3, ge=0)
    balance: float = Field(default=0.3, ge=0, le=1)
    start: Literal["plain", "bits"] = "plain"
    start_log_variance: float = -6.0
    validation_patches: int = Field(default=8, ge=1)
    device: Device = "cpu"

    @model_validator(mode="after")
    def _can_start(self) -> "LabelAutoencoderTraining":
        self.optimization.check_whole("an autoencoder of label maps")
        if self.start == "bits":
            check_bits_start(self.network)
        return self

    def for_channels(self, channels: Sequence[int]) -> AutoencoderConfig:
        """The network that reads bits and gives a logit for each channel."""
        return self.network.model_copy(update={"in_channels": NUM_BITS, "out_channels": len(channels)})


@dataclass(frozen=True)
class LabelPatches:
    """Random patches of label maps, uint8 (x, y, z), all drawn alike; `channels` are the ids in order of the logits."""

    maps: Sequence[np.ndarray]
    names: Sequence[str]
    channels: tuple[int, ...]

    def draw(self, batch: int, size: Size3, rng: np.random.Generator) -> tuple[Tensor, tuple[str, ...]]:
        """Ids (b, x, y, z), uint8, and the names of their maps; a map smaller than a patch raises."""
        chosen = rng.integers(len(self.maps), size=batch)
        return torch.from_numpy(np.stack([_patch(self.maps[i], size, rng) for i in chosen])), tuple(
            self.names[i] for i in chosen
        )

    def places(self, ids: Tensor) -> Tensor:
        """The channel of each id, int64."""
        table = torch.zeros(256, dtype=torch.long)
        table[torch.tensor(self.channels)] = torch.arange(len(self.channels))
        return table[ids.long()]


def _patch(array: np.ndarray, size: Size3, rng: np.random.Generator) -> np.ndarray:
    if any(n < s for n, s in zip(array.shape, size, strict=True)):
        raise InvalidRequestError(f"a patch of {size} voxels does not fit into a label map of {array.shape}")
    starts = [int(rng.integers(0, n - s + 1)) for n, s in zip(array.shape, size, strict=True)]
    return array[tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))]


def train_label_autoencoder(
    config: LabelAutoencoderTraining,
    source: LabelPatches,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    *,
    validation: LabelPatches | None = None,
) -> Autoencoder:
    """The averaged autoencoder after the run, on `config.device`; resumes from `folder` after a stop."""
    device = training_device(config.device)
    loop = config.loop.counted(len(source.maps), config.batch_size * config.optimization.accumulate)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        network = Autoencoder(config.for_channels(source.channels))
        if config.start == "bits":
            start_at_bits(network, source.channels)
    torch.nn.init.constant_(network.to_log_variance.bias, config.start_log_variance)  # type: ignore[arg-type]
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learner = Learner({"autoencoder": network}, config.optimization, loop.steps)
    state = TrainingState()
    learner.join(state)
    average = learner.averages["autoencoder"]
    assert isinstance(average, Autoencoder)

    def batch_of(number: int) -> MicroBatch:
        draw, rng = step_generators(loop.seed, number)
        ids, names = source.draw(config.batch_size, config.patch, rng)
        begin = draw.get_state()

        def losses(precision: str) -> dict[str, Tensor]:
            draw.set_state(begin)
            return label_losses(config, network, source, ids.to(device), draw, precision)

        return MicroBatch(losses, names)

    def take_step(step: int) -> dict[str, float]:
        return learner.update(step, [batch_of(step * config.optimization.accumulate + part) for part in learner.parts])

    def look(step: int) -> dict[str, float]:
        assert validation is not None
        return label_accuracy(config, average, validation, device)

    fit(state, take_step, loop, folder, on_step, until, look if validation is not None else None)
    return average


def label_losses(
    config: LabelAutoencoderTraining,
    network: Autoencoder,
    source: LabelPatches,
    ids: Tensor,
    draw: torch.Generator,
    precision: str,
) -> dict[str, Tensor]:
    """Cross-entropy and KL of a batch of ids (b, x, y, z), and the share of voxels that come back as they were."""
    targets = source.places(ids.cpu()).to(ids.device)
    with mixed_precision(precision, ids.device, min(ids.shape[1:]) // config.network.factor):
        mean, log_variance = network.encode(bits_of(ids))
        logits = network.decode(draw_latent(mean, log_variance, draw)).float()
    cross_entropy = balanced_cross_entropy(logits, targets, config.balance)
    kl = kl_divergence(mean.float(), log_variance.float())
    right = (logits.detach().argmax(1) == targets).float().mean()
    return {TOTAL: cross_entropy + config.kl_weight * kl, "cross_entropy": cross_entropy, "kl": kl, "right": right}


def bits_of(ids: Tensor) -> BitsBatch:
    """The bits of a batch of ids, laid out for convolutions."""
    return label_bits(ids).to(memory_format=torch.channels_last_3d)


def balanced_cross_entropy(logits: VoxelBatch, targets: Tensor, balance: float) -> Tensor:
    """Mean cross-entropy in which each class of a batch weighs its share of voxels to the power of -balance."""
    counts = torch.bincount(targets.flatten(), minlength=logits.shape[1]).clamp(min=1)
    weights = (counts.double() / targets.numel()).pow(-balance).float()
    return F.cross_entropy(logits, targets, weight=weights)


@torch.no_grad()
def label_accuracy(
    config: LabelAutoencoderTraining, network: Autoencoder, source: LabelPatches, device: torch.device
) -> dict[str, float]:
    """On fixed patches: balanced cross-entropy (`loss`), voxels that come back right, mean Dice of what is shown."""
    losses, rights, dices = [], [], []
    for k in range(config.validation_patches):
        _, rng = step_generators(config.loop.seed + 1, k)
        ids, _ = source.draw(1, config.patch, rng)
        targets = source.places(ids).to(device)
        logits = network.decode(network.encode(bits_of(ids.to(device)))[0]).float()
        losses.append(float(balanced_cross_entropy(logits, targets, config.balance)))
        found = logits.argmax(1)
        rights.append(float((found == targets).float().mean()))
        dices.append(mean_dice(found, targets))
    return {"loss": float(np.mean(losses)), "right": float(np.mean(rights)), "dice": float(np.mean(dices))}


def mean_dice(found: Tensor, targets: Tensor) -> float:
    """The mean Dice over the classes that the targets show, but for class 0."""
    shown = [int(each) for each in targets.unique() if each]
    scores = [
        2 * float(((found == k) & (targets == k)).sum()) / float((found == k).sum() + (targets == k).sum())
        for k in shown
    ]
    return float(np.mean(scores)) if scores else 1.0
