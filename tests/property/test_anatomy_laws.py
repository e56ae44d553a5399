"""Laws of bits, regions, morphology and the phantom, for any input."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maisi.anatomy import morphology
from maisi.anatomy.bits import label_bits, labels_from_bits
from maisi.anatomy.regions import BodyRegion, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

vocabulary = load_vocabulary()
shapes = arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
spacings = st.tuples(*[st.floats(0.6, 6.0)] * 3)
masks = arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9))


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.uint8, shapes))
def test_bits_and_back_is_the_identity(ids: np.ndarray) -> None:
    bits = label_bits(ids)
    assert set(np.unique(bits.numpy())) <= {0.0, 1.0}
    assert torch.equal(labels_from_bits(bits), torch.from_numpy(ids))


@settings(deadline=None, max_examples=50)
@given(st.sets(st.sampled_from(vocabulary.ids), min_size=1, max_size=12))
def test_a_span_contains_every_region_whose_marker_is_present(ids: set[int]) -> None:
    names = {vocabulary.name(id) for id in ids}
    marked = [r for r in BodyRegion if names & set(vocabulary.regions[r.name.lower()].markers)]
    array = np.zeros((12, 1, 1), np.uint8)
    array[: len(ids), 0, 0] = sorted(ids)
    if marked:
        span = region_span(LabelMap(array, Grid.centered((12, 1, 1), (1, 1, 1))))
        assert span.top is marked[0]
        assert span.bottom is marked[-1]


@settings(deadline=None, max_examples=40)
@given(masks, st.floats(0.5, 12), spacings)
def test_morphology_is_ordered_and_closing_only_adds(mask: np.ndarray, radius: float, spacing: tuple) -> None:  # type: ignore[type-arg]
    eroded, dilated = (f(mask, radius, spacing) for f in (morphology.erode, morphology.dilate))
    closed = morphology.close_mask(mask, radius, spacing)
    assert not (eroded & ~mask).any()
    assert not (mask & ~closed).any()
    assert not (closed & ~dilated).any()


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["head", "neck", "head-neck", "chest", "abdomen", "lower", "limbs"]),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.tuples(*[st.floats(2.0, 14.0)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_any_grid_gets_known_ids_and_hounsfield_units(region: str, shape: tuple, spacing: tuple, seed: int) -> None:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    labels = draw_phantom(region, Grid.centered(shape, spacing), rng)
    vocabulary.check_ids(labels.array)
    ct = render_phantom(labels, rng).array
    assert np.isfinite(ct).all()
    assert ct.min() >= -1024
    assert ct.max() <= 3071
