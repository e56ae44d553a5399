"""How much generated volumes are like real ones: distances of features, Hounsfield units by structure, copies.

Every held-out case gives its labels to one generated volume, so that generated and real volumes show the same anatomy.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maisi.anatomy.regions import region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle
from maisi.data.cases import case_span, case_volume, read_case
from maisi.data.manifest import Case
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.evaluation.distances import Planes, by_planes, kernel_distance, standardised
from maisi.evaluation.features import PlaneProtocol, Scattering, plane_features
from maisi.evaluation.fidelity import box_blur
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.shapes import Frozen
from maisi.space.files import write_labels
from maisi.space.resample import resample
from maisi.space.volume import LabelMap, Volume

OnCase = Callable[[str], None]
STEPS = (4, 8, 12, 20, 30)
FEW = 8  # cases that each number of steps is tried on
LEAST_VOXELS = 50  # of a structure whose Hounsfield units are compared


class Distances(Frozen):
    """Of two sets of volumes: Frechet distance of three orientations and their mean, and kernel distance (mean)."""

    frechet: dict[str, float]
    kernel: float


class StructureFidelity(Frozen):
    """Median over cases of a structure's median HU, real and generated, and of the difference in a case (absolute)."""

    name: str
    cases: int
    real_hu: float
    generated_hu: float
    apart_hu: float


class Realism(Frozen):
    """All of it; `*_neighbours` are distances of volumes to the nearest training volume in feature space."""

    generated: Distances
    halves: Distances
    training: Distances
    blurred: Distances
    cases: int
    by_steps: dict[int, Distances]
    structures: tuple[StructureFidelity, ...]
    generated_neighbours: tuple[float, ...]
    held_out_neighbours: tuple[float, ...]


