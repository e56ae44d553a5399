"""The ControlNet: a silent start, its label map, and what does not fit."""

import pytest
import torch
from pydantic import ValidationError

from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

SMALL = {
    "channels": (16, 32),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 16,
    "norm_groups": 8,
    "num_modalities": 4,
}
UNET = UNetConfig(**SMALL, spacing=True)
CONTROLNET = ControlNetConfig(**SMALL, embedding_widths=(8, 16))


def drawn(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def draw_bits(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).float()


def test_a_fresh_controlnet_leaves_the_prediction_as_it_is():
    unet = drawn(DenoisingUNet(UNET))
    controlnet = ControlNet.from_unet(unet, CONTROLNET)
    latent, t, modality = torch.randn(1, 4, 4, 4, 4), torch.tensor([500.0]), torch.tensor([2])
    embedding = controlnet.embed_condition(draw_bits(1, 8, 8, 8, 8))
    residuals = controlnet(latent, t, embedding, modality=modality)
    assert not any(tensor.any() for tensor in (*residuals.skips, residuals.middle))
    told = {"spacing": torch.ones(1, 3), "modality": modality}
    assert torch.equal(unet(latent, t, **told, residuals=residuals), unet(latent, t, **told))


def test_a_controlnet_takes_over_what_has_the_name_and_shape_of_the_unet():
    unet = drawn(DenoisingUNet(UNET))
    theirs, ours = unet.state_dict(), ControlNet.from_unet(unet, CONTROLNET).state_dict()
    shared = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    # Only the weights that read the embedding differ in shape: the U-Net's embedding also holds the spacing.
    reshaped = [name for name in ours if name in theirs and name not in shared]
    assert reshaped
    assert all(name.endswith(".time.weight") for name in reshaped)
    assert theirs["down.0.blocks.0.time.weight"].shape == (16, 128)
    assert ours["down.0.blocks.0.time.weight"].shape == (16, 64)


def test_a_controlnet_does_not_share_memory_with_its_unet():
    unet = drawn(DenoisingUNet(UNET))
    before = unet.conv_in.weight.clone()
    controlnet = ControlNet.from_unet(unet, CONTROLNET)
    with torch.no_grad():
        controlnet.conv_in.weight.zero_()
    assert torch.equal(unet.conv_in.weight, before)
    assert all(parameter.requires_grad for parameter in controlnet.parameters())


@pytest.mark.parametrize(("widths", "factor"), [((8,), 1), ((8, 32), 2), ((8, 32, 64), 4)])
def test_the_number_of_widths_decides_how_much_larger_the_label_map_is(widths, factor):
    config = CONTROLNET.model_copy(update={"embedding_widths": widths})
    bits = draw_bits(1, 8, 4 * factor, 2 * factor, 6 * factor)
    assert config.condition_factor == factor
    assert drawn(ControlNet(config)).embed_condition(bits).shape == (1, 16, 4, 2, 6)


def test_residuals_fit_the_skip_connections_and_grow_with_the_scale():
    controlnet = drawn(ControlNet(CONTROLNET))
    latent, t, modality = torch.randn(2, 4, 4, 2, 6), torch.tensor([1.0, 999.0]), torch.tensor([0, 3])
    embedding = controlnet.embed_condition(draw_bits(2, 8, 8, 4, 12))
    full = controlnet(latent, t, embedding, modality=modality)
    half = controlnet(latent, t, embedding, modality=modality, scale=0.5)
    fine, coarse = (4, 2, 6), (2, 1, 3)
    assert [tuple(s.shape[1:]) for s in full.skips] == [(16, *fine), (16, *fine), (16, *coarse), (32, *coarse)]
    assert full.middle.shape == (2, 32, *coarse)
    for a, b in zip((*full.skips, full.middle), (*half.skips, half.middle), strict=True):
        torch.testing.assert_close(0.5 * a, b)


def test_another_label_map_gives_other_residuals():
    controlnet = drawn(ControlNet(CONTROLNET))
    latent, t, modality = torch.randn(1, 4, 4, 4, 4), torch.tensor([500.0]), torch.tensor([1])
    bits = draw_bits(1, 8, 8, 8, 8)
    first, second = (
        controlnet(latent, t, controlnet.embed_condition(b), modality=modality).middle for b in (bits, 1 - bits)
    )
    assert not torch.allclose(first, second, atol=1e-4)


def test_a_label_map_off_the_latents_grid_is_refused_with_the_size_it_must_have():
    controlnet = drawn(ControlNet(CONTROLNET))
    embedding = controlnet.embed_condition(draw_bits(1, 8, 8, 8, 12))
    with pytest.raises(InvalidGridError, match=r"size \(8, 8, 12\) does not belong .* it must be \(8, 8, 8\)"):
        controlnet(torch.randn(1, 4, 4, 4, 4), torch.tensor([1.0]), embedding, modality=torch.tensor([1]))


def test_a_label_map_of_odd_size_or_of_other_channels_is_refused():
    controlnet = drawn(ControlNet(CONTROLNET))
    with pytest.raises(InvalidGridError, match=r"\(8, 9, 8\) is not a multiple of 2"):
        controlnet.embed_condition(draw_bits(1, 8, 8, 9, 8))
    with pytest.raises(InvalidRequestError, match="1 channels, not 8"):
        controlnet.embed_condition(draw_bits(1, 1, 8, 8, 8))


def test_a_controlnet_of_other_levels_than_the_unet_is_refused():
    other = CONTROLNET.model_copy(update={"num_res_blocks": (2, 1)})
    with pytest.raises(InvalidRequestError, match=r"num_res_blocks of the ControlNet is \(2, 1\).*\(1, 1\)"):
        ControlNet.from_unet(DenoisingUNet(UNET), other)


def test_a_missing_modality_is_named():
    controlnet = drawn(ControlNet(CONTROLNET))
    with pytest.raises(InvalidRequestError, match="'modality', which is missing"):
        controlnet(torch.randn(1, 4, 4, 4, 4), torch.tensor([1.0]), torch.zeros(1, 16, 4, 4, 4))


def test_no_embedding_width_is_refused():
    with pytest.raises(ValidationError, match="at least one width"):
        ControlNetConfig(embedding_widths=())
