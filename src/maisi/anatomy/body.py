"""The body in a CT, and coarse tissue labels from its Hounsfield units, so that any CT has a label map."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.morphology import IN_PLANE
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidVolumeError
from maisi.space.volume import LabelMap, Volume, check_same_grid


def body_envelope(volume: Volume) -> np.ndarray:
    """Where the patient is: boolean `[x y z]`, lungs and other air inside it included, table and blankets not.

    Works with plain air or a masked outside around the body, on crops that the body fills to the border, and on
    several parts (arms, two legs). Raises InvalidVolumeError when there is no body.
    """
    rules, spacing, hu = load_vocabulary().body, volume.grid.spacing, volume.array
    _check_ct(volume)
    dense = _without_table(hu > rules.air_hu, hu, volume)
    closed = morphology.close_mask(dense, rules.gap_mm / 2, spacing, IN_PLANE)
    filled = morphology.fill_slices(closed)
    opened = _opened_lungs(filled, volume)
    if opened.any():  # with their vessels
        filled = morphology.fill_slices(morphology.close_mask(filled | opened, rules.gap_mm, spacing, IN_PLANE))
    return filled


def tissue_labels(volume: Volume, fat: bool = True) -> LabelMap:
    """A coarse label for each voxel of a CT: lungs, air, skeleton, fat and body (soft tissue), 0 outside.

    Without `fat` everything that is not lung, air or bone is body, as in the label maps of MAISI.
    """
    vocabulary, spacing = load_vocabulary(), volume.grid.spacing
    body = body_envelope(volume)
    ids = np.where(body, np.uint8(vocabulary.id("body")), np.uint8(0))
    dark, lungs = _air_and_lungs(volume, body, vocabulary)
    bone = _bone(volume, body, vocabulary) & ~lungs
    if fat:
        ids[_fat(volume, body & ~dark & ~lungs & ~bone, vocabulary)] = vocabulary.id("fat")
    ids[morphology.without_specks(dark & ~lungs, vocabulary.body.speck_ml, spacing)] = vocabulary.id("air")
    ids[lungs] = vocabulary.id("lungs")
    ids[bone] = vocabulary.id("skeleton")
    return LabelMap(ids, volume.grid)


def complete_labels(
    labels: LabelMap, volume: Volume, fat: bool = True, vocabulary: Vocabulary | None = None
) -> LabelMap:
    """The labels with every voxel of the body that has none, or only `body`, filled by its coarse tissue.

    `vocabulary` is that of a bundle with classes of its own; without, the one that ships with the package.
    """
    check_same_grid(labels, volume)
    vocabulary = vocabulary or load_vocabulary()
    vocabulary.check_ids(labels.array)
    coarse = tissue_labels(volume, fat).array
    given = labels.array.astype(np.uint8)
    unknown = (given == 0) | ((given == vocabulary.id("body")) & (coarse != 0))
    return LabelMap(np.where(unknown, coarse, given), labels.grid)


def redrawn_tissues(labels: LabelMap, volume: Volume) -> LabelMap:
    """The labels with bone and air drawn as this volume shows them, where only coarse tissues were named.

    Labels made at another resolution tell of cortex and cells that a coarser volume averages away: whoever learns from
    them learns that the skeleton may be dark. Structures with names of their own stay as they are.
    """
    check_same_grid(labels, volume)
    vocabulary, ids = load_vocabulary(), labels.array.astype(np.uint8)
    body, air, skeleton = (vocabulary.id(name) for name in ("body", "air", "skeleton"))
    inside = ids > 0
    coarse = np.isin(ids, [body, air, skeleton, vocabulary.id("fat")])
    deep = morphology.erode(inside, 1.01 * max(volume.grid.spacing), volume.grid.spacing)
    dark = deep & (volume.array < vocabulary.tissues["lungs"][1])
    ids[ids == air] = body
    ids[coarse & morphology.without_specks(dark, vocabulary.body.speck_ml, volume.grid.spacing)] = air
    ids[ids == skeleton] = body
    ids[coarse & _bone(volume, inside, vocabulary) & ~dark] = skeleton
    return LabelMap(ids, labels.grid)


def enclosed(labels: LabelMap) -> LabelMap:
    """The labels with `body` drawn around and between the structures of each axial plane, where they have none.

    A guess for label maps that name organs only: planes without any structure stay empty.
    """
    vocabulary, spacing = load_vocabulary(), labels.grid.spacing
    rules, found = vocabulary.body, labels.array > 0
    outline = morphology.fill_slices(morphology.close_mask(found, rules.enclosed_gap_mm, spacing, IN_PLANE))
    outline = _rounded(
        morphology.dilate(outline, rules.enclosed_rim_mm, spacing, IN_PLANE), rules.enclosed_round_mm, spacing
    )
    ids = np.where(outline & ~found, np.uint8(vocabulary.id("body")), labels.array.astype(np.uint8))
    return LabelMap(ids, labels.grid)


def _rounded(outline: np.ndarray, sigma_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """Without steps from plane to plane; planes that are empty stay so and do not count."""
    sigma = [sigma_mm / s for s in spacing]
    named = np.broadcast_to(outline.any(axis=(0, 1)), outline.shape)
    share, weight = (
        ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") for mask in (outline, named)
    )
    return named & (share > 0.5 * weight)


def _check_ct(volume: Volume) -> None:
    if volume.modality != "ct":
        raise InvalidVolumeError(f"the body is found by Hounsfield units, so a CT is needed; got {volume.modality}")
    if not np.isfinite(volume.array).all():
        raise InvalidVolumeError("the volume holds values that are not finite; accepted: Hounsfield units")


def _without_table(dense: np.ndarray, hu: np.ndarray, volume: Volume) -> np.ndarray:
    """The large thick parts of what is denser than air; a table that touches the skin stays out."""
    rules, spacing = load_vocabulary().body, volume.grid.spacing
    radius = max(rules.table_mm / 2, 1.01 * max(spacing[:2]))
    numbered, sizes = morphology.parts(morphology.erode(dense, radius, spacing, IN_PLANE))
    if len(sizes) == 1:
        raise InvalidVolumeError(
            f"no body found: nothing thicker than {rules.table_mm} mm is denser than {rules.air_hu} HU "
            f"(values run from {hu.min():.0f} to {hu.max():.0f} HU)"
        )
    means = ndimage.mean(hu, numbered, np.arange(len(sizes)))
    solid = means > rules.piece_hu
    keep = solid & (sizes * np.prod(spacing) >= 1000 * rules.piece_ml)
    keep[1 + int(np.argmax(np.where(solid, sizes, 0.01 * sizes)[1:]))] = True
    keep[0] = False
    thick = keep[numbered]
    near = morphology.dilate(thick, 1.35 * radius, spacing, IN_PLANE)
    # A table lies behind the patient; in front, thin parts (nose, ears, fingers) are the patient's own.
    near |= morphology.dilate(thick, 3 * radius, spacing, IN_PLANE) & _front(thick)
    return near & dense


def _front(mask: np.ndarray) -> np.ndarray:
    """Voxels in front of the mask's centre in each axial plane, `[1 y z]`."""
    y = np.arange(mask.shape[1])
    profile = mask.sum(axis=0)
    centre = (profile * y[:, None]).sum(axis=0) / np.maximum(profile.sum(axis=0), 1)
    return (y[:, None] > centre[None])[None]