def measure_realism(
    bundle: Bundle,
    held_out: Sequence[Case],
    training: Sequence[Case],
    steps: int = 10,
    by_steps: Sequence[int] = STEPS,
    on_case: OnCase | None = None,
) -> Realism:
    """Generated against held-out volumes; beside it held-out against training ones, halves, and a box blur.

    Distances are of `Scattering` features of planes (`PlaneProtocol`), each divided by its deviation over the held-out
    planes. As many training cases are taken of each group as there are held-out ones. Halves are means over ten splits
    of the held-out cases by halves. Raises `InvalidRequestError` where fewer than four cases are held out.
    """
    if len(held_out) < 4:
        raise InvalidRequestError(f"realism needs at least 4 held-out cases; got {len(held_out)}")
    told, extractor = on_case or (lambda line: None), Scattering()
    real = [read_case(case) for case in held_out]
    told(f"{len(real)} held-out cases are read")
    made = [generated_like(bundle, case, labels, steps, told) for case, (_, labels) in zip(held_out, real, strict=True)]
    references = [case_volume(case) for case in _alike(held_out, training)]
    sets = [
        plane_features(volumes, extractor)
        for volumes in (
            [volume for volume, _ in real],
            [volume for volume, _ in made],
            references,
            [box_blur(volume) for volume, _ in real],
        )
    ]
    there, generated, learned, blurred = standardised(*sets)
    few = list(range(0, len(real), -(-len(real) // FEW)))
    tried = {}
    for count in by_steps:
        again = [generated_like(bundle, held_out[k], real[k][1], count, told)[0] for k in few]
        _, found = standardised(sets[0], plane_features(again, extractor))
        tried[count] = _distances([there[k] for k in few], found)
    return Realism(
        generated=_distances(there, generated),
        halves=_halves(there),
        training=_distances(there, learned),
        blurred=_distances(there, blurred),
        cases=len(real),
        by_steps=tried,
        structures=tuple(_structures(real, made)),
        generated_neighbours=_nearest(generated, learned),
        held_out_neighbours=_nearest(there, learned),
    )


def generated_like(bundle: Bundle, case: Case, labels: LabelMap, steps: int, told: OnCase) -> tuple[Volume, LabelMap]:
    """A generated volume that shows the labels of a case, and these on its grid."""
    region = _region(case, labels)
    with tempfile.TemporaryDirectory(prefix="maisi-") as folder:
        path = Path(folder) / f"{case.stem}.nii.gz"
        write_labels(labels, path)
        (sample,) = generate(GenerateRequest(labels=path, region=region, steps=steps, force=True), bundle)
    told(f"{case.id} is generated in {steps} steps")
    assert sample.labels is not None
    return sample.volume, sample.labels


def _region(case: Case, labels: LabelMap) -> str | None:
    """The region to ask for; None where there are several, which labels tell."""
    span = case_span(case, labels)
    if span.top == span.bottom:
        return span.top.name.lower()
    try:
        region_span(labels)
    except InvalidLabelsError:  # a crop with nothing but body, bone and fat
        return span.bottom.name.lower()
    return None


def _alike(held_out: Sequence[Case], training: Sequence[Case]) -> list[Case]:
    """Training cases: of each group as many as are held out, or all."""
    found: list[Case] = []
    for group in sorted({case.group for case in held_out}):
        number = sum(case.group == group for case in held_out)
        found += [case for case in training if case.group == group and case.image is not None][:number]
    return found


def _distances(a: Planes, b: Planes) -> Distances:
    return Distances(frechet=by_planes(a, b), kernel=by_planes(a, b, kernel_distance)["mean"])


def _halves(planes: Planes, splits: int = 10) -> Distances:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(splits):
        order = rng.permutation(len(planes))
        first, second = ([planes[k] for k in part] for part in np.array_split(order, 2))
        found.append(_distances(first, second))
    mean = {name: float(np.mean([each.frechet[name] for each in found])) for name in found[0].frechet}
    return Distances(frechet=mean, kernel=float(np.mean([each.kernel for each in found])))


def _structures(
    real: Sequence[tuple[Volume, LabelMap]], made: Sequence[tuple[Volume, LabelMap]]
) -> list[StructureFidelity]:
    pairs: dict[int, list[tuple[float, float]]] = {}
    for (volume, _), (generated, labels) in zip(real, made, strict=True):
        same = resample(volume, labels.grid).array
        counts = np.bincount(labels.array.ravel(), minlength=256)
        for id in np.flatnonzero(counts >= LEAST_VOXELS).tolist():
            inside = labels.array == id
            pair = float(np.median(same[inside])), float(np.median(generated.array[inside]))
            pairs.setdefault(id, []).append(pair)
    vocabulary = load_vocabulary()
    return [
        StructureFidelity(
            name="outside" if id == 0 else vocabulary.name(id),
            cases=len(found),
            real_hu=float(np.median([a for a, _ in found])),
            generated_hu=float(np.median([b for _, b in found])),
            apart_hu=float(np.median([abs(a - b) for a, b in found])),
        )
        for id, found in sorted(pairs.items())
    ]


def _nearest(planes: Planes, training: Planes) -> tuple[float, ...]:
    """The distance of every volume's mean features to those of the nearest training volume, per feature (rms)."""
    means, others = (
        np.stack([np.concatenate([v[k].mean(0) for k in sorted(v)]) for v in each]) for each in (planes, training)
    )
    apart = np.sqrt(np.square(means[:, None] - others[None]).mean(-1))
    return tuple(float(d) for d in apart.min(1))


def realism_tables(found: Realism) -> str:
    """Markdown: distances, steps against quality, neighbours, structures."""
    protocol = PlaneProtocol()
    rows = [
        ("generated from the labels of the held-out cases", found.generated),
        ("training cases of the same groups", found.training),
        ("two halves of the held-out cases (mean of ten splits, half as many cases)", found.halves),
        ("the held-out cases themselves, box blur 3^3", found.blurred),
    ]
    lines = [
        f"2.5-D distances to the {found.cases} held-out volumes: scattering features (two orders, three scales, four",
        f"orientations) and a histogram of HU of every {protocol.every}th plane of three orientations at",
        f"{protocol.spacing_mm:g} mm, {protocol.size}^2 pixels around the middle, -1000 to 1000 HU; each feature",
        "divided by its deviation over the held-out planes. They compare with themselves alone.",
        "",
        "| set | Frechet (mean) | sagittal | coronal | axial | kernel |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {_cells(each)} |" for name, each in rows),
        "",
        f"| steps, {min(FEW, found.cases)} cases | Frechet (mean) | sagittal | coronal | axial | kernel |",
        "|---|---|---|---|---|---|",
        *(f"| {count} | {_cells(each)} |" for count, each in sorted(found.by_steps.items())),
        "",
        "Nearest training volume, distance in features: of generated volumes "
        f"{_range(found.generated_neighbours)}, of held-out ones {_range(found.held_out_neighbours)}",
        "(least, median, most).",
        "",
        "| structure | cases | real, median HU | generated | apart in a case |",
        "|---|---|---|---|---|",
        *(
            f"| {s.name} | {s.cases} | {s.real_hu:.0f} | {s.generated_hu:.0f} | {s.apart_hu:.0f} |"
            for s in found.structures
        ),
    ]
    return "\n".join(lines)


def _cells(distances: Distances) -> str:
    f = distances.frechet
    return " | ".join(
        [*(f"{f[name]:.2f}" for name in ("mean", "sagittal", "coronal", "axial")), f"{distances.kernel:.3f}"]
    )


def _range(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in (min(values), float(np.median(values)), max(values)))
