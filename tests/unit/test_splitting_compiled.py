"""The compiled convolution equals the convolution, for every instruction set that this processor has."""

import math
import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maisi.splitting import SlabTensor
from maisi.splitting.cpu import compiled, kernels, winograd
from maisi.splitting.cpu.weights import TransformedWeight

SETS = {} if compiled._filtering is None else compiled._filtering.instruction_sets()
needs_kernel = pytest.mark.skipif(not SETS, reason="the kernel was not built: no C compiler at installation")


@pytest.fixture(params=list(SETS) or ["none"])
def each_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(compiled, "instruction_set", lambda: request.param)
    return request.param


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def deviation(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: tuple[int, int, int] = (1, 1, 1)
) -> float:
    """The largest error, relative to the largest value."""
    exact = F.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    with torch.no_grad():
        found = compiled.convolve(x, weight, bias, padding, compiled.pack_weight(weight))
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.skipif(os.environ.get("MAISI_TEST_KERNEL") == "off", reason="the tests are run without the kernel")
def test_it_is_built_where_there_is_a_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip(f"no compiler {compiler!r}, or no headers of Python here")
    assert compiled.instruction_set() in SETS


@needs_kernel
@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 19), st.integers(1, 70)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    channels=st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 32, 48])),
    biased=st.booleans(),
    batch=st.integers(1, 2),
)
def test_it_equals_the_direct_convolution(each_set: str, size, padding, channels, biased, batch) -> None:
    assume(all(n + 2 * p >= 3 for n, p in zip(size, padding, strict=True)))
    draw = torch.Generator().manual_seed(sum(size))
    x = channels_last(torch.randn(batch, channels[0], *size, generator=draw))
    weight = torch.randn(channels[1], channels[0], 3, 3, 3, generator=draw)
    bias = torch.randn(channels[1], generator=draw) if biased else None
    assert deviation(x, weight, bias, padding) < 5e-6


@needs_kernel
@pytest.mark.parametrize("channels", [64, 256])
def test_float32_loses_few_digits(each_set: str, channels: int) -> None:
    draw = torch.Generator().manual_seed(channels)
    x = F.silu(channels_last(torch.randn(1, channels, 8, 12, 10, generator=draw)))
    weight = torch.randn(channels, channels, 3, 3, 3, generator=draw) / math.sqrt(27 * channels)
    assert deviation(x, weight) < 5e-6


@needs_kernel
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_step_from_air_to_body_stays_exact_in_every_place(each_set: str, axis: int) -> None:
    x = channels_last(torch.full((1, 32, 9, 9, 9), -1000.0))
    x.narrow(axis, 4, 5).fill_(40.0)
    weight = torch.randn(32, 32, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 30
    assert deviation(x, weight) < 5e-6


@needs_kernel
def test_a_constant_stays_constant_within(each_set: str) -> None:
    weight = torch.randn(32, 32, 3, 3, 3, generator=torch.Generator().manual_seed(1)) / 30
    with torch.no_grad():
        x = channels_last(torch.full((1, 32, 11, 11, 70), 1000.0))
        found = compiled.convolve(x, weight, None, (0, 0, 0), compiled.pack_weight(weight))
    spread = found.amax((2, 3, 4)) - found.amin((2, 3, 4))
    assert spread.max() <= 1e-5 * found.abs().max()


@needs_kernel
@torch.no_grad()
def test_how_the_work_is_shared_out_changes_no_bit(each_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(2)
    x = channels_last(torch.randn(2, 32, 13, 21, 37, generator=draw))
    weight, bias = torch.randn(48, 32, 3, 3, 3, generator=draw), torch.randn(48, generator=draw)
    packed = compiled.pack_weight(weight)
    found = compiled.convolve(x, weight, bias, (1, 1, 1), packed)
    for ranges, tiles in ((1, 32), (50, 1), (3, 7)):
        monkeypatch.setattr(compiled, "RANGES_A_THREAD", ranges)
        monkeypatch.setattr(compiled, "TILES_AIM", tiles)
        assert torch.equal(compiled.convolve(x, weight, bias, (1, 1, 1), packed), found)


@needs_kernel
def test_what_the_planner_counts_is_what_is_taken(each_set: str) -> None:
    weight = torch.empty(48, 32, 3, 3, 3)
    packed = compiled.pack_weight(weight)
    assert compiled.packed_bytes(weight) == packed.numel() * packed.element_size()
    assert compiled.workspace_bytes((512, 768), weight) == compiled.workspace_bytes((512, 96), weight)


@needs_kernel
@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "abacus"},
        {"channels": (17, 16, 32)},
        {"channels": (0, 16, 16)},
        {"channels": (16, 16, 9)},
        {"block": (1, 17)},
        {"block": (0, 2)},
        {"blocks": (0, 2)},
        {"blocks": (-1, 1)},
        {"after": (4, 0, 4)},
    ],
)
def test_blocks_that_are_not_there_are_refused(wrong: dict) -> None:
    asked = {"name": "plain", "after": (4, 4, 4), "channels": (16, 16, 16), "block": (1, 2), "blocks": (0, 1)} | wrong
    numbers = torch.zeros(200_000)
    name, after, *rest = asked.values()
    with pytest.raises(ValueError, match=r"no blocks|no instruction set"):
        compiled._filtering.filter_blocks(name, (numbers.data_ptr(),) * 5, (4, 4, 4), after, (1, 1, 1), *rest)


