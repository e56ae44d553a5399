"""Networks in half precision: what is computed in float32 and what is rounded, and that nothing else is."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maisi.bundle.bundle import Bundle, load_bundle
from maisi.compute import machine
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.errors import InvalidRequestError, UnsupportedOperationError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import decode, encode
from maisi.space.grid import Grid
from maisi.splitting import SlabTensor, run_split
from maisi.splitting.arithmetic import Where
from maisi.splitting.cpu import kernels
from maisi.splitting.plan import plan_memory
from maisi.splitting.precision import NARROW_CHANNELS, in_format, kept_in_float32, lowered

HALF_ULP = 2**-8  # of bfloat16, relative


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off_by(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


@torch.no_grad()
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    stride=st.integers(1, 2),
    parts=st.integers(1, 4),
    axis=st.integers(0, 2),
)
def test_float32_weights_multiply_half_slabs_in_float32(kernel, channels, stride, parts, axis) -> None:
    x = normal(1, channels[0], 7, 6, 5)
    weight, bias = normal(channels[1], channels[0], *kernel, seed=1), normal(channels[1], seed=2)
    padding = [k // 2 for k in kernel]
    rounded = F.conv3d(x.bfloat16().double(), weight.double(), bias.double(), stride, padding)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), stride, padding)
    halves, whole = SlabTensor.split(x.bfloat16(), parts, axis), SlabTensor.split(x, parts, axis)
    for slabs, expected in ((halves, rounded), (whole.bfloat16(), exact)):  # what was float32 before is read as it was
        result = F.conv3d(slabs, weight, bias, stride, padding)
        assert (result.dtype, result.float().dtype) == (torch.bfloat16, torch.float32)
        assert off_by(result.gather(), expected) <= HALF_ULP
        assert off_by(result.float().gather(), expected) <= 3e-6


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_float32_weights_on_half_slabs_of_fewer_axes(dims: int) -> None:
    x, weight = normal(2, 3, *[6] * dims), normal(4, 3, *[3] * dims, seed=1)
    conv = getattr(F, f"conv{dims}d")
    exact = conv(x.bfloat16().double(), weight.double(), padding=1)
    assert off_by(conv(SlabTensor.split(x.bfloat16(), 3), weight, padding=1).float().gather(), exact) <= 1e-6


@torch.no_grad()
def test_float32_weights_of_transposed_convolutions_and_linear_layers_on_half_slabs() -> None:
    x = normal(1, 4, 6, 5, 4).bfloat16()
    weight, bias = normal(4, 3, 3, 3, 3, seed=1), normal(3, seed=2)
    exact = F.conv_transpose3d(x.double(), weight.double(), bias.double(), 2, 1, 1)
    found = F.conv_transpose3d(SlabTensor.split(x, 3), weight, bias, 2, 1, 1)
    assert (found.dtype, found.gather().dtype) == (torch.bfloat16, torch.bfloat16)
    assert off_by(found.gather(), exact) <= HALF_ULP
    weight, bias = normal(7, 4, seed=1), normal(7, seed=2)
    exact = F.linear(x.double(), weight[:, :4].double(), bias.double())
    found = F.linear(SlabTensor.split(x, 3), weight[:, :4], bias)
    assert found.dtype == torch.bfloat16
    assert off_by(found.gather(), exact) <= HALF_ULP


def test_gradients_pass_through_float32_weights_on_half_slabs() -> None:
    x, weight = normal(1, 2, 6, 4, 4).bfloat16(), normal(3, 2, 3, 3, 3, seed=1).requires_grad_()
    F.conv3d(SlabTensor.split(x, 3), weight, padding=1).float().gather().square().sum().backward()
    found, weight.grad = weight.grad, None
    F.conv3d(x.float(), weight, padding=1).square().sum().backward()
    torch.testing.assert_close(found, weight.grad)


@torch.no_grad()
@pytest.mark.parametrize("call", [lambda x: F.conv3d(x, normal(2, 4, 1, 1, 1).bfloat16()),
                                  lambda x: F.linear(x, normal(2, 4).double()),
                                  lambda x: F.conv_transpose3d(x, normal(4, 2, 1, 1, 1).half())])  # fmt: skip
def test_weights_of_a_format_that_would_lose_the_slabs_are_refused(call) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"of float32 slabs with .* weights; accepted: "):
        call(SlabTensor.split(normal(1, 4, 6, 4, 4), 2))


@torch.no_grad()
@pytest.mark.parametrize("parts", [1, 3])
def test_neither_what_comes_first_nor_what_comes_last_is_rounded(parts: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 32, 1), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv3d(32, 1, 3, padding=1))
    exact = copy.deepcopy(network).double()
    half = lowered(copy.deepcopy(network), torch.bfloat16)
    x = normal(1, 1, 9, 8, 7)
    h = exact[0](x.double()).bfloat16().double()  # the only numbers that are stored, hence rounded
    found = in_format(half, torch.bfloat16)(SlabTensor.split(x, parts)).gather()
    assert found.dtype == torch.float32
    assert off_by(found, exact[1:](h)) <= 1e-3  # a few numbers lie on the edge between two of bfloat16
    inner = SlabTensor.split(h.bfloat16(), parts)
    assert off_by(half[1:](inner).float().gather(), exact[1:](h)) <= 3e-6


@torch.no_grad()
def test_conversions_of_a_users_network_mean_what_they_say() -> None:
    x = 3 * normal(1, 2, 6, 4, 4)
    slabs = SlabTensor.split(x, 3)
    torch.testing.assert_close(slabs.to(torch.int32).float().gather(), x.int().float())
    torch.testing.assert_close(slabs.double().float().gather(), x)
    torch.testing.assert_close(slabs.bfloat16().gather(), x.bfloat16())
    assert torch.equal(slabs.bfloat16().float().gather(), x)  # rounding that would be undone is not done
    torch.testing.assert_close((slabs.bfloat16() + 0).float().gather(), (x.bfloat16() + 0).float())


def test_lowered_keeps_float32_where_channels_are_few_and_in_norms() -> None:
    network = lowered(Autoencoder(AutoencoderConfig()), torch.bfloat16)
    kept = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    assert kept == kept_in_float32(network)
    narrow = {name.rsplit(".", 1)[0] for name in kept if "norm" not in name}
    ends = {"encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"}
    assert narrow == ends | {"to_mean", "to_log_variance", "from_latent"}
    assert min(AutoencoderConfig().channels) >= NARROW_CHANNELS
    whole = lowered(
        Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=4)), torch.float32
    )
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}


def test_a_bundle_is_loaded_as_lowered_says() -> None:
    loaded = load_bundle("ct-small", dtype=torch.bfloat16, narrow_in_float32=True).unet.state_dict()
    expected = lowered(load_bundle("ct-small").unet, torch.bfloat16).state_dict()
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    plain = load_bundle("ct-small", dtype=torch.bfloat16).unet
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_plan_in_half_precision_gives_what_one_slab_gives() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=(16, 32), num_res_blocks=(1, 1), norm_groups=8)
    network = lowered(Autoencoder(config), torch.bfloat16)
    work = in_format(network.decode, torch.bfloat16)
    latent = normal(1, 4, 64, 24, 24)
    plan = plan_memory(work, latent.shape, 64 << 20)
    assert plan.parts > 1
    whole, split = run_split(work, latent), run_split(work, latent, plan)
    assert whole.dtype == split.dtype == torch.float32
    assert off_by(split, whole.double()) <= 2 * HALF_ULP


def nothing(bundle: Bundle) -> None:
    """The work of a fit without a limit of memory, which plans nothing."""


def test_bfloat16_keeps_a_decoded_ct_within_2_hu_of_float32() -> None:
    grid = Grid.centered((64, 48, 48), (5.0, 5.0, 5.0))
    rng = np.random.default_rng(0)
    volume = render_phantom(draw_phantom("chest", grid, rng), rng)
    found, latent = [], None
    for precision in ("float32", "bfloat16"):
        compute, dtype = Compute(precision=precision), getattr(torch, precision)
        bundle = load_bundle("ct-small", "cpu", dtype, narrow_in_float32=dtype != torch.float32)
        autoencoder = fit(bundle, compute, nothing).autoencoder
        latent = latent or encode(autoencoder, volume)
        found.append(decode(autoencoder, latent).array.astype(float))
    difference = np.sqrt(np.mean((found[0] - found[1]) ** 2))
    assert 0.1 < difference < 2.0


@pytest.mark.parametrize(
    ("has_amx", "asked", "expected"),
    [
        (True, {}, "bfloat16"),
        (False, {}, "float32"),
        (True, {"precision": "float32"}, "float32"),
        (False, {"precision": "bfloat16"}, "bfloat16"),
        (True, {"device": "cuda"}, "float32"),
    ],
)
def test_the_default_precision_is_the_fastest_and_is_written_down(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, asked: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(machine, "prefers_bfloat16", lambda: has_amx)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.fill_defaults(Compute(**asked)).precision == expected


def test_a_bundle_of_another_format_than_the_request_is_refused() -> None:
    bundle = fit(load_bundle("ct-small"), Compute(precision="bfloat16"), nothing)
    with pytest.raises(
        InvalidRequestError, match=r"computes in bfloat16, the unet .* in float32; accepted: Compute\(precision="
    ):
        _ = bundle.unet


def test_a_network_of_narrow_convolutions_alone_is_all_float32_and_runs() -> None:
    network = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=4))
    info = load_bundle("ct-small").info.model_copy(update={"scheduler": None})
    bundle = Bundle.of(info, {"autoencoder": lowered(network.requires_grad_(False), torch.bfloat16)})
    fitted = fit(bundle, Compute(precision="bfloat16"), nothing)
    volume = fitted.autoencoder.decode(normal(1, 4, 8, 8, 8))
    assert volume.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_dilated_convolution_with_stride_and_padding_does_not_crash(groups: int) -> None:
    x = normal(2, 4, 5, 3, 1)
    weight, bias = normal(6, 4 // groups, 3, 3, 1, seed=1), normal(6, seed=2)
    where = Where([2, 2, 2], [0, 1, 1], [2, 2, 2], groups)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), *where)
    found = kernels.convolve(x, kernels.TransformedWeight(weight), bias, where, torch.float32)
    assert off_by(found, exact) <= 1e-6


def test_bfloat16_is_multiplied_in_float32_where_onednn_may_not_use_the_instructions_for_it() -> None:
    code = (
        "import torch\n"
        "from maisi.splitting import SlabTensor\n"
        "network = torch.nn.Conv3d(32, 32, 3, padding=1).to(torch.bfloat16).requires_grad_(False)\n"
        "x = torch.randn(1, 32, 6, 5, 4).to(torch.bfloat16)\n"
        "with torch.inference_mode():\n"
        "    print(tuple(network(SlabTensor.split(x, parts=2)).gather().shape))"
    )
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=limited)
    assert done.stdout.strip() == "(1, 32, 6, 5, 4)", done.stderr
