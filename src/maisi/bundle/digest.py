"""Sums that tell whether two networks have the same weights."""

import hashlib
from collections.abc import Mapping

from torch import Tensor


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of weights, in whatever number format and order they are kept."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
