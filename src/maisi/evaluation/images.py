"""Two sets of volumes compared: Frechet and kernel distance, precision and recall, with intervals over volumes."""

from collections.abc import Callable, Sequence

import numpy as np

from maisi.errors import InvalidRequestError
from maisi.evaluation.distances import Distance, Planes, by_planes, frechet, kernel_distance, standardised
from maisi.evaluation.features import FeatureExtractor, PlaneProtocol
from maisi.evaluation.sets import NamedImage, features_of
from maisi.shapes import Frozen

MOST_PLANES = 1500  # of each set and orientation, that precision and recall look at
NEIGHBOURS = 3


class Interval(Frozen):
    """A number with the ends of its 95 % bootstrap interval over volumes."""

    value: float
    low: float
    high: float


class SetDistance(Frozen):
    """How far a set is from the real one; Frechet by orientation, all others means of the three."""

    frechet: dict[str, float]
    frechet_mean: Interval
    kernel: Interval
    precision: float | None = None
    recall: float | None = None


class ImageReport(Frozen):
    """Synthetic against real volumes, beside two halves of the real ones."""

    version: int = 1
    features: str
    protocol: PlaneProtocol
    num_features: int
    num_real: int
    num_synthetic: int
    planes_real: dict[str, int]
    planes_synthetic: dict[str, int]
    synthetic: SetDistance
    halves: SetDistance
    notes: tuple[str, ...] = ()


def compare_images(
    real: Sequence[NamedImage],
    synthetic: Sequence[NamedImage],
    extractor: FeatureExtractor,
    protocol: PlaneProtocol,
    draws: int = 200,
    seed: int = 0,
    on_volume: Callable[[int, int], None] = lambda done, total: None,
) -> ImageReport:
    """The report. Volumes are read one after the other; their features stay, not they themselves.

    Each feature is divided by its deviation over the real planes. Intervals are percentiles over `draws` resamplings
    of the volumes of both sets; a volume that is drawn twice counts twice, which moves distances up a little, the more
    the fewer there are. Halves are over ten random divisions of the real patients, the interval their range.
    """
    if len({image.patient for image in real}) < 2:
        raise InvalidRequestError(
            f"the {len(real)} real volumes are of one patient, and halves need two or more; "
            "accepted: volumes of others too"
        )
    total, told = len(real) + len(synthetic), 0
    sets: list[Planes] = []
    for images in (real, synthetic):
        found = []
        for image in images:
            found.append(features_of(image.name, image.read(), extractor, protocol))
            told += 1
            on_volume(told, total)
        sets.append(found)
    raw_real = sets[0]
    real_planes, made_planes = standardised(raw_real, sets[1])
    rng = np.random.default_rng(seed)
    precision, recall = precision_recall(real_planes, made_planes, rng)
    return ImageReport(
        features=extractor.name,
        protocol=protocol,
        num_features=int(next(iter(real_planes[0].values())).shape[1]),
        num_real=len(real),
        num_synthetic=len(synthetic),
        planes_real=_counts(real_planes),
        planes_synthetic=_counts(made_planes),
        synthetic=SetDistance(
            frechet=by_planes(real_planes, made_planes),
            frechet_mean=_bootstrap(real_planes, made_planes, frechet, draws, rng),
            kernel=_bootstrap(real_planes, made_planes, kernel_distance, draws, rng),
            precision=precision,
            recall=recall,
        ),
        halves=_halves(real_planes, [image.patient for image in real], rng),
        notes=tuple(_notes(real_planes, made_planes, len(real), len(synthetic))),
    )


def _counts(planes: Planes) -> dict[str, int]:
    return {name: sum(len(volume[name]) for volume in planes) for name in planes[0]}


def _bootstrap(a: Planes, b: Planes, distance: Distance, draws: int, rng: np.random.Generator) -> Interval:
    value = by_planes(a, b, distance)["mean"]

    def again(planes: Planes) -> Planes:
        return [planes[k] for k in rng.integers(0, len(planes), len(planes))]

    found = [by_planes(again(a), again(b), distance)["mean"] for _ in range(draws)]
    low, high = np.percentile(found, (2.5, 97.5)) if found else (value, value)
    return Interval(value=value, low=float(low), high=float(high))


def _halves(planes: Planes, patients: Sequence[str], rng: np.random.Generator, divisions: int = 10) -> SetDistance:
    """The distance between two halves of the patients, mean and range over divisions."""
    names = sorted(set(patients))
    distances, kernels = [], []
    for _ in range(divisions):
        first = set(rng.permutation(names)[: len(names) // 2].tolist())
        there = [v for v, p in zip(planes, patients, strict=True) if p in first]
        others = [v for v, p in zip(planes, patients, strict=True) if p not in first]
        distances.append(by_planes(there, others))
        kernels.append(by_planes(there, others, kernel_distance)["mean"])
    means = [each["mean"] for each in distances]
    return SetDistance(
        frechet={name: float(np.mean([each[name] for each in distances])) for name in distances[0]},
        frechet_mean=Interval(value=float(np.mean(means)), low=min(means), high=max(means)),
        kernel=Interval(value=float(np.mean(kernels)), low=min(kernels), high=max(kernels)),
    )


def precision_recall(real: Planes, made: Planes, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of made planes within the manifold of the real ones, and of real ones within that of the made ones.

    The manifold is the union of balls to the third neighbour (Kynkaanniemi et al., 2019), for each orientation; means.
    """
    found = []
    for name in real[0]:
        a, b = (_some(np.concatenate([v[name] for v in each]), rng) for each in (real, made))
        found.append((_inside(b, a), _inside(a, b)))
    precision, recall = np.mean(found, axis=0)
    return float(precision), float(recall)


def _some(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return features if len(features) <= MOST_PLANES else features[rng.permutation(len(features))[:MOST_PLANES]]


def _inside(points: np.ndarray, manifold: np.ndarray) -> float:
    apart = _squared(manifold, manifold)
    radius = np.sort(apart, axis=1)[:, min(NEIGHBOURS, len(manifold) - 1)]
    return float((_squared(points, manifold) <= radius[None]).any(1).mean())


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


def _notes(real: Planes, made: Planes, num_real: int, num_made: int) -> list[str]:
    """What a reader must know of numbers too small, and of features that say nothing."""
    size, notes = next(iter(real[0].values())).shape[1], []
    for words, planes, number in (("real", real, num_real), ("synthetic", made, num_made)):
        few = {name: count for name, count in _counts(planes).items() if count <= size}
        if few:
            shown = ", ".join(f"{count} {name}" for name, count in few.items())
            notes.append(f"{words}: {shown} planes for a covariance of {size} features, which is singular")
        if number < 10:
            notes.append(f"{number} {words} volumes are few; the interval is wide for a reason")
    return notes
