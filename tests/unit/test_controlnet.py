"""The ControlNet: a silent start, its label map, and what does not fit."""

import copy

import pytest
import torch
from pydantic import ValidationError

from maisi.anatomy.bits import label_bits
from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.networks.controlnet import ControlNet, ControlNetConfig, occupancies
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.splitting.precision import lowered
from maisi.splitting.slabs import SlabTensor

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
SOFT = ControlNetConfig(**SMALL, embedding_widths=(8, 16), occupancy_bits=True, occupancy_ids=(26, 8))


def drawn(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def draw_bits(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CONTROLNET, SOFT], ids=["bits", "occupancies"])
@torch.no_grad()
def test_a_fresh_controlnet_leaves_the_prediction_as_it_is_to_the_bit(config: ControlNetConfig, half: bool):
    unet = drawn(DenoisingUNet(UNET))
    controlnet = ControlNet.from_unet(unet, config)
    latent, t, modality = torch.randn(1, 4, 8, 8, 8), torch.tensor([500.0]), torch.tensor([2])
    told = {"spacing": torch.ones(1, 3), "modality": modality}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        embedding = controlnet.embed_condition(draw_bits(1, 8, 16, 16, 16))
        residuals = controlnet(latent, t, embedding, modality=modality)
        steered, alone = unet(latent, t, **told, residuals=residuals), unet(latent, t, **told)
    assert not any(tensor.any() for tensor in (*residuals.skips, residuals.middle))
    assert torch.equal(steered, alone)
    assert alone.dtype == (torch.bfloat16 if half else torch.float32)


def test_occupancies_are_the_fractions_of_latent_voxels():
    ids = torch.randint(0, 256, (1, 8, 8, 8), generator=torch.Generator().manual_seed(3))
    ids[0, :3, :3, :2] = 26
    seen = occupancies(label_bits(ids), SOFT)
    blocks = ids.unfold(1, 2, 2).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    bits = [(blocks >> k & 1).float().mean(-1) for k in range(8)]
    structures = [(blocks == id).float().mean(-1) for id in SOFT.occupancy_ids]
    assert torch.equal(seen, torch.stack([*bits, *structures], dim=1))
    assert seen[0, 8].amax() == 1.0


def test_a_structure_smaller_than_a_latent_voxel_is_seen_through_its_occupancy():
    controlnet = drawn(ControlNet(SOFT))
    with torch.no_grad():
        for part in (controlnet.condition_embedding.conv_in, *controlnet.condition_embedding.convs):
            part.weight.zero_()  # nothing comes through the strided convolutions
    empty = torch.full((1, 8, 8, 8), 200)
    small = empty.clone()
    small[0, 4, 4, 4] = 26
    with_, without = (controlnet.embed_condition(label_bits(each)) for each in (small, empty))
    difference = (with_ - without).abs().amax((0, 1))
    assert difference[1:4, 1:4, 1:4].amin() > 0
    assert difference[0].amax() == 0


def test_without_occupancies_there_is_no_other_weight():
    plain, soft = ControlNet(CONTROLNET).state_dict(), ControlNet(SOFT).state_dict()
    more = {"condition_embedding.occupancy.weight", "condition_embedding.occupancy.bias"}
    assert set(soft) - set(plain) == more
    assert not set(plain) - set(soft)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_occupancies_of_a_split_label_map_are_those_of_the_whole(dtype: torch.dtype):
    exact = drawn(ControlNet(SOFT))
    controlnet = lowered(copy.deepcopy(exact), dtype)
    bits = label_bits(torch.randint(0, 256, (1, 12, 8, 8), generator=torch.Generator().manual_seed(4)))
    slabs = SlabTensor.split(bits.to(dtype), axis=0, parts=3)
    assert torch.equal(occupancies(slabs, SOFT).gather(), occupancies(bits, SOFT).to(dtype))
    whole = exact.embed_condition(bits)
    budget = 1e-5 if dtype == torch.float32 else 0.05  # three roundings to 8 bits of sums of about 1
    torch.testing.assert_close(controlnet.embed_condition(slabs).gather().float(), whole, atol=budget, rtol=budget)


@pytest.mark.parametrize("ids", [(0,), (256,), (26, 26)])
def test_occupancies_of_ids_that_bits_cannot_spell_are_refused(ids: tuple[int, ...]):
    with pytest.raises(ValidationError, match="different ids from 1 to 255"):
        ControlNetConfig(occupancy_ids=ids)


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
