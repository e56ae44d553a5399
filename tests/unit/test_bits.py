"""Label maps as bits and back."""

import numpy as np
import pytest
import torch

from maisi.anatomy.bits import label_bits, labels_from_bits
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError


def test_the_first_channel_is_the_least_significant_bit() -> None:
    bits = label_bits(np.array([1, 2, 200], np.uint8).reshape(3, 1, 1))
    assert bits.shape == (8, 3, 1, 1)
    assert bits[:, 0, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert bits[:, 2, 0, 0].tolist() == [0, 0, 0, 1, 0, 0, 1, 1]


def test_every_id_of_the_vocabulary_survives_bits_and_back() -> None:
    ids = torch.tensor(load_vocabulary().ids).view(1, -1, 1, 1)
    bits = label_bits(ids)
    assert bits.shape == (1, 8, ids.shape[1], 1, 1)
    assert torch.equal(labels_from_bits(bits).long(), ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_any_number_type_gives_the_same_bits(dtype: type) -> None:
    ids = np.arange(24).reshape(2, 3, 4)
    assert torch.equal(label_bits(ids.astype(dtype)), label_bits(ids))


@pytest.mark.parametrize("ids", [[401], [-1], [256]])
def test_ids_beyond_eight_bits_are_refused(ids: list[int]) -> None:
    with pytest.raises(InvalidLabelsError, match="0 to 255"):
        label_bits(np.array(ids).reshape(1, 1, 1))


def test_fractions_and_flat_labels_are_refused() -> None:
    with pytest.raises(InvalidLabelsError, match="whole numbers"):
        label_bits(np.full((1, 1, 1), 0.5))
    with pytest.raises(InvalidLabelsError, match="axes x, y, z"):
        label_bits(np.zeros((4, 4), np.uint8))
