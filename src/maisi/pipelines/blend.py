"""What a network has drawn, put into a CT so that no seam shows and nothing away from the lesion changes.

All arrays are HU, float32 `[x y z]`, of one crop of the CT; masks are boolean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen

EDGE_VOXELS = 0.7
"""Width (standard deviation) of the edge between lesion and CT: about what a scanner blurs a sharp edge by."""

LEAST_WEIGHT = 0.02
"""Less than this of a drawn value is none: what is further away keeps its bits."""

RING_MM = (2.0, 12.0)
"""How far from a lesion its surroundings are measured, where they are beyond its blurred edge."""

GRAIN_SDS = 2.5
"""What is finer than the network draws is kept as far as it is the scanner's noise, up to so many deviations."""

NOISE_VOXELS = 0.6
"""How far noise of CTs is alike (standard deviation): about what a reconstruction smooths it by."""

ENOUGH = 500
"""Voxels of soft tissue by which noise is measured."""

USUAL_NOISE_HU = 15.0
"""No more than this is noise where too little soft tissue shows it (standard deviation)."""

TEXTURE = 0.7
"""How uneven a tumour is by itself (smoothed by 3 mm), as a share of what tumours differ by; sarcomas: 10 of 15 HU."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the network gives for a crop: with the lesion drawn anew, and as it was (encoded and decoded)."""

    lesion: np.ndarray
    as_it_was: np.ndarray
    resolution_mm: float  # the network's voxel


class Contrast(Frozen):
    """The HU of a lesion (medians), those around it, and who decided on them."""

    made_by: Literal["network", "reference"]
    host_hu: float
    expected_hu: float
    tolerance_hu: float
    network_hu: float
    network_sd: float


def soft_edge(mask: np.ndarray) -> np.ndarray:
    """The weight of the lesion in each voxel, 0 to 1: a mask with the edge that a scanner would give it."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), EDGE_VOXELS, truncate=3.0, mode="nearest")
    return np.clip((weight - LEAST_WEIGHT) / (1 - 2 * LEAST_WEIGHT), 0.0, 1.0)


def core_of(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The lesion without its blurred edge, where anything is left without it."""
    core: np.ndarray = weight > 0.9
    return core if core.any() else mask


