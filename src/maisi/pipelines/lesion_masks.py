"""Where the lesion of a request lies: from a mask, a place, the seed, or the labels; and whether it can lie there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from maisi.anatomy.body import complete_labels
from maisi.anatomy.lesions import healthy_ids, lesion_ids
from maisi.anatomy.tumours import lesion_shape, plant, tumour_named
from maisi.anatomy.vocabulary import Vocabulary
from maisi.errors import InvalidLabelsError, InvalidRequestError, InvalidVolumeError
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.windows import CONTEXT_MM, grown_box
from maisi.space.label_files import read_labels
from maisi.space.resample import crop
from maisi.space.volume import LabelMap, Volume, check_same_grid

LEAST_IN_BODY = 0.5
"""At least this share of a lesion lies in the body, and in its host where the labels know one."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A CT, and labels (uint8) on its grid: given ones that may name few structures, or its coarse tissues."""

    volume: Volume
    labels: LabelMap
    is_given: bool

    def near(self, box: Sequence[slice], vocabulary: Vocabulary) -> LabelMap:
        """The labels of a box of voxels, those of its body that have none filled by coarse tissues."""
        start, stop = [part.start for part in box], [part.stop for part in box]
        labels = crop(self.labels, start, stop)
        if not self.is_given:
            return labels
        try:
            return complete_labels(labels, crop(self.volume, start, stop), vocabulary=vocabulary)
        except InvalidVolumeError:  # no body in this box
            return labels

    def showing_host(self, tumour: int, vocabulary: Vocabulary) -> "Scene":
        """The scene, filled by coarse tissues where its labels do not name what a tumour grows in."""
        if not self.is_given or _knows_host(self, tumour, vocabulary):
            return self
        try:
            return replace(self, labels=complete_labels(self.labels, self.volume, vocabulary=vocabulary))
        except InvalidVolumeError:  # no body in this CT
            return self


@dataclass(frozen=True, eq=False)
class Lesion:
    """Which voxels (bool, `[x y z]`) are to change, the tumour they are to show (None: none any more)."""

    mask: np.ndarray
    tumour: int | None


def tumour_id(name: str | None, vocabulary: Vocabulary) -> int | None:
    """The id of a tumour or another lesion by any of its names; raises `InvalidRequestError` for what is none."""
    return None if name is None else vocabulary.id(tumour_named(name, vocabulary).name)


def find_lesion(request: InpaintRequest, scene: Scene, rng: np.random.Generator, vocabulary: Vocabulary) -> Lesion:
    """The voxels to change. Raises `InvalidRequestError` where there are none, or where no such lesion can lie."""
    tumour = tumour_id(request.tumor, vocabulary)
    if request.remove:
        return Lesion(_to_remove(request, scene, tumour, vocabulary), None)
    assert tumour is not None
    scene = scene.showing_host(tumour, vocabulary)
    if request.mask is not None:
        mask = read_mask(request.mask, scene.volume)
        _check_host(mask, scene, tumour, vocabulary, request)
    elif request.at is not None:
        mask = _placed(request, scene, tumour, rng, vocabulary)
    else:
        mask = _drawn(request, scene, tumour, rng, vocabulary)
    return Lesion(mask, tumour)


def read_mask(path: Path, volume: Volume) -> np.ndarray:
    """Where a mask file is not 0; raises `InvalidLabelsError` where it is not on the volume's grid, or empty."""
    labels = read_labels(path)
    try:
        check_same_grid(labels, volume)
    except InvalidLabelsError as error:
        words = str(error).replace("label map", "mask").replace("labels", "mask")
        raise InvalidLabelsError(f"{path}: {words}") from error
    mask: np.ndarray = labels.array > 0
    if not mask.any():
        raise InvalidLabelsError(f"{path} is empty: no voxel of the mask is other than 0")
    return mask


def _to_remove(request: InpaintRequest, scene: Scene, tumour: int | None, vocabulary: Vocabulary) -> np.ndarray:
    if request.mask is not None:
        return read_mask(request.mask, scene.volume)
    if not scene.is_given:
        raise InvalidLabelsError(f"there are no labels that name the lesion to remove; accepted: {_marked(request)}")
    wanted = lesion_ids(vocabulary) if tumour is None else (tumour,)
    mask = np.isin(scene.labels.array, wanted)
    if not mask.any():
        what = "any lesion" if tumour is None else repr(vocabulary.name(tumour))
        raise InvalidLabelsError(
            f"the labels do not hold {what}, so there is nothing to remove; accepted: {_marked(request)}"
        )
    return mask


def _marked(request: InpaintRequest) -> str:
    """What would say where the lesion to remove is."""
    return "--mask FILE, or labels that name it" if request.manifest is None else "a case with labels that name it"


