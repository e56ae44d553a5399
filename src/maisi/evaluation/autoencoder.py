"""What an autoencoder keeps of many volumes, over all, by group and by tissue, beside a box blur.

The figures of Table 1 of Guo et al. (arXiv 2409.11169), with intervals.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from maisi.anatomy.body import tissue_labels
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle
from maisi.evaluation.fidelity import box_blur, fidelity
from maisi.evaluation.perceptual import Perceptual, perceptual_distance
from maisi.evaluation.reconstruction import as_decoded, reconstruct
from maisi.evaluation.segmentation import Interval, interval, of_patients
from maisi.evaluation.sets import NamedImage
from maisi.shapes import Frozen, Spacing3
from maisi.space.volume import LabelMap, Volume

ALL = "all"
FEWEST = 5
"""Of fewer patients an interval is hardly one, which is said."""


class TissueError(Frozen):
    """Mean absolute error and mean error (HU) over the voxels of a tissue, clipped to [-1000, 1000] HU."""

    mae_hu: float
    bias_hu: float


class TissueErrors(Frozen):
    """Of one tissue, what the autoencoder loses and what the blur does."""

    ml: float
    reconstruction: TissueError
    blur: TissueError


class Likeness(Frozen):
    """How alike two volumes are: PSNR (dB, data range 2000 HU), SSIM, mean absolute error (HU), and how they look.

    `lpips` with weights for it, `edges` without: distances, the less the better; None for the other one, and where
    planes are too small.
    """

    psnr_db: float
    ssim: float
    mae_hu: float
    lpips: float | None = None
    edges: float | None = None


class CaseFidelity(Frozen):
    """One volume encoded and decoded; tissues are told in the original, of a CT alone."""

    id: str
    group: str
    patient: str
    spacing_mm: Spacing3
    reconstruction: Likeness
    blur: Likeness
    tissues: dict[str, TissueErrors]


class FailedVolume(Frozen):
    """A volume that could not be read or reconstructed, and why."""

    id: str
    words: str


class GroupFidelity(Frozen):
    """Means over the patients of a group, by figure: those of `Likeness`, and `TISSUE mae_hu`, `TISSUE bias_hu`."""

    name: str
    num_cases: int
    reconstruction: dict[str, Interval]
    blur: dict[str, Interval]
    gain_db: Interval  # PSNR above that of the blur


class AutoencoderReport(Frozen):
    """An autoencoder on a set of volumes; the first group is all of them."""

    version: int = 2
    bundle: str
    perceptual: str = Field(description="What tells how volumes look: LPIPS with its files, or filters of our own.")
    groups: tuple[GroupFidelity, ...]
    cases: tuple[CaseFidelity, ...]
    failures: tuple[FailedVolume, ...] = ()
    notes: tuple[str, ...] = ()


def case_fidelity(image: NamedImage, volume: Volume, bundle: Bundle, perceptual: Perceptual) -> CaseFidelity:
    """What the autoencoder of a bundle keeps of a volume, beside the mean of each voxel's 3^3."""
    again, original = reconstruct(bundle, volume), as_decoded(volume)
    blurred = box_blur(original)
    tissues = tissue_errors(original, again, blurred, tissue_labels(original)) if volume.modality == "ct" else {}
    return CaseFidelity(
        id=image.name,
        group=image.group,
        patient=image.patient,
        spacing_mm=volume.grid.spacing,
        reconstruction=likeness(again, original, perceptual),
        blur=likeness(blurred, original, perceptual),
        tissues=tissues,
    )


def likeness(volume: Volume, original: Volume, perceptual: Perceptual) -> Likeness:
    """The figures of a volume beside the original."""
    looks = {perceptual.figure: perceptual_distance(original, volume, perceptual)}
    return Likeness(**fidelity(volume, original).model_dump(), **looks)


def tissue_errors(original: Volume, again: Volume, blurred: Volume, tissues: LabelMap) -> dict[str, TissueErrors]:
    """The errors over each tissue that a volume has, by its name."""
    vocabulary, found = load_vocabulary(), {}
    voxel_ml = float(np.prod(original.grid.spacing)) / 1000
    for id in vocabulary.check_ids(tissues.array):
        mask = tissues.array == id
        found[vocabulary.name(id)] = TissueErrors(
            ml=int(mask.sum()) * voxel_ml,
            reconstruction=_error(original, again, mask),
            blur=_error(original, blurred, mask),
        )
    return found


def _error(original: Volume, other: Volume, mask: np.ndarray) -> TissueError:
    a, b = (np.clip(volume.array[mask], -1000.0, 1000.0).astype(np.float64) for volume in (original, other))
    return TissueError(mae_hu=float(np.abs(b - a).mean()), bias_hu=float((b - a).mean()))


def autoencoder_report(
    bundle: str,
    perceptual: Perceptual,
    cases: Sequence[CaseFidelity],
    failures: Sequence[FailedVolume] = (),
    seed: int = 0,
) -> AutoencoderReport:
    """Means and intervals over patients, of all cases and of each group where there are several."""
    rng, names = np.random.default_rng(seed), list(dict.fromkeys(case.group for case in cases))
    parts = [(ALL, list(cases))]
    if len(names) > 1:
        parts += [(name, [case for case in cases if case.group == name]) for name in names]
    few = [name for name, part in parts if len({case.patient for case in part}) < FEWEST]
    note = f"fewer than {FEWEST} patients, whose intervals say little: {', '.join(few)}"
    return AutoencoderReport(
        bundle=bundle,
        perceptual=perceptual.name,
        groups=tuple(_group(name, part, rng) for name, part in parts),
        cases=tuple(cases),
        failures=tuple(failures),
        notes=(note,) if few else (),
    )


def _group(name: str, cases: Sequence[CaseFidelity], rng: np.random.Generator) -> GroupFidelity:
    patients = [case.patient for case in cases]
    kept, blurred = ([_figures(case, which) for case in cases] for which in ("reconstruction", "blur"))
    gains = [a["psnr_db"] - b["psnr_db"] for a, b in zip(kept, blurred, strict=True)]
    return GroupFidelity(
        name=name,
        num_cases=len(cases),
        reconstruction=_means(kept, patients, rng),
        blur=_means(blurred, patients, rng),
        gain_db=interval(of_patients(patients, gains), rng),
    )


def _figures(case: CaseFidelity, which: str) -> dict[str, float]:
    found: dict[str, float] = getattr(case, which).model_dump(exclude_none=True)
    for name, errors in case.tissues.items():
        error: TissueError = getattr(errors, which)
        found |= {f"{name} mae_hu": error.mae_hu, f"{name} bias_hu": error.bias_hu}
    return found


def _means(
    figures: Sequence[dict[str, float]], patients: Sequence[str], rng: np.random.Generator
) -> dict[str, Interval]:
    means = {}
    for name in dict.fromkeys(name for each in figures for name in each):
        there = [(p, each[name]) for p, each in zip(patients, figures, strict=True) if name in each]
        means[name] = interval(of_patients([p for p, _ in there], [value for _, value in there]), rng)
    return means
