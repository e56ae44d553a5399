"""The denoising U-Net: what it accepts, what it refuses, and what it is made of."""

import pytest
import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode, resolve_name

from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.networks.attention import attend
from maisi.networks.unet import BackboneConfig, DenoisingUNet, Residuals, UNetConfig, time_features

SMALL = {
    "channels": (16, 32),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 16,
    "norm_groups": 8,
}
CONDITIONED = UNetConfig(**SMALL, regions=True, spacing=True, num_modalities=4)
WITH_CONTEXT = UNetConfig(**SMALL, context_channels=5)

# What a network may do to an activation, if splitting is to carry it out slab by slab.
SPLITTABLE = {
    "torch.nn.functional.conv3d",
    "torch.nn.functional.group_norm",
    "torch.nn.functional.silu",
    "torch.nn.functional.interpolate",
    "torch.nn.functional.avg_pool3d",
    "torch.cat",
    "torch.Tensor.add",
    "torch.Tensor.mul",
    # attention, on tokens
    "torch.Tensor.contiguous",
    "torch.Tensor.flatten",
    "torch.Tensor.unflatten",
    "torch.Tensor.transpose",
    "torch.Tensor.chunk",
    "torch.nn.functional.linear",
    "torch.nn.functional.layer_norm",
    "torch.nn.functional.gelu",
    "torch.nn.functional.scaled_dot_product_attention",
}


def drawn(config: UNetConfig, seed: int = 0) -> DenoisingUNet:
    torch.manual_seed(seed)
    unet = DenoisingUNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter += 0.1 * torch.randn_like(parameter)  # nothing stays at zero
    return unet


def conditions_for(batch: int) -> dict[str, torch.Tensor]:
    return {
        "top_region": torch.eye(4)[torch.arange(batch) % 4] * 100,
        "bottom_region": torch.eye(4)[(torch.arange(batch) + 1) % 4] * 100,
        "spacing": torch.tensor([[100.0, 150.0, 250.0]]).repeat(batch, 1),
        "modality": torch.arange(batch) % 4,
    }


