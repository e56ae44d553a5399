"""Safetensors files are those of the library, and written without a second copy of what goes into them."""

from pathlib import Path
from weakref import ref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from maisi.storage.tensors import write_tensors

DTYPES = (torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16)
SHORT = (torch.int16, torch.int8, torch.uint8, torch.bool)


def tensors() -> dict[str, torch.Tensor]:
    """One of each kind: as rows, in channels-last order, transposed, of no axis, empty."""
    draw = torch.Generator().manual_seed(3)
    found = {f"{dtype}/é": (100 * torch.rand(3, 4, generator=draw)).to(dtype) for dtype in (*DTYPES, *SHORT)}
    kernel = torch.rand(2, 5, 3, 3, 3, generator=draw)
    return found | {
        "z": kernel.to(memory_format=torch.channels_last_3d),
        "a": torch.rand(4, 3, generator=draw).T,
        "step": torch.tensor(7.0),
        "none": torch.empty(0, 3),
        "part": torch.rand(10, generator=draw)[2:5],
        "learning": torch.rand(2, generator=draw).requires_grad_(),
    }


def test_the_bytes_are_those_that_the_library_writes(tmp_path: Path) -> None:
    given = tensors()
    save_file({name: each.detach().contiguous() for name, each in given.items()}, tmp_path / "a", {"of": 'ü\n"'})
    write_tensors(given, tmp_path / "b", {"of": 'ü\n"'})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_several_facts_are_read_as_given(tmp_path: Path) -> None:
    write_tensors(tensors(), tmp_path / "a", {"step": "3", "facts": "{}"})
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"step": "3", "facts": "{}"}
        assert set(file.keys()) == tensors().keys()


def test_what_the_format_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_tensors({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "a", {})
    assert not (tmp_path / "a").exists()


def test_one_tensor_at_a_time_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    contiguous = torch.Tensor.contiguous

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        found = contiguous(tensor)
        alive = sum(1 for each in gone if each() is not None)
        gone.append(ref(found))
        made.append(alive)
        return found

    gone: list[ref[torch.Tensor]] = []
    monkeypatch.setattr(torch.Tensor, "contiguous", watched)
    kernels = {str(k): torch.rand(4, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d) for k in range(5)}
    write_tensors(kernels, tmp_path / "a", {})
    assert made == [0] * 5
