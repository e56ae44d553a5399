"""A plausible CT of a label map: Hounsfield units by structure, texture, partial volume and noise."""

import numpy as np
from scipy import ndimage

from maisi.anatomy.vocabulary import Structure, Vocabulary, load_vocabulary
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

AIR_HU = -1000.0
PATIENT_SHARE = (
    0.8  # of the spread of a structure's HU, this part is common to its group (contrast phase, bone density)
)
BLUR_MM = 0.9  # in-plane resolution of a body kernel, as a standard deviation
SKIN_HU = -20.0
MARROW_HU, CANCELLOUS_HU, CORTEX_HU = -40.0, 220.0, 1300.0  # of long bones


def render_phantom(labels: LabelMap, generator: np.random.Generator) -> Volume:
    """A CT (HU) that shows these labels; lengths are in mm, so the same anatomy looks alike on any grid.

    Works for any label map, not only a drawn one: body without fat labels gets a subcutaneous shell. Raises
    InvalidLabelsError on unknown ids.
    """
    vocabulary = load_vocabulary()
    vocabulary.check_ids(labels.array)
    ids, grid = labels.array, labels.grid
    hu = _hounsfield(vocabulary, generator)[ids]
    hu += _waves(grid, 28.0, generator) * 5 + _waves(grid, 11.0, generator) * 4
    _draw_fat(hu, ids, grid, vocabulary, generator)
    _draw_bones(hu, ids, grid, vocabulary, generator)
    _draw_lungs(hu, ids, grid, vocabulary, generator)
    _draw_gas(hu, ids, grid, vocabulary, generator)
    _draw_brain(hu, ids, grid, vocabulary, generator)
    hu[ids == 0] = AIR_HU
    hu = _blurred(hu, grid, BLUR_MM * generator.uniform(0.7, 1.3), least_voxels=0.35)
    hu += generator.uniform(5, 14) * generator.standard_normal(hu.shape, np.float32)
    return Volume(np.clip(hu, -1024, 3071), grid)


