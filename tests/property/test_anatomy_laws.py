"""Laws of structures that change their size, and of maps that are bent: for any shape, any size, any voxel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maisi.anatomy.deform import Warp, warped
from maisi.anatomy.morphology import parts
from maisi.anatomy.resize import mask_of, removed, resized, volume_ml
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

V = load_vocabulary()
BODY, SPLEEN, RIB = V.id("body"), V.id("spleen"), V.id("left rib 9")
SPACINGS = st.tuples(*[st.floats(1.0, 4.0)] * 3)


def a_body(seed: int, spacing: tuple[float, float, float]) -> LabelMap:
    """A body with one organ of any form in one piece, and bits of bone around it."""
    rng = np.random.default_rng(seed)
    shape = (32, 28, 24)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    deep = np.zeros(shape, bool)
    deep[8:-8, 8:-8, 7:-7] = True
    numbered, sizes = parts(deep & (noise > np.quantile(noise[deep], 0.5)))
    ids = np.zeros(shape, np.uint8)
    ids[1:-1, 1:-1, 1:-1] = BODY
    ids[(ids == BODY) & (ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.09)] = RIB
    ids[numbered == 1 + sizes[1:].argmax()] = SPLEEN
    return LabelMap(ids, Grid.centered(shape, spacing))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.25, 1.5), spacing=SPACINGS)
def test_an_organ_of_any_form_gets_its_volume_in_one_piece_and_bone_stays(
    seed: int, factor: float, spacing: tuple[float, float, float]
) -> None:
    labels = a_body(seed, spacing)
    ml = factor * volume_ml(labels.array == SPLEEN, labels)
    after = resized(labels, SPLEEN, ml, V)
    mask = mask_of(after, SPLEEN, V)
    assert abs(volume_ml(mask, after) / ml - 1) <= 0.05
    assert len(parts(mask)[1]) == 2  # background, and one piece
    np.testing.assert_array_equal(after.array == RIB, labels.array == RIB)
    np.testing.assert_array_equal(after.array == 0, labels.array == 0)
    inner, outer = (mask, labels.array == SPLEEN) if factor < 1 else (labels.array == SPLEEN, mask)
    assert not (inner & ~outer).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), spacing=SPACINGS)
def test_a_removed_organ_leaves_no_voxel_and_changes_no_other(seed: int, spacing: tuple[float, float, float]) -> None:
    labels = a_body(seed, spacing)
    after, was = removed(labels, SPLEEN, V).array, labels.array == SPLEEN
    assert not (after == SPLEEN).any()
    np.testing.assert_array_equal(after[~was], labels.array[~was])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0, 1.75))
def test_a_bent_map_holds_no_label_that_its_source_lacks_and_none_is_lost_in_its_middle(
    seed: int, strength: float
) -> None:
    labels = a_body(seed, (3.0, 3.0, 3.0))
    drawn = warped(labels, labels.grid, Warp.drawn(labels.grid, np.zeros(3), np.random.default_rng(seed), strength))
    assert set(np.unique(drawn.array)) <= set(np.unique(labels.array))
    assert (drawn.array == SPLEEN).any()
