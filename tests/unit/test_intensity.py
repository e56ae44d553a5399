"""Unit intensities of CT and MR."""

import numpy as np
import pytest

from maisi.errors import InvalidVolumeError
from maisi.space.intensity import from_unit, to_unit


def test_the_ct_window_maps_linearly_to_the_unit_interval_and_clips():
    unit = to_unit(np.array([-2000.0, -1000.0, 0.0, 500.0, 1000.0, 3000.0]))
    np.testing.assert_allclose(unit, [0, 0, 0.5, 0.75, 1, 1])
    assert unit.dtype == np.float32


def test_unit_intensities_outside_the_interval_come_back_as_the_ends_of_the_window():
    np.testing.assert_allclose(from_unit(np.array([-0.3, 0.0, 0.5, 1.2])), [-1000, -1000, 0, 1000])


def test_mr_maps_its_percentiles_and_keeps_what_is_brighter():
    array = np.arange(1001.0)
    unit = to_unit(array, "mr")
    assert unit[0] == 0
    np.testing.assert_allclose(unit[995], 1, atol=1e-6)
    assert unit.max() > 1
    np.testing.assert_allclose(from_unit(np.array([-0.1, 0.5, 1.2]), "mr"), [0, 500, 1200], rtol=1e-6)


def test_an_array_given_is_not_changed():
    array = np.full((2, 2, 2), 3000.0, np.float32)
    to_unit(array)
    from_unit(array)
    assert (array == 3000).all()


def test_a_constant_mr_and_an_unknown_modality_are_refused():
    with pytest.raises(InvalidVolumeError, match="no contrast"):
        to_unit(np.ones((3, 3, 3)), "mr")
    for convert in (to_unit, from_unit):
        with pytest.raises(InvalidVolumeError, match="accepted: ct, mr"):
            convert(np.ones((3, 3, 3)), "pet")
