"""Label maps as bits, the form in which the ControlNet reads them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maisi.errors import InvalidLabelsError

NUM_BITS = 8


def label_bits(labels: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The 8 bits of every id, 0 or 1, bit 0 the least significant: `(..., x, y, z)` -> `(..., 8, x, y, z)`.

    Takes a NumPy array or a tensor. Raises InvalidLabelsError on an id outside 0-255, which 8 bits would turn into
    another structure without a word, and on fractions.
    """
    ids = torch.as_tensor(_widened(labels))
    if ids.ndim < 3:
        raise InvalidLabelsError(f"labels need the axes x, y, z; got shape {_shown(ids.shape)}")
    if ids.is_floating_point():
        if bool((ids != ids.round()).any()):
            raise InvalidLabelsError("labels must be whole numbers to be written as bits")
        ids = ids.to(torch.int64)
    if ids.dtype != torch.uint8 and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= 2**NUM_BITS):
        raise InvalidLabelsError(
            f"label ids must be 0 to {2**NUM_BITS - 1} to fit {NUM_BITS} bits; got {int(ids.min())} to {int(ids.max())}"
        )
    bits = torch.empty((*ids.shape[:-3], NUM_BITS, *ids.shape[-3:]), dtype=dtype, device=ids.device)
    for k in range(NUM_BITS):
        bits.select(-4, k).copy_((ids >> k) & 1)
    return bits


def labels_from_bits(bits: torch.Tensor) -> torch.Tensor:
    """The ids that these bits spell (above one half is 1), uint8: `(..., 8, x, y, z)` -> `(..., x, y, z)`."""
    if bits.ndim < 4 or bits.shape[-4] != NUM_BITS:
        raise InvalidLabelsError(f"bits need the axes {NUM_BITS}, x, y, z; got shape {_shown(bits.shape)}")
    ids = torch.zeros(bits.shape[:-4] + bits.shape[-3:], dtype=torch.uint8, device=bits.device)
    for k, plane in enumerate(bits.unbind(-4)):
        ids |= (plane > 0.5).to(torch.uint8) << k
    return ids


def _widened(labels: Any) -> Any:
    return labels.astype(np.int32) if isinstance(labels, np.ndarray) and labels.dtype == np.uint16 else labels


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "()"