def _placed(
    request: InpaintRequest, scene: Scene, tumour: int, rng: np.random.Generator, vocabulary: Vocabulary
) -> np.ndarray:
    """A lesion of the request's diameter around its place, within the host where the labels know one."""
    assert request.at is not None
    assert request.diameter is not None
    grid = scene.volume.grid
    index = grid.index(np.array(request.at))
    if ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any():
        low, high = grid.corners()[0], grid.corners()[-1]
        ranges = ", ".join(f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("xyz", low, high, strict=True))
        at = ", ".join(f"{x:g}" for x in request.at)
        raise InvalidRequestError(f"--at {at} mm lies outside the volume; accepted: {ranges} mm (RAS)")
    if _knows_host(scene, tumour, vocabulary):
        return _planted(scene, tumour, rng, vocabulary, diameter_mm=request.diameter, at_mm=request.at)
    mask = lesion_shape(grid, request.at, request.diameter, rng)
    return _in_body(mask, scene, vocabulary) if mask.any() else mask


def _in_body(mask: np.ndarray, scene: Scene, vocabulary: Vocabulary) -> np.ndarray:
    """The part of a mask in the body; all of it where none is, for that to be refused."""
    grid = scene.volume.grid
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    everything = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    box = grown_box(found, grid, CONTEXT_MM, everything)
    clipped = np.zeros_like(mask)
    clipped[box] = mask[box] & (scene.near(box, vocabulary).array > 0)
    return clipped if clipped.any() else mask


def _drawn(
    request: InpaintRequest, scene: Scene, tumour: int, rng: np.random.Generator, vocabulary: Vocabulary
) -> np.ndarray:
    assert request.random is not None
    if request.within is not None:
        scene = _hidden_but(request.within, scene, tumour, vocabulary)
    if not _knows_host(scene, tumour, vocabulary):
        host = vocabulary.structure(tumour).host or "body"
        other = f"--labels FILE with the {host}, --at X Y Z, or --mask FILE"
        accepted = other if request.manifest is None else f"a case with labels of the {host}"
        raise InvalidLabelsError(
            f"--random draws places in the {host}, which the labels do not name; accepted: {accepted}"
        )
    return _planted(scene, tumour, rng, vocabulary, diameter_mm=request.diameter, number=request.random)


def _hidden_but(within: str, scene: Scene, tumour: int, vocabulary: Vocabulary) -> Scene:
    """The scene with no host of the tumour besides those within a structure or group; the others are plain body."""
    hosts, wanted = healthy_ids(vocabulary, tumour), vocabulary.members(within)
    if not set(wanted) & set(hosts):
        host = vocabulary.structure(tumour).host or "body"
        raise InvalidRequestError(
            f"a {vocabulary.name(tumour)} grows in the {host}, not in the {within}; accepted for --within: "
            f"{', '.join(vocabulary.name(id) for id in hosts[:8])}"
        )
    others = [id for id in hosts if id not in wanted]
    ids = np.where(np.isin(scene.labels.array, others), np.uint8(vocabulary.id("body")), scene.labels.array)
    return replace(scene, labels=LabelMap(ids, scene.labels.grid))


def _planted(scene: Scene, tumour: int, rng: np.random.Generator, vocabulary: Vocabulary, **how: object) -> np.ndarray:
    planted = plant(scene.labels, tumour, rng, vocabulary=vocabulary, **how)  # type: ignore[arg-type]
    mask: np.ndarray = (planted.array == tumour) & (scene.labels.array != tumour)
    if not mask.any():
        raise InvalidRequestError(
            f"that {vocabulary.name(tumour)} is smaller than a voxel of the CT; ask for a larger one"
        )
    return mask


# Whether it can lie there ---------------------------------------------------------------------------------------------


def _knows_host(scene: Scene, tumour: int, vocabulary: Vocabulary) -> bool:
    return bool(np.isin(scene.labels.array, healthy_ids(vocabulary, tumour)).any())


def check_in_body(mask: np.ndarray, labels: LabelMap) -> None:
    """Nothing, or the refusal of a lesion of which too little lies in the body that the labels of its box show."""
    share = float((labels.array[mask] > 0).mean())
    if share < LEAST_IN_BODY:
        raise InvalidRequestError(
            f"the lesion lies outside the body: {share:.0%} of it is inside; accepted: most of it"
        )


def _check_host(mask: np.ndarray, scene: Scene, tumour: int, vocabulary: Vocabulary, request: InpaintRequest) -> None:
    """Nothing, or the refusal of a lesion outside of its host or larger than it, where the labels know the host."""
    name, host = vocabulary.name(tumour), vocabulary.structure(tumour).host or "body"
    own = np.isin(scene.labels.array, (*healthy_ids(vocabulary, tumour), tumour))
    if not own.any() or request.force:
        return
    if mask.sum() > own.sum():
        voxel_ml = float(np.prod(scene.volume.grid.spacing)) / 1000
        raise InvalidRequestError(
            f"a {name} of {mask.sum() * voxel_ml:.1f} ml is larger than its {host}, {own.sum() * voxel_ml:.1f} ml; "
            "accepted: a smaller one; --force goes on"
        )
    share = float(own[mask].mean())
    if share < LEAST_IN_BODY:
        raise InvalidRequestError(
            f"a {name} lies in the {host}, and only {share:.0%} of this one does; accepted: another place; "
            "--force goes on"
        )