def at_level(ct: np.ndarray, drawn: Drawn, weight: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """What was drawn, at the level of the CT around it.

    The network's bias is what CT and drawing differ by on average around the lesion, carried on into it.
    """
    sigma = [1.5 * drawn.resolution_mm / s for s in spacing]
    around = (weight == 0).astype(np.float32)
    known = ndimage.gaussian_filter((ct - drawn.lesion) * around, sigma) / np.maximum(
        ndimage.gaussian_filter(around, sigma), 1e-3
    )
    nearest = ndimage.distance_transform_edt(weight > 0, sampling=spacing, return_distances=False, return_indices=True)
    return np.asarray(drawn.lesion + ndimage.gaussian_filter(known[tuple(nearest)], sigma), np.float32)


def grain(
    ct: np.ndarray,
    drawn: Drawn,
    spacing: Sequence[float],
    soft_hu: tuple[float, float],
    generator: torch.Generator,
) -> np.ndarray:
    """The CT's noise: what encoding loses of it that is finer than the network's voxels, where it is soft tissue.

    Elsewhere most that is fine is anatomy, such as vessels of the lung, which would stay in a lesion as mottle: there
    noise of the same strength is drawn.
    """
    sigma = [drawn.resolution_mm / s for s in spacing]
    lost, fine = _fine(ct - drawn.as_it_was, sigma), _fine(ct, sigma)
    even = (ct - fine > soft_hu[0]) & (ct - fine < soft_hu[1])
    if even.sum() >= ENOUGH:
        sd = min(deviation(lost[even]), deviation(fine[even]))
    else:
        sd = min(deviation(lost), deviation(fine), USUAL_NOISE_HU)
    other = ndimage.gaussian_filter(torch.randn(ct.shape, generator=generator).numpy(), NOISE_VOXELS)
    noise = np.where(even, lost, other * (sd / max(float(other.std()), 1e-6)))
    return np.asarray(np.clip(noise, -GRAIN_SDS * sd, GRAIN_SDS * sd), np.float32)


def _fine(values: np.ndarray, sigma: Sequence[float]) -> np.ndarray:
    return np.asarray(values - ndimage.gaussian_filter(values, sigma))


# Contrast -------------------------------------------------------------------------------------------------------------


def surroundings(mask: np.ndarray, hosts: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The voxels of the hosts in a ring around a lesion; of all the crop, or of anything, where there are too few."""
    near, far = (morphology.dilate(mask, max(r, 1.01 * max(spacing)), spacing) for r in RING_MM)
    choices = (far & ~near & hosts, hosts & ~near, far & ~near, ~near)
    return next((each for each in choices if each.sum() >= 20), ~mask)


def expected_hu(
    ct: np.ndarray, ids: np.ndarray, ring: np.ndarray, tumour: int, vocabulary: Vocabulary
) -> tuple[float, float]:
    """The median HU that a tumour is to have here, and how far tumours differ from it (standard deviation).

    Beside a brighter host it is darker by the vocabulary's ratio of the two, so that it follows the phase of the
    contrast medium and comes near its host where there is none. In lung, fat and gut it has the vocabulary's HU.
    """
    level, spread = vocabulary.structure(tumour).hu or vocabulary.structure("body").hu or (0.0, 0.0)
    present, counts = np.unique(ids[ring], return_counts=True)
    usual_hu = [vocabulary.structure(int(id)).hu if id else None for id in present]
    known = [(hu[0], count) for hu, count in zip(usual_hu, counts, strict=True) if hu is not None]
    usual = sum(hu * n for hu, n in known) / sum(n for _, n in known) if known else level
    found = float(np.median(ct[ring]))
    return (found * level / usual if 0 < level < usual and found > 0 else level), spread


def with_contrast(
    values: np.ndarray,
    noise: np.ndarray,
    core: np.ndarray,
    expected: float,
    tolerance: float,
    host: float,
    by: Literal["network", "reference"],
) -> tuple[np.ndarray, Contrast]:
    """The values of a lesion with noise, and whose they are: the network's, or these made what is expected of its core.

    A median that is further off than the tolerance is moved, and a texture that is more uneven than `TEXTURE` times the
    tolerance is damped.
    """
    found, uneven = float(np.median(values[core])), deviation(values[core])
    is_off = abs(found - expected) > tolerance or uneven > TEXTURE * tolerance
    made_by: Literal["network", "reference"] = "reference" if by == "reference" and is_off else "network"
    if made_by == "reference":
        level = found if abs(found - expected) <= tolerance else expected
        texture = (values - found) * min(1.0, TEXTURE * tolerance / max(uneven, 1e-6))
        values = np.clip(texture, -2 * TEXTURE * tolerance, 2 * TEXTURE * tolerance) + noise
        values += level - np.median(values[core])
    else:
        values = values + noise
    told = {
        "host_hu": host,
        "expected_hu": expected,
        "tolerance_hu": tolerance,
        "network_hu": found,
        "network_sd": uneven,
    }
    return values.astype(np.float32), Contrast(
        made_by=made_by, **{name: round(value, 1) for name, value in told.items()}
    )


def deviation(values: np.ndarray) -> float:
    """The standard deviation of most of the values, by their median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


# The seam -------------------------------------------------------------------------------------------------------------


class Seam(Frozen):
    """Mean steps of HU between neighbours: across the border of what was changed, before and after, and beside it."""

    border_before: float
    border: float
    inside: float
    outside: float


def measure_seam(before: np.ndarray, after: np.ndarray, changed: np.ndarray) -> Seam:
    """The steps at the border of what may have changed, and of the pairs of neighbours one further in and out."""
    grown, shrunk = ndimage.binary_dilation(changed), ndimage.binary_erosion(changed)
    sums: dict[str, list[np.ndarray]] = {name: [] for name in Seam.model_fields}
    for axis in range(3):
        one, other = (np.moveaxis(changed, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        crossing = one ^ other
        steps = {name: np.abs(np.diff(np.moveaxis(x, axis, 0), axis=0)) for name, x in (("b", before), ("a", after))}
        rim_in, rim_out = changed & ~shrunk, grown & ~changed
        sums["border_before"].append(steps["b"][crossing])
        sums["border"].append(steps["a"][crossing])
        sums["inside"].append(steps["a"][one & other & _either(rim_in, axis)])
        sums["outside"].append(steps["a"][~one & ~other & _either(rim_out, axis)])
    means = {name: np.concatenate(found) for name, found in sums.items()}
    return Seam(**{name: round(float(found.mean()), 2) if found.size else 0.0 for name, found in means.items()})


def _either(mask: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(mask, axis, 0)
    return np.asarray(moved[:-1] | moved[1:])