def _lungs_among(dark: np.ndarray, volume: Volume) -> np.ndarray:
    """What of the dark is lung: deep, and mottled where air and gas are even."""
    rules, spacing = load_vocabulary().body, volume.grid.spacing
    deep, sizes = morphology.parts(morphology.erode(dark, rules.lung_depth_mm, spacing))
    lungs = np.zeros_like(dark)
    boxes = ndimage.find_objects(deep)
    for k in np.flatnonzero(sizes[1:] * np.prod(spacing) > 1000 * rules.lung_ml).tolist():
        core = deep[boxes[k]] == k + 1
        low, median, high = np.percentile(volume.array[boxes[k]][core], (15, 50, 85))
        if high - low > rules.lung_spread_hu and rules.lung_hu[0] < median < rules.lung_hu[1]:
            lungs[boxes[k]] |= core
    return morphology.dilate(lungs, 5 * rules.lung_depth_mm, spacing) & dark if lungs.any() else lungs


def _opened_lungs(filled: np.ndarray, volume: Volume) -> np.ndarray:
    """Lung that the border of the field of view cuts open: textured throughout, as air and foam are not."""
    rules, spacing = load_vocabulary().body, volume.grid.spacing
    dark = ~filled & (volume.array < load_vocabulary().tissues["lungs"][1])
    numbered, sizes = morphology.parts(dark)
    deep = morphology.erode(dark, rules.lung_depth_mm, spacing) & dark
    candidates = np.zeros(len(sizes), bool)
    if deep.any():
        local_sd = _local_sd(np.clip(volume.array, -1100, 1500), spacing)
        boxes = ndimage.find_objects(numbered)
        for k in np.flatnonzero(sizes[1:] * np.prod(spacing) > 1000 * rules.lung_ml).tolist():
            values = local_sd[boxes[k]][deep[boxes[k]] & (numbered[boxes[k]] == k + 1)]
            enough = len(values) * np.prod(spacing) > 1000 * rules.cut_lung_ml
            candidates[k + 1] = enough and np.percentile(values, 10) > rules.lung_texture_hu
    return _lungs_among(candidates[numbered], volume)


