"""Laws of outlines: what they enclose is the mask that they were drawn around."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from maisi.space.contours import filled, outlines

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14), elements=st.booleans())


@given(masks)
@settings(max_examples=150, deadline=None)
def test_the_outlines_of_any_mask_enclose_its_pixels_and_no_others(mask: np.ndarray) -> None:
    assert np.array_equal(filled(outlines(mask), mask.shape), mask)


@given(masks, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_rounding_of_coordinates_changes_no_pixel(mask: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    origin, spacing = rng.uniform(-300, 300, 2), rng.uniform(0.4, 6, 2)
    written = [np.round(polygon * spacing + origin, 5) for polygon in outlines(mask)]
    assert np.array_equal(filled([(points - origin) / spacing for points in written], mask.shape), mask)


@given(masks)
@settings(max_examples=60, deadline=None)
def test_no_outline_lies_within_another(mask: np.ndarray) -> None:
    """Readers that join all contours of a slice see holes all the same."""
    union = np.zeros(mask.shape, bool)
    for polygon in outlines(mask):
        union |= filled([polygon], mask.shape)
    assert np.array_equal(union, mask)
