"""Which kind of processor a result is of: ratios differ more between kinds than between runs."""

import torch

UNITS = {"amx": "AMX", "avx512_bf16": "AVX512-BF16", "avx512": "AVX-512", "avx2": "AVX2", "other": "no AVX2"}
"""What a processor multiplies with, the fastest first, as files and texts call it."""


def vector_unit() -> str:
    """A key of `UNITS`."""
    found = {
        "amx": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "avx512": torch.cpu._is_avx512_supported(),
        "avx2": torch.cpu._is_avx2_supported(),
    }
    return next((unit for unit, there in found.items() if there), "other")