def _air_and_lungs(volume: Volume, body: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """All dark voxels of the body, and those that are lung, small vessels included, without the large airways."""
    spacing, hu = volume.grid.spacing, volume.array
    dark = body & (hu < vocabulary.tissues["lungs"][1])
    lungs = _lungs_among(dark, volume)
    if lungs.any():
        lungs &= ~_airway(lungs, volume)
        lungs = morphology.close_mask(lungs, 4.0, spacing) & body & (hu < vocabulary.tissues["bone"][0])
    return dark, lungs


def _airway(lungs: np.ndarray, volume: Volume) -> np.ndarray:
    """The trachea with its branches: the longest upright piece of plain air in the lungs, if it is small enough."""
    rules, spacing, hu = load_vocabulary().body, volume.grid.spacing, volume.array
    lumen_hu = min(rules.airway_hu, float(np.median(hu[lungs])) - 40)  # lungs full of air hide their airways
    plain = lungs & (ndimage.gaussian_filter(hu, [0.8 / s for s in spacing]) < lumen_hu)
    cores, _ = morphology.parts(morphology.erode(plain, 2.0, spacing))
    boxes = ndimage.find_objects(cores)
    if not boxes:
        return np.zeros_like(lungs)
    slender = [(z.stop - z.start) * spacing[2] / max((x.stop - x.start), (y.stop - y.start)) for x, y, z in boxes]
    tall = [z.stop - z.start for *_, z in boxes]
    best = 1 + int(np.argmax(np.multiply(slender, tall)))
    airway = morphology.dilate(cores == best, 5.0, spacing) & lungs & (hu < lumen_hu + 60)
    return airway if airway.sum() * np.prod(spacing) < 1000 * rules.airway_ml else np.zeros_like(lungs)


def _bone(volume: Volume, body: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Bone with its marrow, without what contrast medium makes as bright."""
    rules, spacing, hu = vocabulary.body, volume.grid.spacing, volume.array
    bright = body & (hu >= vocabulary.tissues["bone"][0])
    contrast = _contrast(bright, volume)
    bone = morphology.without_specks(bright & ~contrast, rules.speck_ml, spacing)
    cancellous = body & ~contrast & (ndimage.gaussian_filter(hu, [1.5 / s for s in spacing]) > rules.cancellous_hu)
    near = morphology.close_mask(bone, 5.0, spacing, IN_PLANE)
    if not contrast.any():  # nothing but bone is as bright then
        near |= morphology.dilate(bone, 7.0, spacing, IN_PLANE)
    bone = bone | (near & cancellous)
    for k in range(bone.shape[2]):
        bone[:, :, k] |= _marrow(bone[:, :, k], hu[:, :, k], float(np.prod(spacing[:2])) / 100, vocabulary)
    return bone


def _marrow(bone: np.ndarray, hu: np.ndarray, pixel_cm2: float, vocabulary: Vocabulary) -> np.ndarray:
    rules = vocabulary.body
    numbered, sizes = morphology.parts(ndimage.binary_fill_holes(bone) & ~bone)
    if len(sizes) == 1:
        return np.zeros_like(bone)
    means = ndimage.mean(hu, numbered, np.arange(len(sizes)))
    area = sizes * pixel_cm2
    low, high = rules.marrow_hu
    fill = (area < rules.marrow_cm2) & ((means < low) | (means > high) | (area < 0.3)) & (means > rules.air_hu)
    fill[0] = False
    return fill[numbered]


def _contrast(bright: np.ndarray, volume: Volume) -> np.ndarray:
    """Bright voxels of vessels and organs full of contrast medium: even, where bone is mottled and has a shell."""
    rules, spacing = load_vocabulary().body, volume.grid.spacing
    hu = np.clip(volume.array, -200, 1500)
    contrast, levels = np.zeros_like(bright), [0.0]
    local_sd = _local_sd(hu, spacing)
    for sd_hu, neighbours_only in ((rules.contrast_sd_hu, False), (rules.mixing_sd_hu, True)):
        numbered, sizes = morphology.parts(bright & ~contrast & (local_sd < sd_hu))
        boxes = ndimage.find_objects(numbered)
        for k in np.flatnonzero(sizes[1:] * np.prod(spacing) > 1000 * rules.contrast_ml).tolist():
            box = _grown(boxes[k], 8.0, volume)
            core = numbered[box] == k + 1
            around = morphology.dilate(core, 7.0, spacing) & bright[box]
            level, shell = float(np.median(hu[box][core])), hu[box][around & ~core & ~contrast[box]]
            is_bone = level > rules.contrast_hu or (len(shell) > 0 and np.median(shell) > level)
            if is_bone or (neighbours_only and not (around & contrast[box]).any()):
                continue
            contrast[box] |= around & (hu[box] < rules.contrast_ratio * level)
            levels += [level]
    if not contrast.any():
        return contrast
    return contrast | _no_brighter(bright & ~contrast, 1.1 * max(levels), hu)


def _local_sd(hu: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    sigma = [2.5 / s for s in spacing]
    mean = ndimage.gaussian_filter(hu, sigma, truncate=2)
    return np.sqrt(np.maximum(ndimage.gaussian_filter(hu**2, sigma, truncate=2) - mean**2, 0))


def _no_brighter(bright: np.ndarray, limit_hu: float, hu: np.ndarray) -> np.ndarray:
    """The connected parts of which next to nothing is brighter than the limit."""
    numbered, sizes = morphology.parts(bright)
    above = np.bincount(numbered[bright & (hu > limit_hu)], minlength=len(sizes))
    dim = above < 0.03 * sizes
    dim[0] = False
    return dim[numbered]


def _grown(box: tuple[slice, ...], margin_mm: float, volume: Volume) -> tuple[slice, ...]:
    grown = []
    for part, spacing, size in zip(box, volume.grid.spacing, volume.grid.shape, strict=True):
        margin = int(np.ceil(margin_mm / spacing)) + 1
        grown.append(slice(max(0, part.start - margin), min(size, part.stop + margin)))
    return tuple(grown)


def _fat(volume: Volume, rest: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Fat by the local mean over soft voxels alone, which keeps the half-air rim of skin and lungs out."""
    low, high = vocabulary.tissues["fat"]
    soft = rest & (volume.array > low + 100)
    sigma = [max(1.3 / s, 0.6) for s in volume.grid.spacing]
    weight = ndimage.gaussian_filter(soft.astype(np.float32), sigma)
    mean = ndimage.gaussian_filter(np.where(soft, volume.array, 0), sigma) / np.maximum(weight, 1e-3)
    fat = rest & (weight > 0.05) & (mean < high)
    return morphology.without_specks(fat, vocabulary.body.speck_ml, volume.grid.spacing)
