"""Checkpoints written by MONAI 1.6.1, converted, against the networks that wrote them."""

from pathlib import Path

import pytest
import torch
from monai.networks.schedulers import RFlowScheduler
from oracle_networks import (
    SMALL,
    ask_unet,
    draw,
    draw_bits,
    draw_conditions,
    drawn_network,
    oracle_of,
    relative_error,
)

from maisi.bundle.bundle import load_bundle
from maisi.bundle.convert import convert
from maisi.diffusion.denoiser import denoiser
from maisi.diffusion.sampler import sample
from maisi.networks.autoencoder import AutoencoderConfig

CONFIGS = {
    "autoencoder": AutoencoderConfig(channels=(16, 32), num_res_blocks=(1, 2), norm_groups=8),
    "unet": SMALL["unet"],
    "controlnet": SMALL["controlnet"],
}


@pytest.mark.parametrize("num_steps", [6])
def test_a_converted_model_samples_and_decodes_as_upstream_does(num_steps: int, tmp_path: Path) -> None:
    oracles = {kind: oracle_of(drawn_network(config, torch.float32)) for kind, config in CONFIGS.items()}
    paths = [tmp_path / f"{kind}.pt" for kind in CONFIGS]
    torch.save(oracles["autoencoder"].state_dict(), paths[0])
    torch.save({"scale_factor": torch.tensor(1.03), "unet_state_dict": oracles["unet"].state_dict()}, paths[1])
    torch.save({"controlnet_state_dict": oracles["controlnet"].state_dict()}, paths[2])
    bundle = load_bundle(convert(paths, tmp_path / "bundle", model="rflow-ct", configs=CONFIGS))

    noise = draw(1, 4, 8, 8, 4, dtype=torch.float32)
    bits = draw_bits(CONFIGS["controlnet"], 1, (8, 8, 4), torch.float32)
    conditions = draw_conditions(CONFIGS["unet"], 1, torch.float32)
    denoise = denoiser(bundle.unet, bundle.controlnet, conditions=conditions, bits=bits)
    latent = sample(denoise, bundle.scheduler, noise, num_steps, solver="euler", upstream_times=True)
    volume = bundle.autoencoder.decode(latent / bundle.scale_factor)

    theirs = RFlowScheduler(1000, use_discrete_timesteps=False, use_timestep_transform=True)
    theirs.set_timesteps(num_steps, input_img_size_numel=torch.tensor(8 * 8 * 4))
    x = noise
    for t, t_next in zip(theirs.timesteps, [*theirs.timesteps[1:], 0], strict=True):
        time = torch.Tensor((t,))
        down, middle = oracles["controlnet"](x, time, bits, class_labels=conditions["modality"])
        prediction = ask_unet(oracles["unet"], x, time, conditions, _Residuals(down, middle))
        x, _ = theirs.step(prediction, t, x, t_next)
    their_volume = oracles["autoencoder"].decode_stage_2_outputs(x / 1.03)
    assert relative_error(latent, x) < 1e-4
    assert relative_error(volume, their_volume) < 1e-4


class _Residuals:
    def __init__(self, skips: list[torch.Tensor], middle: torch.Tensor) -> None:
        self.skips, self.middle = skips, middle


def test_the_released_autoencoder_is_recognised_and_equal(tmp_path: Path) -> None:
    oracle = oracle_of(drawn_network(AutoencoderConfig(), torch.float32))
    torch.save(oracle.state_dict(), tmp_path / "autoencoder_v1.pt")
    bundle = load_bundle(convert([tmp_path / "autoencoder_v1.pt"], tmp_path / "bundle"))
    x = draw(1, 1, 16, 16, 8, dtype=torch.float32)
    mean, log_variance = bundle.autoencoder.encode(x)
    their_mean, their_sigma = oracle.encode(x)
    assert relative_error(mean, their_mean) < 1e-4
    assert relative_error((log_variance / 2).exp(), their_sigma) < 1e-4
    assert bundle.describe()["networks"]["autoencoder"]["num_parameters"] == 20_944_897
