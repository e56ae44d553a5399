"""The law of splitting: for any length, any slabs, any axis, split equals whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.splitting import SlabTensor, gather
from maisi.splitting.interpret import SplitSettings

LEVELS = {
    "channels": (4, 8, 8),
    "num_res_blocks": (1, 1, 1),
    "attention_levels": (False, False, True),
    "head_channels": 4,
    "norm_groups": 2,
}
CASES = settings(deadline=None, max_examples=12, derandomize=True)


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """Weights that hide nothing: also those that start at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1)
    return network.eval().requires_grad_(False)


SMALL = {"channels": (4, 8, 8), "num_res_blocks": (1, 1, 1), "norm_groups": 2}
AUTOENCODERS = {
    up: filled(Autoencoder(AutoencoderConfig(**SMALL, upsampling=up))) for up in ("trilinear", "transposed")
}
UNETS = {
    updown: filled(DenoisingUNet(UNetConfig(**LEVELS, resblock_updown=updown, context_channels=3 if updown else None)))
    for updown in (False, True)
}
CONTROLNETS = {
    updown: filled(
        ControlNet(
            ControlNetConfig(
                **LEVELS, resblock_updown=updown, context_channels=3 if updown else None, embedding_widths=(2, 4)
            )
        )
    )
    for updown in (False, True)
}


@st.composite
def cuts(draw: st.DrawFn, rows: int) -> list[int]:
    """Sizes of slabs, down to single rows."""
    sizes = []
    while sum(sizes) < rows:
        sizes.append(draw(st.integers(1, rows - sum(sizes))))
    return sizes


def step(x: Tensor, dim: int) -> Tensor:
    """Air, then body, along the axis that is split."""
    body = torch.arange(x.shape[dim]) > x.shape[dim] // 3
    return x * 0.05 + body.to(x).reshape(*[-1 if d == dim else 1 for d in range(5)])


INPUTS = {"noise": lambda x, dim: x, "step": step, "constant": lambda x, dim: torch.full_like(x, 0.75)}
Drawn = tuple[Tensor, int, list[int], torch.dtype]


def drawn(data: st.DataObject, multiple: int, longest: int, channels: int) -> Drawn:
    axis, dtype = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([torch.float32, torch.float64]))
    size = [multiple * n for n in (2, 1, 1)]
    size[axis] = multiple * data.draw(st.integers(1, longest))
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    x = INPUTS[data.draw(st.sampled_from(sorted(INPUTS)))](x, 2 + axis)
    return x, axis, data.draw(cuts(size[axis])), dtype


def assert_equal(split: Tensor, whole: Tensor) -> None:
    """To 1e-5 of the result's range in float32, 1e-10 in float64."""
    spread = max(float(whole.max() - whole.min()), 1e-2 * float(whole.abs().max()))
    tolerance = 1e-5 if whole.dtype == torch.float32 else 1e-10
    assert split.shape == whole.shape
    assert float((split - whole).abs().max()) <= tolerance * spread


@CASES
@given(st.data(), st.sampled_from(sorted(AUTOENCODERS)))
def test_any_split_decodes_as_the_whole(data: st.DataObject, upsampling: str) -> None:
    x, axis, sizes, dtype = drawn(data, 1, 9, 4)
    network = AUTOENCODERS[upsampling].to(dtype)
    assert_equal(network.decode(SlabTensor.split(x, axis=axis, sizes=sizes)).gather(), network.decode(x))


@CASES
@given(st.data())
def test_any_split_encodes_as_the_whole(data: st.DataObject) -> None:
    x, axis, sizes, dtype = drawn(data, 4, 6, 1)
    network = AUTOENCODERS["trilinear"].to(dtype)
    split = gather(*network.encode(SlabTensor.split(x, axis=axis, sizes=sizes)))
    for part, whole in zip(split, network.encode(x), strict=True):
        assert_equal(part, whole)


@CASES
@given(st.data(), st.booleans())
def test_any_split_denoises_as_the_whole(data: st.DataObject, updown: bool) -> None:
    x, axis, sizes, dtype = drawn(data, 4, 3, 4)
    unet, controlnet = UNETS[updown].to(dtype), CONTROLNETS[updown].to(dtype)
    t = torch.tensor([400.0])
    context = torch.ones(1, 2, 3, dtype=dtype) if updown else None
    bits = (torch.rand(1, 8, *[2 * n for n in x.shape[2:]], generator=torch.Generator().manual_seed(2)) > 0.5).to(dtype)
    embedding = controlnet.embed_condition(bits)
    doubled = [2 * n for n in sizes]
    assert_equal(controlnet.embed_condition(SlabTensor.split(bits, axis=axis, sizes=doubled)).gather(), embedding)

    def denoise(latent: Tensor) -> Tensor:
        residuals = controlnet(latent, t, embedding, context=context, scale=0.5)
        return unet(latent, t, context=context, residuals=residuals)

    assert_equal(denoise(SlabTensor.split(x, axis=axis, sizes=sizes)).gather(), denoise(x))


@CASES
@given(st.data(), st.integers(1, 4000))
def test_the_size_of_a_step_changes_nothing(data: st.DataObject, step_bytes: int) -> None:
    x, axis, _, dtype = drawn(data, 1, 7, 4)
    network = AUTOENCODERS["trilinear"].to(dtype)
    split = network.decode(SlabTensor.split(x, axis=axis, settings=SplitSettings(step_bytes=step_bytes)))
    assert_equal(split.gather(), network.decode(x))


def test_a_constant_input_shows_no_seam() -> None:
    network = AUTOENCODERS["trilinear"].double()
    x = torch.full((1, 1, 24, 8, 8), 0.3, dtype=torch.float64)
    split = gather(*network.encode(SlabTensor.split(x, sizes=[4, 9, 11])))[0]
    steps, whole = split.diff(dim=2), network.encode(x)[0].diff(dim=2)
    assert float((steps - whole).abs().max()) < 1e-12


def test_a_large_mean_with_a_tiny_deviation_is_as_right_as_unsplit() -> None:
    network = AUTOENCODERS["trilinear"]
    x = 100 + 1e-2 * torch.randn(1, 1, 24, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = network.double().encode(x)[0]
    network.float()
    spread = float(truth.max() - truth.min())
    whole = float((network.encode(x.float())[0] - truth).abs().max()) / spread
    split = float((gather(*network.encode(SlabTensor.split(x.float(), 7)))[0] - truth).abs().max()) / spread
    assert split <= max(1e-5, 1.5 * whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_may_have_no_row_left_after_a_stride(axis: int) -> None:
    network = AUTOENCODERS["trilinear"].double()
    x = torch.randn(1, 1, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    split = gather(*network.encode(SlabTensor.split(x, 8, axis=axis)))
    for part, whole in zip(split, network.encode(x), strict=True):
        assert_equal(part, whole)