class Watch(TorchFunctionMode):
    """Notes every operation on a tensor of five dimensions, or of tokens."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if any(t.dim() in (3, 4, 5) for t in tensors) and not str(resolve_name(function)).endswith("__get__"):
            self.names.add(resolve_name(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(2, 2, 2), (4, 2, 6)])
@pytest.mark.parametrize("config", [CONDITIONED, CONDITIONED.model_copy(update={"resblock_updown": True})])
def test_a_prediction_has_the_shape_of_its_latent(config, size):
    latent = torch.randn(2, 4, *size)
    prediction = drawn(config)(latent, torch.tensor([1.0, 999.0]), **conditions_for(2))
    assert prediction.shape == latent.shape
    assert prediction.isfinite().all()


@pytest.mark.parametrize("condition", ["top_region", "bottom_region", "spacing", "modality"])
def test_every_condition_changes_the_prediction(condition):
    unet = drawn(CONDITIONED)
    latent, t, conditions = torch.randn(1, 4, 4, 4, 4), torch.tensor([500.0]), conditions_for(1)
    changed = conditions | {condition: conditions_for(2)[condition][1:] + (25 if condition == "spacing" else 0)}
    assert not torch.allclose(unet(latent, t, **conditions), unet(latent, t, **changed), atol=1e-4)


def test_time_context_and_residuals_change_the_prediction():
    unet = drawn(WITH_CONTEXT)
    latent, t, context = torch.randn(1, 4, 4, 4, 4), torch.tensor([500.0]), torch.randn(1, 1, 5)
    plain = unet(latent, t, context=context)
    sizes = zip([16, 16, 16, 32], [4, 4, 2, 2], strict=True)
    residuals = Residuals(tuple(torch.ones(1, c, n, n, n) for c, n in sizes), torch.ones(1, 32, 2, 2, 2))
    assert not torch.allclose(plain, unet(latent, t + 100, context=context), atol=1e-4)
    assert not torch.allclose(plain, unet(latent, t, context=context + 1), atol=1e-4)
    assert not torch.allclose(plain, unet(latent, t, context=context, residuals=residuals), atol=1e-4)


def test_members_of_a_batch_do_not_see_each_other():
    unet = drawn(CONDITIONED)
    latent, t, conditions = torch.randn(2, 4, 4, 2, 4), torch.tensor([10.0, 700.0]), conditions_for(2)
    alone = unet(latent[1:], t[1:], **{name: value[1:] for name, value in conditions.items()})
    torch.testing.assert_close(unet(latent, t, **conditions)[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_predicts_zero_whatever_it_is_told():
    prediction = DenoisingUNet(WITH_CONTEXT)(
        torch.randn(1, 4, 2, 2, 2), torch.tensor([3.0]), context=torch.randn(1, 1, 5)
    )
    assert not prediction.any()


def test_residuals_reach_the_middle_block_and_gradients_flow_through_them():
    unet = drawn(CONDITIONED)
    latent, t = torch.randn(1, 4, 4, 4, 4), torch.tensor([500.0])
    skips = [
        torch.zeros(1, c, n, n, n, requires_grad=True) for c, n in zip([16, 16, 16, 32], [4, 4, 2, 2], strict=True)
    ]
    middle = torch.zeros(1, 32, 2, 2, 2, requires_grad=True)
    unet(latent, t, **conditions_for(1), residuals=Residuals(tuple(skips), middle)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (*skips, middle))


def test_a_latent_that_cannot_be_halved_is_refused_with_the_nearest_sizes():
    with pytest.raises(InvalidGridError, match=r"\(4, 5, 4\).*multiple of 2.*\(4, 4, 4\) or \(4, 6, 4\)"):
        drawn(CONDITIONED)(torch.randn(1, 4, 4, 5, 4), torch.tensor([1.0]), **conditions_for(1))


def test_a_latent_smaller_than_one_step_is_told_the_smallest_size_twice():
    with pytest.raises(InvalidGridError, match=r"nearest: \(8, 8, 8\) or \(8, 8, 8\)"):
        UNetConfig().check_size((1, 7, 8))


@pytest.mark.parametrize("missing", ["top_region", "bottom_region", "spacing", "modality"])
def test_a_missing_condition_is_named(missing):
    conditions = {name: value for name, value in conditions_for(1).items() if name != missing}
    with pytest.raises(InvalidRequestError, match=f"'{missing}', which is missing"):
        drawn(CONDITIONED)(torch.randn(1, 4, 2, 2, 2), torch.tensor([1.0]), **conditions)


def test_a_condition_that_the_network_does_not_know_is_refused():
    with pytest.raises(InvalidRequestError, match="not conditioned on 'spacing'"):
        DenoisingUNet(UNetConfig(**SMALL))(torch.randn(1, 4, 2, 2, 2), torch.tensor([1.0]), spacing=torch.ones(1, 3))


def test_residuals_of_another_number_of_levels_are_refused():
    residuals = Residuals((torch.zeros(1, 16, 4, 4, 4),), torch.zeros(1, 32, 2, 2, 2))
    with pytest.raises(InvalidRequestError, match="1 ControlNet residuals for 4 skip connections"):
        drawn(CONDITIONED)(torch.randn(1, 4, 4, 4, 4), torch.tensor([1.0]), **conditions_for(1), residuals=residuals)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_res_blocks": (1, 1, 1)}, "one entry a level"),
        ({"channels": ()}, "one entry a level"),
        ({"num_res_blocks": (1, 0)}, "without a block"),
        ({"channels": (20, 32)}, r"\[20\] are not divisible by norm_groups 8"),
        ({"channels": (15, 30), "norm_groups": 15, "head_channels": 15}, "even number"),
        ({"head_channels": 24}, r"\[32\] are not divisible by head_channels 24"),
        ({"dropout": 0.1}, "Extra inputs"),
    ],
)
def test_an_impossible_configuration_says_what_is_wrong(settings, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(**(SMALL | settings))


def test_skip_widths_are_those_of_the_released_network():
    widths = [64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512]
    assert BackboneConfig().skip_channels == widths
    assert UNetConfig(regions=True, spacing=True).embedding_channels == 1024
    assert UNetConfig().size_multiple == 8


def test_time_features_are_cosines_then_sines_of_falling_frequency():
    features = time_features(torch.tensor([0.0, 250.5]), 64)
    assert features.shape == (2, 64)
    assert features[0].tolist() == [1.0] * 32 + [0.0] * 32
    slowest = torch.tensor(250.5 * 10000 ** (-31 / 32))
    torch.testing.assert_close(features[1, [31, 63]], torch.stack([slowest.cos(), slowest.sin()]))


def test_attention_heads_take_adjoining_channels():
    q, k, v = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    half = slice(4, 8)
    weights = torch.softmax(q[..., half] @ k[..., half].transpose(1, 2) / 2, dim=-1)  # 2 = sqrt(4)
    torch.testing.assert_close(attend(q, k, v, 4)[..., half], weights @ v[..., half])


@pytest.mark.parametrize(
    "config", [CONDITIONED, CONDITIONED.model_copy(update={"resblock_updown": True}), WITH_CONTEXT]
)
def test_a_network_does_to_activations_only_what_splitting_can_take_over(config):
    unet = drawn(config)
    conditions = {"context": torch.randn(1, 1, 5)} if config.context_channels else conditions_for(1)
    latent, t = torch.randn(1, 4, 4, 4, 4), torch.tensor([5.0])
    with Watch() as watch:
        unet(latent, t, **conditions)
    assert watch.names <= SPLITTABLE
