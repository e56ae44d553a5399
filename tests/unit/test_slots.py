"""Sizes of organs as a label generator is told them."""

import numpy as np
import pytest

from maisi.anatomy.slots import ABSENT, check_sizes, full_volumes, measured_sizes, size_of, volume_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap


def test_the_ten_slots_are_those_of_the_released_generator_in_its_order() -> None:
    expected = ["gallbladder", "liver", "stomach", "pancreas", "colon", "lung tumor", "pancreatic tumor"]
    assert list(full_volumes()) == [*expected, "hepatic tumor", "colon cancer primaries", "bone lesion"]
    assert all(load_vocabulary().id(name) for name in full_volumes())


def test_a_size_is_the_share_of_the_full_volume_and_absence_has_its_own_number() -> None:
    ids = np.zeros((10, 10, 10), np.uint8)
    ids[:, :, :6] = load_vocabulary().id("liver")
    found = measured_sizes(LabelMap(ids, Grid.centered(ids.shape, (10.0, 10.0, 10.0))), ("liver", "colon"))
    assert found == {"liver": pytest.approx(600 / full_volumes()["liver"]), "colon": ABSENT}
    assert volume_of("liver", size_of("liver", 600.0)) == pytest.approx(600.0)
    assert size_of("liver", 1e6) == 1.0


@pytest.mark.parametrize("sizes", [{"heart": 0.5}, {"liver": 1.5}, {"liver": -0.5}])
def test_what_has_no_size_and_what_is_none_is_refused(sizes: dict) -> None:
    with pytest.raises(InvalidRequestError, match="accepted"):
        check_sizes(sizes, tuple(full_volumes()))
