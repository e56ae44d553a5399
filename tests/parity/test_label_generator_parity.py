"""Upstream's mask generation checkpoints, converted, against MONAI's networks; and the released sizes of them."""

from pathlib import Path

import numpy as np
import torch
from oracle_networks import ask_unet, drawn_network, oracle_of, relative_error

from maisi.anatomy.slots import full_volumes
from maisi.bundle.bundle import Bundle, BundleInfo, DDPMSpec, LabelGeneratorInfo, load_bundle
from maisi.bundle.convert import convert
from maisi.bundle.upstream import RELEASED
from maisi.compute.compute import Compute
from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import DDPM
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import build_network
from maisi.networks.unet import UNetConfig
from maisi.pipelines.label_codec import decode_ids, label_channels
from maisi.pipelines.label_generator import GeneratedLabels, draw_latent, generator_info
from maisi.space.grid import Grid

CONFIGS = {
    "autoencoder": AutoencoderConfig(
        in_channels=8, out_channels=125, channels=(16, 32, 16), num_res_blocks=(1, 2, 1), norm_groups=8,
        upsampling="transposed",
    ),
    "unet": UNetConfig(
        channels=(32, 64), num_res_blocks=(1, 2), attention_levels=(False, True), norm_groups=16, context_channels=10,
        middle_sees_residual=False,
    ),
}  # fmt: skip
COMPUTE = Compute(precision="float32", threads=1)


@torch.inference_mode()
def test_converted_mask_checkpoints_draw_what_monai_does(tmp_path: Path) -> None:
    oracles = {kind: oracle_of(drawn_network(config, torch.float32)) for kind, config in CONFIGS.items()}
    paths = [tmp_path / f"{kind}.pt" for kind in CONFIGS]
    torch.save(oracles["autoencoder"].state_dict(), paths[0])
    torch.save({"scale_factor": torch.tensor(1.0056), "unet_state_dict": oracles["unet"].state_dict()}, paths[1])
    bundle = load_bundle(convert(paths, tmp_path / "bundle", model="mask", configs=CONFIGS))
    told = generator_info(bundle)
    assert (told.size, told.spacing_mm, told.open_sizes) == ((256, 256, 256), (1.5, 1.5, 1.5), False)
    assert told.lesions == tuple(full_volumes())[5:]

    small = Bundle.of(
        bundle.info.model_copy(update={"label_generator": told.model_copy(update={"size": (16, 16, 8)})}),
        {name: bundle.network(name) for name in bundle.names},
    )
    grid = Grid.centered((16, 16, 8), told.spacing_mm)
    source = GeneratedLabels(small, "abdomen", grid, {"liver": 0.5, "hepatic tumor": 0.25}, compute=COMPUTE)
    latent = draw_latent(source, 4, torch.Generator().manual_seed(3))

    sizes = [0.25, 0.5, 382 / 1200, 76 / 160, 956 / 2000, -1.0, -1.0, 0.25, -1.0, -1.0]
    context = torch.tensor(sizes)[None, None]
    noise = torch.randn((1, 4, 4, 4, 2), generator=torch.Generator().manual_seed(3))
    expected = sample(lambda x, t: ask_unet(oracles["unet"], x, t, {"context": context}, None), DDPM(), noise, 4)
    assert relative_error(latent, expected) < 1e-4
    logits = oracles["autoencoder"].decode_stage_2_outputs(expected / 1.0056)
    channels = logits.softmax(1).argmax(1)[0].numpy()
    ids = decode_ids(small.autoencoder, latent / told.scale_factor, label_channels())
    assert (ids == np.array(label_channels())[channels]).mean() > 0.999


def test_the_released_configuration_draws_a_small_map() -> None:
    networks = {}
    for name, release in (("autoencoder", "mask-autoencoder"), ("unet", "mask-diffusion")):
        config = RELEASED[release].networks[name]
        with torch.device("meta"):
            network = build_network(config)
        networks[name] = network.to_empty(device="cpu").eval().requires_grad_(False)
        for parameter in networks[name].parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    told = LabelGeneratorInfo(
        autoencoder="autoencoder", unet="unet", size=(32, 32, 32), spacing_mm=(1.5, 1.5, 1.5), scheduler=DDPMSpec(),
        sized=tuple(full_volumes()), lesions=tuple(full_volumes())[5:],
    )  # fmt: skip
    info = BundleInfo(name="mask", licence="none", vocabulary_version="1.0", scheduler=DDPMSpec(), label_generator=told)
    source = GeneratedLabels(
        Bundle.of(info, networks), "abdomen", Grid.centered((32, 32, 32), (1.5, 1.5, 1.5)), steps=2, compute=COMPUTE
    )
    labels = source.draw_mended(torch.Generator().manual_seed(0))
    assert labels.array.shape == (32, 32, 32)
    assert set(np.unique(labels.array)) <= set(label_channels())
