"""Tensors on their way into a safetensors file, one at a time."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_ALIGNMENT = 8  # bytes, of the beginning of the first tensor
_NAMES = {  # in the order in which they stand in a file
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, the bytes that `safetensors.torch.save_file` writes, and hold one tensor besides them.

    That function wants all tensors contiguous and on the CPU at once, which for weights in channels-last order, or on a
    GPU, are all of them a second time.
    """
    places = {dtype: place for place, dtype in enumerate(_NAMES)}
    order = sorted(tensors, key=lambda name: (places[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    written += b" " * (-len(written) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little"))
        file.write(written)
        for name in order:
            file.write(_bytes_of(tensors[name]))


def _bytes_of(tensor: Tensor) -> memoryview:
    rows = tensor.detach().cpu().contiguous().reshape(-1)
    return rows.view(torch.uint8).numpy().data
