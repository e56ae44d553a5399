"""Training of the segmenter: soft Dice and cross-entropy on label maps of which most name a few structures only."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.segmented import known_masks, segmented_classes
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.compute.compute import Device
from maisi.data.labelled import LabelledArrays, LabelledSource
from maisi.errors import InvalidRequestError
from maisi.networks.segmenter import SegmentationUNet, SegmentedClass, SegmenterConfig
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.segment import probabilities
from maisi.shapes import Frozen, Size3, VoxelBatch
from maisi.space.volume import LabelMap, Volume
from maisi.training.augment import Deformation, deformed
from maisi.training.learner import TOTAL, Learner, MicroBatch, mixed_precision
from maisi.training.loop import LoopConfig, OnStep, fit, step_generators, training_device
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState

PICTURES = "pictures"
SMOOTH = 1.0  # voxel, in the soft Dice of what is hardly there


class SegmenterTraining(Frozen):
    """Recipe of a segmenter. `classes` are of the structures and groups that are listed, or of their own names."""

    classes: dict[str, tuple[str, ...]]
    spacing_mm: float = Field(default=4.0, gt=0)
    patch: Size3 = (64, 64, 64)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    num_res_blocks: tuple[int, ...] = (1, 1, 2, 2)
    loop: LoopConfig
    optimization: Optimization = Optimization(learning_rate=2e-3, warmup=50, average_decay=0.995, clip_norm=5.0)
    batch_size: int = Field(default=1, ge=1)
    deformation: Deformation = Deformation()
    dice_weight: float = Field(default=1.0, ge=0)
    validation_cases: int = Field(default=16, ge=1)
    device: Device = "cpu"
    start_from: str | None = None  # a bundle whose segmenter goes on learning, on patches of another size too

    @model_validator(mode="after")
    def _possible(self) -> "SegmenterTraining":
        self.network(load_vocabulary())
        self.optimization.check_whole("a segmenter")
        return self

    def network(self, vocabulary: Vocabulary) -> SegmenterConfig:
        """The network that is trained; raises `InvalidConfigError` for classes that nobody knows."""
        return SegmenterConfig(
            classes=segmented_classes(self.classes, vocabulary),
            spacing_mm=self.spacing_mm,
            window=self.patch,
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
        )


def train_segmenter(
    config: SegmenterTraining,
    source: LabelledSource,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    *,
    validation: LabelledSource | None = None,
    start: SegmentationUNet | None = None,
) -> SegmentationUNet:
    """The averaged segmenter after the run, on `config.device`; resumes from `folder` after a stop. It begins with the
    weights of `start`.

    Every `loop.validate_every` steps the cases of `validation` are segmented as a whole, and the first one is shown in
    `pictures/`; the `loss` of a validation is 1 - the mean Dice of the classes that are there.
    """
    training = _SegmenterTraining(config, source, start)
    validate = partial(training.validate, validation, folder) if validation is not None else None
    fit(training.state, training.step, training.loop, folder, on_step, until, validate)
    return training.average


class _SegmenterTraining:
    """A run: the network and what it learns from."""

    def __init__(
        self, config: SegmenterTraining, source: LabelledSource, start: SegmentationUNet | None = None
    ) -> None:
        self.config, self.source = config, source
        self.loop = config.loop.counted(len(source), config.batch_size * config.optimization.accumulate)
        self.device = training_device(config.device)
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            network = SegmentationUNet(config.network(load_vocabulary()))
        if start is not None:
            check_same_segmenter(start.config, network.config)
            network.load_state_dict(start.state_dict())
        self.network = network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.learner = Learner({"segmenter": self.network}, config.optimization, self.loop.steps)
        self.state = TrainingState()
        self.learner.join(self.state)

    @property
    def average(self) -> SegmentationUNet:
        """The moving average of the network."""
        network = self.learner.averages["segmenter"]
        assert isinstance(network, SegmentationUNet)
        return network

    def step(self, step: int) -> dict[str, float]:
        """One step."""
        return self.learner.update(step, [self._batch(step, part) for part in self.learner.parts])

    def _batch(self, step: int, part: int) -> MicroBatch:
        config = self.config
        _, rng = step_generators(config.loop.seed, step * config.optimization.accumulate + part)
        cut = partial(deformed, config=config.deformation)
        patches = self.source.draw(
            config.batch_size, config.patch, rng, lambda case, size, rng: cut(case, size, rng=rng)
        )
        hu = torch.from_numpy(patches.hu)[:, None].to(self.device)
        ids = torch.from_numpy(patches.ids).to(self.device)
        admissible = torch.from_numpy(patches.admissible).to(self.device)
        least_planes = min(config.patch) // self.network.config.size_multiple

        def losses(precision: str) -> dict[str, Tensor]:
            with mixed_precision(precision, self.device, least_planes):
                scores = self.network(hu.to(memory_format=torch.channels_last_3d))
            return segmentation_losses(scores.float(), ids, admissible, config.dice_weight)

        return MicroBatch(losses, patches.cases)

    @torch.no_grad()
    def validate(self, source: LabelledSource, folder: Path, step: int) -> dict[str, float]:
        """Dice of the averaged network over whole cases: a class counts in the cases that have it."""
        classes = self.average.config.classes
        scores: dict[str, list[float]] = {each.name: [] for each in classes}
        for index in range(min(self.config.validation_cases, len(source))):
            case = source.case(index)
            found = probabilities(self.average, case.hu).argmax(0).to(torch.uint8).numpy()
            for name, value in case_dice(found, case, classes).items():
                scores[name].append(value)
            if index == 0 and self.learner.team.is_first:
                _draw(case, found, classes, folder / PICTURES / f"step_{step:06d}.png")
        means = {f"dice {name}": round(float(np.mean(values)), 4) for name, values in scores.items() if values}
        return {"loss": 1 - float(np.mean(list(means.values()))) if means else 1.0, **means}


def check_same_segmenter(start: SegmenterConfig, wanted: SegmenterConfig) -> None:
    """Raise `InvalidRequestError` where weights of one do not fit the other; the size of patches may differ."""
    there, asked = start.model_dump(), wanted.model_dump()
    different = [name for name in asked if name != "window" and there[name] != asked[name]]
    if different:
        raise InvalidRequestError(
            f"the segmenter to start from has other {', '.join(different)} than the recipe; "
            "accepted: the same, or no start_from"
        )


def segmentation_losses(
    scores: VoxelBatch, ids: Tensor, admissible: Tensor, dice_weight: float = 1.0
) -> dict[str, Tensor]:
    """The losses of scores (b, c, x, y, z) against ids (b, x, y, z) that stand for sets of classes (b, 256, c).

    Cross-entropy: the mean of -log of the probability of a voxel's set over all voxels, and the mean over ids of the
    means over the voxels of each (`balanced`), without which small structures are found late. Dice: 1 - the mean soft
    Dice (Milletari et al., arXiv 1606.04797) of the classes that some voxel of the batch is known to be, over the
    voxels of which it is known whether they are.
    """
    log_p = scores.movedim(1, -1).flatten(0, 3).log_softmax(1)  # (voxels, c)
    batch = torch.arange(len(ids), device=ids.device).view(-1, 1, 1, 1)
    rows = (256 * batch + ids.long()).flatten()  # of the tables of the batch, one below the other
    tables = admissible.flatten(0, 1)
    sizes = tables.sum(1)
    single = sizes[rows] == 1
    costs = -_log_of_sets(log_p, rows, tables, single)
    counts, of_cost = rows.bincount(minlength=len(tables)), torch.cat([rows[single], rows[~single]])
    by_id = torch.zeros(len(tables), device=log_p.device).index_add(0, of_cost, costs)[counts > 0] / counts[counts > 0]
    cross_entropy, balanced = costs.mean(), by_id.mean()
    losses = {TOTAL: cross_entropy + balanced, "cross_entropy": cross_entropy, "balanced": balanced}
    certain = tables & (sizes == 1)[:, None]
    p = torch.zeros(tables.shape, device=log_p.device).index_add(0, rows, log_p.exp())  # by id and class
    there = (counts[:, None] * certain).sum(0)
    dice = (2 * (p * certain).sum(0) + SMOOTH) / ((p * (certain | ~tables)).sum(0) + there + SMOOTH)
    present = there > 0
    present[0] = False  # air around the body is easy
    if dice_weight and bool(present.any()):
        losses["dice"] = 1 - dice[present].mean()
        losses[TOTAL] = losses[TOTAL] + dice_weight * losses["dice"]
    return losses


def _log_of_sets(log_p: Tensor, rows: Tensor, tables: Tensor, single: Tensor) -> Tensor:
    """The log of the probability of each voxel's set, those of one class first, where it is the class's."""
    of_one = log_p[single].gather(1, tables.int().argmax(1)[rows[single]][:, None])[:, 0]
    of_several = log_p[~single].masked_fill(~tables[rows[~single]], -torch.inf).logsumexp(1)
    return torch.cat([of_one, of_several])


def case_dice(found: np.ndarray, case: LabelledArrays, classes: Sequence[SegmentedClass]) -> dict[str, float]:
    """Dice of each class that a case is known to have, over the voxels of which it is known whether they are of it."""
    scores = {}
    for channel, each in enumerate(classes, start=1):
        truth, told = known_masks(found, case.ids, case.admissible, channel)
        if truth.any():
            scores[each.name] = 2 * int((truth & told).sum()) / int(truth.sum() + told.sum())
    return scores


def _draw(case: LabelledArrays, found: np.ndarray, classes: Sequence[SegmentedClass], path: Path) -> None:
    shown = np.array([0, *(each.ids[0] for each in classes)], np.uint8)[found]
    path.parent.mkdir(exist_ok=True)
    write_png(preview(Volume(case.hu, case.grid), LabelMap(shown, case.grid), path.stem), path)
