"""Two sets of volumes compared: Frechet and kernel distance, precision and recall, with intervals over volumes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from maisi.errors import InvalidRequestError
from maisi.evaluation.comparison import Comparison
from maisi.evaluation.features import PLANES, PlaneProtocol
from maisi.evaluation.sets import NamedImage
from maisi.evaluation.stored import Scaling, StoredPlanes
from maisi.shapes import Frozen, Spacing3, in_words

DIVISIONS = 10
FEW_VOLUMES = 10


class Interval(Frozen):
    """A number with the ends of its interval: 95 %, by resampling volumes; of halves, the range over divisions."""

    value: float
    low: float
    high: float


class SetDistance(Frozen):
    """How far a set is from the real one; Frechet by orientation, all others means of the three."""

    frechet: dict[str, float] = Field(description="Of sagittal, coronal and axial planes, and their mean.")
    frechet_mean: Interval
    kernel: Interval = Field(description="Unbiased squared maximum mean discrepancy (KID); may be below zero.")
    precision: Interval = Field(description="Share of synthetic planes within the manifold of the real ones.")
    recall: Interval = Field(description="Share of real planes within the manifold of the synthetic ones.")


class SetFacts(Frozen):
    """What a set is made of."""

    volumes: int
    planes: dict[str, int] = Field(description="Planes looked at, by orientation.")
    spacings_mm: tuple[Spacing3, ...] = Field(description="All spacings of its volumes, to 0.01 mm.")
    least_fov_mm: Spacing3 = Field(description="Smallest field of view on each axis.")
    most_fov_mm: Spacing3 = Field(description="Largest field of view on each axis.")


class ImageReport(Frozen):
    """Synthetic against real volumes, beside two halves of the real ones."""

    version: int = 2
    features: str = Field(description="The network or code that gave the features, with the SHA-256 of its file.")
    protocol_name: str
    protocol: PlaneProtocol
    num_features: int = Field(description="That distances are of: without those that never change.")
    real: SetFacts
    synthetic_set: SetFacts
    synthetic: SetDistance = Field(description="All synthetic against all real volumes.")
    matched: SetDistance = Field(description="As many synthetic against as many real ones as a half has.")
    halves: SetDistance = Field(description="One half of the real volumes against the other.")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasuredSet:
    """Volumes and the features of their planes."""

    images: Sequence[NamedImage]
    planes: StoredPlanes


@dataclass(frozen=True)
class ImageProtocol:
    """How two sets are compared: what gave the features, of which planes, and how often volumes are drawn again."""

    features: str
    name: str
    planes: PlaneProtocol
    draws: int = 200
    seed: int = 0


def compare_images(
    real: MeasuredSet,
    made: MeasuredSet,
    protocol: ImageProtocol,
    on_draw: Callable[[int, int], None] = lambda done, total: None,
) -> ImageReport:
    """The report.

    Intervals are of `draws` resamplings of the volumes of both sets, moved so that their median is the value itself (a
    volume that is drawn twice makes sets smaller than they are, and so distances larger), by a factor for Frechet and
    by a difference for the kernel distance; those of precision and recall resample the volumes that are asked about.
    Halves are ten random divisions of the real patients, group by group, and `matched` compares one half of each with
    as many synthetic volumes of other patients; where there are fewer of these, the halves have no more either, so that
    sizes are alike in both comparisons.
    """
    check_patients(real.images)
    scaling, num_all = Scaling.of(real.planes), real.planes[0][PLANES[0]].shape[1]
    if protocol.planes.standardised:
        real, made = (MeasuredSet(each.images, each.planes.scaled(scaling)) for each in (real, made))
    rng = np.random.default_rng(protocol.seed)
    across, within = Comparison(real.planes, made.planes, rng), Comparison(real.planes, real.planes, rng)
    size = real.planes[0][PLANES[0]].shape[1]
    facts = [_facts(each.planes) for each in (real, made)]
    matched, halves = _halves(real.images, made.images, across, within, rng)
    return ImageReport(
        features=protocol.features,
        protocol_name=protocol.name,
        protocol=protocol.planes,
        num_features=size,
        real=facts[0],
        synthetic_set=facts[1],
        synthetic=_whole(across, protocol.draws, rng, on_draw),
        matched=matched,
        halves=halves,
        notes=(*_notes(facts, size, num_all - int(scaling.varies.sum())), *_same(real.images, made.images)),
    )


def check_patients(real: Sequence[NamedImage]) -> None:
    """Nothing, or the refusal of volumes that cannot be divided into halves of different patients."""
    if len({image.patient for image in real}) < 2:
        raise InvalidRequestError(
            f"the {len(real)} real volumes are of one patient, and halves need two or more; "
            "accepted: volumes of others too"
        )


def _facts(planes: StoredPlanes) -> SetFacts:
    grids = planes.grids()
    lengths = np.array([np.multiply(spacing, shape) for spacing, shape in grids]).round(1)
    return SetFacts(
        volumes=len(planes),
        planes={name: sum(len(part) for part in planes.orientation(name)) for name in PLANES},
        spacings_mm=tuple(sorted({_rounded(spacing) for spacing, _ in grids})),
        least_fov_mm=tuple(lengths.min(0).tolist()),
        most_fov_mm=tuple(lengths.max(0).tolist()),
    )


def _rounded(spacing: Spacing3) -> Spacing3:
    x, y, z = (round(mm, 2) for mm in spacing)
    return x, y, z


def _whole(
    across: Comparison, draws: int, rng: np.random.Generator, on_draw: Callable[[int, int], None]
) -> SetDistance:
    """All synthetic against all real volumes, with intervals by resampling."""
    real, made = across.everything
    precision, recall = (across.hits(side, real, made) for side in ("precision", "recall"))
    frechet, drawn = across.frechet(real, made), []
    for k in range(draws):
        weights = _again(len(real), rng), _again(len(made), rng)
        shares = precision.share(weights[1]), recall.share(weights[0])
        drawn.append((across.frechet(*weights)["mean"], across.kernel(*weights), *shares))
        on_draw(k + 1, draws)
    values = (frechet["mean"], across.kernel(real, made), precision.share(made), recall.share(real))
    columns = np.array(drawn).T
    return SetDistance(
        frechet=frechet,
        frechet_mean=_moved_by_factor(values[0], columns[0]),
        kernel=_moved(values[1], columns[1]),
        precision=_ends(values[2], columns[2]),
        recall=_ends(values[3], columns[3]),
    )


def _again(count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of so many is drawn when as many are drawn again."""
    return np.bincount(rng.integers(0, count, count), minlength=count)


