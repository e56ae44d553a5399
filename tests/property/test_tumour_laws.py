"""Laws of tumours in label maps, for any tumour, size, grid and seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.anatomy.lesions import healthy_ids, lesion_ids
from maisi.anatomy.morphology import parts
from maisi.anatomy.tumours import augment_tumours, lesion_shape, plant
from maisi.anatomy.tumours.shapes import ball_ml, num_voxels
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id
LAYERS = ("liver", "pancreas", "colon", "left lung upper lobe", "right kidney", "brain", "vertebrae L3", "body")
seeds = st.integers(0, 2**32 - 1)
spacings = st.tuples(*[st.floats(2.0, 6.0)] * 3)
tumours = st.sampled_from([VOCABULARY.name(id) for id in VOCABULARY.group("tumours")])


def layered(spacing: tuple[float, float, float], seed: int) -> LabelMap:
    """A block of 72 x 72 x 80 mm whose structures lie in bent layers, each some 20 mm thick."""
    grid = Grid.centered([round(n / s) for n, s in zip((72, 72, 80), spacing, strict=True)], spacing)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    a, b, c = np.random.default_rng(seed).uniform(-0.1, 0.1, 3)
    which = np.floor((z + 10 * np.sin(a * x) + 10 * np.cos(b * y) + 6 * c * x) / 20 + 20).astype(int) % 4 * 2
    which += (x + 5 * np.sin(0.1 * z) > 0).astype(int)
    return LabelMap(np.array([ID(name) for name in LAYERS], np.uint8)[which], grid)


@settings(deadline=None, max_examples=15)
@given(spacings, st.floats(3.0, 40.0), seeds)
def test_a_blob_has_the_volume_of_its_ball(spacing: tuple[float, float, float], diameter: float, seed: int) -> None:
    grid = Grid.centered([round(100 / s) for s in spacing], spacing)
    blob = lesion_shape(grid, (3.0, -2.0, 1.0), diameter, np.random.default_rng(seed))
    wanted = num_voxels(grid, diameter)
    assert abs(np.count_nonzero(blob) - wanted) <= max(0.1 * wanted, 1)
    assert len(parts(blob)[1]) == 2
    assert np.array_equal(blob, lesion_shape(grid, (3.0, -2.0, 1.0), diameter, np.random.default_rng(seed)))


@settings(deadline=None, max_examples=15)
@given(tumours, spacings, st.floats(4.0, 28.0), st.integers(1, 2), seeds)
def test_a_planted_tumour_is_in_its_host_of_its_volume_and_changes_nothing_else(
    tumour: str, spacing: tuple[float, float, float], diameter: float, number: int, seed: int
) -> None:
    before, id = layered(spacing, seed), ID(tumour)
    voxel = float(np.prod(spacing)) / 1000
    try:
        after = plant(before, tumour, np.random.default_rng(seed), diameter_mm=diameter, number=number)
    except InvalidRequestError:
        return
    changed = after.array != before.array
    assert (after.array[changed] == id).all()
    allowed = {*healthy_ids(VOCABULARY, id), ID("body")} if tumour == "kidney tumor" else healthy_ids(VOCABULARY, id)
    assert np.isin(before.array[changed], list(allowed)).all()
    assert len(parts(changed)[1]) == number + 1
    wanted = number * ball_ml(diameter)
    assert abs(np.count_nonzero(changed) * voxel - wanted) <= max(0.1 * wanted, number * voxel)
    again = plant(before, tumour, np.random.default_rng(seed), diameter_mm=diameter, number=number)
    assert np.array_equal(after.array, again.array)


@settings(deadline=None, max_examples=15)
@given(tumours, spacings, st.floats(5.0, 24.0), st.floats(0.0, 2.0), seeds)
def test_an_augmented_tumour_leaves_its_organ_whole_and_all_else_as_it_was(
    tumour: str, spacing: tuple[float, float, float], diameter: float, strength: float, seed: int
) -> None:
    id, rng = ID(tumour), np.random.default_rng(seed)
    try:
        before = plant(layered(spacing, seed), tumour, rng, diameter_mm=diameter)
        after = augment_tumours(before, np.random.default_rng(seed), strength=strength)
    except InvalidRequestError:
        return
    organ = [*healthy_ids(VOCABULARY, id), id]
    filled = np.isin(before.array, organ)
    assert np.array_equal(filled, np.isin(after.array, organ))
    assert np.array_equal(before.array[~filled], after.array[~filled])
    tumours_only = before.array == id, after.array == id
    assert len(parts(tumours_only[1])[1]) == len(parts(tumours_only[0])[1])
    untouched = filled & ~tumours_only[0] & ~tumours_only[1]
    assert np.array_equal(before.array[untouched], after.array[untouched])
    again = augment_tumours(before, np.random.default_rng(seed), strength=strength)
    assert np.array_equal(after.array, again.array)
    assert not set(np.unique(after.array)) - set(np.unique(before.array)) - set(lesion_ids(VOCABULARY))