def _hounsfield(vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    """HU by id for one patient, float32 (256,)."""
    common = {group: rng.standard_normal() for group in vocabulary.groups}
    table = np.full(256, AIR_HU, np.float32)
    for structure in vocabulary.structures:
        own = rng.standard_normal()
        if structure.hu is not None:
            mean, sd = structure.hu
            share = PATIENT_SHARE**0.5 * common[_kind(structure)] + (1 - PATIENT_SHARE) ** 0.5 * own
            table[structure.id] = mean + sd * np.clip(share, -2, 2)
    table[list(vocabulary.group("dummies"))] = table[vocabulary.id("body")]
    return table


def _kind(structure: Structure) -> str:
    return structure.groups[-1]


def _mask(ids: np.ndarray, vocabulary: Vocabulary, *names: str) -> np.ndarray:
    flags = np.zeros(256, bool)
    for name in names:
        flags[list(vocabulary.members(name))] = True
    return flags[ids]


def _draw_fat(hu: np.ndarray, ids: np.ndarray, grid: Grid, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    """Skin, fat planes between muscles, strands in the fat, and a fat shell where the map tells none."""
    fat_hu = vocabulary.structure("fat").hu
    assert fat_hu is not None
    inside = _blurred((ids != 0).astype(np.float32), grid, 4.0)
    muscle = _mask(ids, vocabulary, "body", "muscles")
    planes = np.exp(-((_waves(grid, 22.0, rng) / 0.10) ** 2)) * (_waves(grid, 50.0, rng) > 0.1)
    hu -= muscle * planes * 90
    fat = _mask(ids, vocabulary, "fat")
    strands = np.exp(-((_waves(grid, 16.0, rng) / 0.16) ** 2))
    hu += fat * strands * 45
    if not fat.any():
        shell = (ids == vocabulary.id("body")) & (_blurred((ids != 0).astype(np.float32), grid, 12.0) < 0.86)
        hu[shell] = fat_hu[0]
    skin = (ids != 0) & (inside < 0.62) & ((ids == vocabulary.id("body")) | fat)
    hu[skin] = 0.5 * hu[skin] + 0.5 * SKIN_HU


def _draw_bones(hu: np.ndarray, ids: np.ndarray, grid: Grid, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    """A bright shell around a darker, mottled inside; long bones with thick shafts around marrow."""
    mottled = 1 + 0.22 * _waves(grid, 7.0, rng)
    density = rng.uniform(0.85, 1.15)
    bones = _mask(ids, vocabulary, "bones")
    if not bones.any():
        return
    box = _box(bones)
    inner, view, mottled = bones[box], hu[box], mottled[box]
    shell = np.clip(2.2 * (1 - _blurred(inner.astype(np.float32), grid, 2.2)), 0, 1)
    view[inner] = (view * (0.62 + 1.25 * shell**1.5) * mottled)[inner]
    long_bones = _mask(ids[box], vocabulary, "long bones")
    if long_bones.any():
        width = _blurred(long_bones.astype(np.float32), grid, 9.0)
        marrow = np.interp(width, (0.55, 0.85), (MARROW_HU, CANCELLOUS_HU)).astype(np.float32)
        cortex = np.clip(2.6 * (1 - _blurred(long_bones.astype(np.float32), grid, 3.0)), 0, 1)
        thick = np.interp(width, (0.55, 0.85), (CORTEX_HU, 0.5 * CORTEX_HU)).astype(np.float32)
        shaft = density * mottled * (marrow + (thick - marrow) * cortex**2)
        view[long_bones] = shaft[long_bones]


def _draw_lungs(hu: np.ndarray, ids: np.ndarray, grid: Grid, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    """Vessels as the curves where two noises vanish together, thicker inside, and a density that rises to the back."""
    lungs = _mask(ids, vocabulary, "lungs")
    if not lungs.any():
        return
    box = _box(lungs)
    inner = lungs[box]
    depth = np.clip(2 * _blurred(inner.astype(np.float32), grid, 9.0) - 1, 0, 1)
    vessels = np.zeros(inner.shape, np.float32)
    for wavelength, width in ((26.0, 0.17), (15.0, 0.19)):
        one, other = _waves(grid, wavelength, rng)[box], _waves(grid, wavelength, rng)[box]
        near = np.exp(-(one**2 + other**2) / (width * (0.35 + depth)) ** 2)
        vessels = np.maximum(vessels, near)
    back = np.linspace(1, 0, inner.shape[1], dtype=np.float32)[None, :, None]
    texture = 22 * _waves(grid, 9.0, rng)[box]
    view = hu[box]
    view[inner] = (view + 50 * back + texture + vessels * (820 * (0.3 + 0.7 * depth)))[inner]


def _draw_gas(hu: np.ndarray, ids: np.ndarray, grid: Grid, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    """Gas that rises to the front in stomach and bowel, mixed contents, a wall around."""
    for name, gas, mixed in (("stomach", 0.3, 15), ("colon", 0.45, 60), ("small bowel", 0.06, 15)):
        organ = _mask(ids, vocabulary, name)
        share = gas * rng.uniform(0.2, 1.6)
        if not organ.any():
            continue
        box = _box(organ)
        inner = organ[box]
        lumen = inner & (_blurred(inner.astype(np.float32), grid, 2.5) > 0.72)
        y = np.broadcast_to(np.arange(inner.shape[1], dtype=np.float32)[None, :, None] * grid.spacing[1], inner.shape)
        weight = _blurred(inner.astype(np.float32), grid, 14.0) + 1e-3
        level = (y - _blurred(inner * y, grid, 14.0) / weight) / 12 + 0.8 * _waves(grid, 55.0, rng)[box]
        view = hu[box]
        view[lumen] += mixed * _waves(grid, 14.0, rng)[box][lumen]
        if lumen.any():
            view[lumen & (level > np.quantile(level[lumen], 1 - min(share, 0.9)))] = AIR_HU + 20


def _draw_brain(hu: np.ndarray, ids: np.ndarray, grid: Grid, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    """Grey and white matter, fluid in sulci and, where the whole brain is in view, in the lateral ventricles."""
    folds = _waves(grid, 12.0, rng)
    width = rng.uniform(0.7, 1.4)
    brain = _mask(ids, vocabulary, "brain")
    if not brain.any():
        return
    box = _box(brain)
    inner, view = brain[box], hu[box]
    rim = 1 - _blurred(inner.astype(np.float32), grid, 5.0)
    fluid = np.clip(3 * (rim - 0.15), 0, 1) * (folds[box] > 0.2)
    size = np.array(inner.shape) * grid.spacing
    if size[0] > 100 and size[2] > 90:  # in view as a whole: fractions of the brain's box
        x, y, z = np.meshgrid(*[np.linspace(-0.5, 0.5, n) for n in inner.shape], indexing="ij", sparse=True)
        for side in (1, -1):
            centre_x = side * (0.075 + 0.10 * np.abs(y))
            ventricle = ((x - centre_x) / (0.035 * width)) ** 2 + (y / 0.2) ** 2 + ((z - 0.07 + 0.3 * y**2) / 0.1) ** 2
            fluid = np.maximum(fluid, ventricle < 1)
    view[inner] = (view + 4 * np.sign(folds[box]) - 27 * fluid)[inner]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _blurred(array: np.ndarray, grid: Grid, sigma_mm: float, least_voxels: float = 0.0) -> np.ndarray:
    sigma = [max(least_voxels, sigma_mm / spacing) for spacing in grid.spacing]
    return ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=2.5)


def _waves(grid: Grid, wavelength_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise with mean 0 and standard deviation about 1: random values on a lattice, interpolated."""
    step = wavelength_mm / 2
    counts = [int(np.ceil(length / step)) + 4 for length in grid.fov_mm]
    values = rng.standard_normal(counts, np.float32)
    for axis, (count, size, spacing) in enumerate(zip(counts, grid.shape, grid.spacing, strict=True)):
        values = np.moveaxis(np.tensordot(_spline(size, spacing / step, count), values, (1, axis)), 0, axis)
    return np.ascontiguousarray(values) * np.float32(1.75)


def _spline(size: int, step: float, count: int) -> np.ndarray:
    """Weights (size, count) of the quadratic B-spline, which never shows its lattice."""
    at = np.arange(size) * step + 1.5
    distance = np.abs(at[:, None] - np.arange(count)[None])
    near = 0.75 - distance**2
    far = 0.5 * (1.5 - distance) ** 2
    return np.where(distance < 0.5, near, np.where(distance < 1.5, far, 0)).astype(np.float32)
