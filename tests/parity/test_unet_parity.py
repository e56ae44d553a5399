"""Our U-Net against MONAI's, same weights."""

import pytest
import torch
from oracle_networks import (
    SMALL,
    ask_unet,
    check,
    draw,
    draw_conditions,
    draw_residuals,
    drawn_network,
    oracle_of,
    relative_error,
)

from maisi.bundle.upstream import RELEASED
from maisi.networks.unet import DenoisingUNet, UNetConfig

CONFIGS = {
    "small": SMALL["unet"],
    "small-updown": SMALL["updown-unet"],
    "small-context": SMALL["context-unet"],
    "released-ddpm": RELEASED["ddpm-ct"].unet,
    "released-rflow": RELEASED["rflow-ct"].unet,
    "released-mask": RELEASED["mask-diffusion"].unet,
}


def prediction_errors(
    config: UNetConfig, dtype: torch.dtype, batch: int, steered: tuple[bool, ...]
) -> dict[str, float]:
    """Relative error of the prediction with ControlNet residuals and without."""
    ours = drawn_network(config, dtype)
    reference = oracle_of(ours)
    size = [n * config.size_multiple for n in (2, 3, 1)]
    latent = draw(batch, config.in_channels, *size, dtype=dtype)
    t = torch.tensor([637.25, 3.0])[:batch]
    conditions = draw_conditions(config, batch, dtype)
    errors = {}
    with torch.inference_mode():
        for steer in steered:
            residuals = draw_residuals(config, batch, size, dtype) if steer else None
            got = ours(latent, t, **conditions, residuals=residuals)
            expected = ask_unet(reference, latent, t, conditions, residuals)
            errors["steered" if steer else "free"] = relative_error(got, expected)
    return errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_equal_those_of_monai(name, dtype):
    small = name.startswith("small")
    # The steered pass goes through everything; the released networks are slow enough with one.
    check(prediction_errors(CONFIGS[name], dtype, 2 if small else 1, (True, False) if small else (True,)), dtype)


def test_a_middle_block_that_misses_the_last_residual_is_told_apart():
    sighted = drawn_network(SMALL["unet"], torch.float32)
    blind = DenoisingUNet(SMALL["unet"].model_copy(update={"middle_sees_residual": False})).eval()
    blind.load_state_dict(sighted.state_dict())
    size = (8, 4, 8)
    latent, t = draw(1, 4, *size, dtype=torch.float32), torch.tensor([500.0])
    conditions = draw_conditions(SMALL["unet"], 1, torch.float32)
    residuals = draw_residuals(SMALL["unet"], 1, size, torch.float32)
    with torch.inference_mode():
        expected = ask_unet(oracle_of(sighted), latent, t, conditions, residuals)
        got = blind(latent, t, **conditions, residuals=residuals)
    assert relative_error(got, expected) > 1e-2


def test_an_integer_time_gives_the_same_prediction_as_in_monai():
    config = SMALL["unet"]
    ours = drawn_network(config, torch.float32)
    latent = draw(1, 4, 4, 8, 12, dtype=torch.float32)
    conditions = draw_conditions(config, 1, torch.float32)
    t = torch.tensor([999])
    with torch.inference_mode():
        expected = ask_unet(oracle_of(ours), latent, t, conditions, None)
        assert relative_error(ours(latent, t, **conditions), expected) <= 1e-4
