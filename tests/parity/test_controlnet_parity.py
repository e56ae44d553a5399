"""Our ControlNet against MONAI's, same weights, and both steering a U-Net."""

import pytest
import torch
from monai.networks.utils import copy_model_state
from oracle_networks import (
    SMALL,
    ask_unet,
    check,
    draw,
    draw_bits,
    draw_conditions,
    drawn_network,
    meta_oracle,
    oracle_of,
    relative_error,
)

from maisi.bundle.upstream import RELEASED, to_upstream
from maisi.networks.controlnet import ControlNet, ControlNetConfig

CONFIGS = {
    "small": SMALL["controlnet"],
    "small-updown": SMALL["updown-controlnet"],
    "released-ddpm": RELEASED["ddpm-ct"].controlnet,
    "released-rflow": RELEASED["rflow-ct"].controlnet,
}


def modality_of(config: ControlNetConfig, batch: int) -> torch.Tensor | None:
    return None if config.num_modalities is None else torch.arange(1, 1 + batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_residuals_equal_those_of_monai(name, dtype):
    config = CONFIGS[name]
    batch = 2 if name.startswith("small") else 1
    ours = drawn_network(config, dtype)
    reference = oracle_of(ours)
    size = [n * config.size_multiple for n in (2, 1, 1)]
    latent, t = draw(batch, config.in_channels, *size, dtype=dtype), torch.tensor([637.25, 3.0])[:batch]
    bits, modality = draw_bits(config, batch, size, dtype), modality_of(config, batch)

    with torch.inference_mode():
        got = ours(latent, t, ours.embed_condition(bits), modality=modality, scale=0.7)
        skips, middle = reference(latent, t, bits, conditioning_scale=0.7, class_labels=modality)
        errors = [relative_error(a, b) for a, b in zip((*got.skips, got.middle), (*skips, middle), strict=True)]
    check(dict(enumerate(errors)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_steered_prediction_equals_that_of_monai(dtype):
    unet, controlnet = drawn_network(SMALL["unet"], dtype), drawn_network(SMALL["controlnet"], dtype)
    size = (8, 12, 4)
    latent, t = draw(2, 4, *size, dtype=dtype), torch.tensor([900.5, 41.0])
    bits, modality = draw_bits(SMALL["controlnet"], 2, size, dtype), modality_of(SMALL["controlnet"], 2)
    conditions = draw_conditions(SMALL["unet"], 2, dtype) | {"modality": modality}

    with torch.inference_mode():
        residuals = controlnet(latent, t, controlnet.embed_condition(bits), modality=modality)
        got = unet(latent, t, **conditions, residuals=residuals)
        skips, middle = oracle_of(controlnet)(latent, t, bits, class_labels=modality)
        expected = ask_unet(oracle_of(unet), latent, t, conditions, type(residuals)(tuple(skips), middle))
    error = relative_error(got, expected)
    check({"prediction": error}, dtype)


@pytest.mark.parametrize(("model", "num_copied"), [("ddpm-ct", 148), ("rflow-ct", 180)])
def test_a_released_controlnet_starts_with_the_tensors_that_monai_would_copy(model, num_copied):
    release = RELEASED[model]
    with torch.device("meta"):
        unet_state = meta_oracle(release.unet).state_dict()
    _, copied, _ = copy_model_state(meta_oracle(release.controlnet), unet_state, inplace=False)
    with torch.device("meta"):
        theirs = to_upstream(ControlNet(release.controlnet))
    same_shape = {name for name in theirs if name in unet_state and unet_state[name].shape == theirs[name].shape}
    assert set(copied) == same_shape
    assert len(same_shape) == num_copied


def test_a_controlnet_made_from_a_unet_equals_the_one_that_monai_makes():
    unet = drawn_network(SMALL["unet"], torch.float32)
    ours = ControlNet.from_unet(unet, SMALL["controlnet"])
    fresh = ControlNet(SMALL["controlnet"]).state_dict()
    state, copied, untouched = copy_model_state(oracle_of(ours), oracle_of(unet).state_dict(), inplace=False)
    got = to_upstream(ours)
    assert all(torch.equal(got[name], state[name]) for name in (*copied, *untouched))
    assert "down_blocks.0.resnets.0.time_emb_proj.bias" in copied
    assert "down_blocks.0.resnets.0.time_emb_proj.weight" in untouched
    assert ours.state_dict().keys() == fresh.keys()