def _ends(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    return Interval(value=value, low=low, high=high)


def _moved(value: float, drawn: np.ndarray) -> Interval:
    return _ends(value, drawn - np.median(drawn) + value)


def _moved_by_factor(value: float, drawn: np.ndarray) -> Interval:
    middle = float(np.median(drawn))  # 0 where most resamplings have the same volumes on both sides
    return _ends(value, drawn * value / middle) if middle > 0 else _moved(value, drawn)


def _halves(
    real: Sequence[NamedImage],
    made: Sequence[NamedImage],
    across: Comparison,
    within: Comparison,
    rng: np.random.Generator,
) -> tuple[SetDistance, SetDistance]:
    """Of divisions of the real volumes by halves: synthetic ones against a half, and halves against each other."""
    matched, halves = [], []
    for _ in range(DIVISIONS):
        first, second = _divided(real, rng)
        others = _of_others(made, {image.patient for image, is_in in zip(real, first, strict=True) if is_in})
        chosen = rng.permutation(others)[: int(first.sum())]
        drawn = np.zeros(len(made), int)
        drawn[chosen] = 1
        if len(chosen) < first.sum():
            first, second = (_thinned(each, len(chosen), rng) for each in (first, second))
        matched.append(_told(across, first, drawn))
        halves.append(_told(within, first, second))
    return _over_divisions(matched), _over_divisions(halves)


def _thinned(chosen: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the volumes that are chosen, drawn at random, as weights."""
    kept = np.zeros(len(chosen), int)
    kept[rng.permutation(np.flatnonzero(chosen))[:count]] = 1
    return kept


def _divided(images: Sequence[NamedImage], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the patients, as alike in groups as can be, as weights of the volumes."""
    groups = {image.patient: image.group for image in images}
    order = [str(patient) for patient in rng.permutation(sorted(groups))]
    order.sort(key=groups.__getitem__)
    first = set(order[int(rng.integers(2)) :: 2])
    mask = np.array([image.patient in first for image in images]).astype(int)
    return mask, 1 - mask


def _of_others(images: Sequence[NamedImage], patients: set[str]) -> np.ndarray:
    """The volumes of other patients, or all where these are fewer than two."""
    others = [k for k, image in enumerate(images) if image.patient not in patients]
    return np.array(others if len(others) > 1 else range(len(images)))


def _told(sets: Comparison, *weights: np.ndarray) -> dict[str, float]:
    shares = {side: sets.hits(side, *weights).share(weights[side == "precision"]) for side in ("precision", "recall")}
    return {**sets.frechet(*weights), "kernel": sets.kernel(*weights), **shares}


def _over_divisions(found: Sequence[dict[str, float]]) -> SetDistance:
    """Means over divisions, with their range."""
    columns = {name: [each[name] for each in found] for name in found[0]}
    ranges = {
        name: Interval(value=float(np.mean(values)), low=min(values), high=max(values))
        for name, values in columns.items()
    }
    return SetDistance(
        frechet={name: ranges[name].value for name in (*PLANES, "mean")},
        frechet_mean=ranges["mean"],
        kernel=ranges["kernel"],
        precision=ranges["precision"],
        recall=ranges["recall"],
    )


def _notes(facts: Sequence[SetFacts], size: int, constant: int) -> list[str]:
    """What a reader must know of numbers too small, of sets that differ, and of features that say nothing."""
    notes = []
    for words, each in zip(("real", "synthetic"), facts, strict=True):
        few = ", ".join(f"{count} {name}" for name, count in each.planes.items() if count <= size)
        if few:
            notes.append(f"{words}: {few} planes for a covariance of {size} features, which is singular")
        if each.volumes < FEW_VOLUMES:
            notes.append(f"{each.volumes} {words} volumes are few; the interval is wide for a reason")
    real, made = facts
    if real.spacings_mm != made.spacings_mm:
        shown = [_shown(each.spacings_mm) for each in facts]
        notes.append(f"spacings differ (mm): real {shown[0]}; synthetic {shown[1]}; the protocol resamples all alike")
    if (real.least_fov_mm, real.most_fov_mm) != (made.least_fov_mm, made.most_fov_mm):
        shown = [f"{in_words(each.least_fov_mm)} to {in_words(each.most_fov_mm)}" for each in facts]
        notes.append(f"fields of view differ (mm): real {shown[0]}; synthetic {shown[1]}; planes are cut or padded")
    each_side = min(real.volumes // 2, made.volumes)
    if each_side < real.volumes // 2:
        notes.append(f"{made.volumes} synthetic volumes are fewer than a half of the real ones; so many are compared")
    planes = {name: count * each_side // real.volumes for name, count in real.planes.items()}
    few = ", ".join(f"{count} {name}" for name, count in planes.items() if count <= size)
    if few:
        notes.append(f"halves: about {few} planes for a covariance of {size} features, which is singular")
    if constant:
        notes.append(f"{constant} features never change over the real planes, and say nothing")
    return notes


def _same(real: Sequence[NamedImage], made: Sequence[NamedImage]) -> list[str]:
    same = {image.path.resolve() for image in real} & {image.path.resolve() for image in made}
    return [f"{len(same)} volumes are the same files in both sets"] if same else []


def _shown(spacings: Sequence[Spacing3]) -> str:
    return ", ".join(in_words(each) for each in spacings[:3]) + (", ..." if len(spacings) > 3 else "")