@needs_kernel
@torch.no_grad()
def test_other_defaults_of_torch_change_nothing() -> None:
    """The kernel is given addresses: numbers of another format there would be read, and written, as they are not."""
    draw = torch.Generator().manual_seed(3)
    x, weight = torch.randn(1, 32, 6, 7, 8, generator=draw), torch.randn(32, 32, 3, 3, 3, generator=draw)
    expected = compiled.convolve(x, weight, None, (1, 1, 1), compiled.pack_weight(weight))
    torch.set_default_dtype(torch.float64)
    try:
        packed = compiled.pack_weight(weight)
        found = compiled.convolve(x, weight, None, (1, 1, 1), packed)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (packed.dtype, found.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found, expected)


@needs_kernel
@torch.no_grad()
def test_what_would_be_read_beyond_its_end_is_refused() -> None:
    x, weight, bias = torch.ones(1, 16, 4, 4, 4), torch.ones(16, 16, 3, 3, 3), torch.ones(16)
    packed, padding = compiled.pack_weight(weight), (1, 1, 1)
    for arguments in (
        (x.double(), weight, bias, padding, packed),
        (x.bfloat16(), weight, bias, padding, packed),
        (x[:, :8], weight, bias, padding, packed),
        (x[:, :, :, :, :2], weight, bias, (1, 1, 0), packed),
        (x, weight, bias[:8], padding, packed),
        (x, weight, bias, padding, packed.double()),
        (x, weight, bias, padding, packed[:, :, :8]),
    ):
        with pytest.raises(ValueError, match="accepted: float32"):
            compiled.convolve(*arguments)


@needs_kernel
@torch.no_grad()
def test_no_sample_gives_no_sample() -> None:
    weight = torch.ones(16, 16, 3, 3, 3)
    found = compiled.convolve(torch.ones(0, 16, 5, 5, 5), weight, None, (1, 1, 1), compiled.pack_weight(weight))
    assert found.shape == (0, 16, 5, 5, 5)


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_a_split_network_equals_the_whole_with_and_without_it(
    axis: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large mean with a tiny deviation, and a step along the split axis, in uneven slabs."""
    if kernel == "torch":
        monkeypatch.setattr(compiled, "instruction_set", lambda: "")
    elif not SETS:
        pytest.skip("the kernel was not built: no C compiler at installation")
    used = []
    for module, name in ((compiled, "convolve"), (winograd, "winograd")):
        function = getattr(module, name)

        def noted(*args: object, name: str = name, function=function) -> Tensor:
            used.append(name)
            return function(*args)

        monkeypatch.setattr(module if module is compiled else kernels, name, noted)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(3, 96, 3, padding=1),
        nn.GroupNorm(8, 96),
        nn.SiLU(),
        nn.Conv3d(96, 96, 3, padding=1),
        nn.GroupNorm(8, 96),
        nn.Conv3d(96, 2, 3, padding=1),
    )
    x = torch.randn(1, 3, 29, 29, 29) * 1e-2 + 10
    x.narrow(axis + 2, 13, 16).add_(30)
    whole = network.double()(x.double())
    network.float()
    split = network(SlabTensor.split(x, axis=axis, sizes=[15, 14])).gather()
    assert set(used) == ({"convolve"} if kernel == "compiled" else {"winograd"})
    assert (split.double() - whole).abs().max() <= 1e-5 * (whole.max() - whole.min())


@needs_kernel
@torch.no_grad()
def test_weights_are_transformed_as_their_kernel_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    served, other = torch.randn(32, 32, 3, 3, 3), torch.randn(40, 40, 3, 3, 3)
    assert torch.equal(TransformedWeight(served).transformed(), compiled.pack_weight(served))
    assert torch.equal(TransformedWeight(other).transformed(), winograd.transform_weight(other))
    assert not compiled.serves(torch.randn(32, 32, 3, 3, 1))
    monkeypatch.setattr(compiled, "instruction_set", lambda: "")
    assert torch.equal(TransformedWeight(served).transformed(), winograd.transform_weight(served))
