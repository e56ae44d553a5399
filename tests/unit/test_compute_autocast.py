"""The whole network in half precision as a GPU computes it, here on the CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

from maisi.bundle.bundle import Bundle, BundleInfo, RectifiedFlowSpec
from maisi.compute.calls import WrappedNetwork
from maisi.compute.compute import Compute
from maisi.compute.fit import fit, split_network, whole_network
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.splitting.precision import lowered

BACKBONE = {
    "channels": (32, 64),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 16,
    "norm_groups": 8,
    "num_modalities": 9,
    "resblock_updown": True,
}
CONDITIONS = {"spacing": torch.tensor([[150.0, 150.0, 150.0]]), "modality": torch.tensor([1])}


def drawn(network: nn.Module) -> nn.Module:
    """The network with no weight at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off_by(found: Tensor, exact: Tensor) -> float:
    """The root mean square of the difference, relative to that of the exact values."""
    return float((found.double() - exact.double()).square().mean().sqrt() / exact.double().square().mean().sqrt())


@torch.no_grad()
def test_the_whole_network_in_autocast_is_as_near_to_float32_as_one_slab() -> None:
    exact = drawn(Autoencoder(AutoencoderConfig(channels=(32, 64), num_res_blocks=(1, 1), norm_groups=8)))
    network, latent = lowered(copy.deepcopy(exact), torch.bfloat16), normal(1, 4, 8, 8, 8)
    image = normal(1, 1, 16, 16, 16)
    whole = whole_network(network, "cpu", torch.bfloat16)
    slab = split_network("autoencoder", network, None, None, torch.bfloat16)
    decoded, (mean, log_variance) = whole.decode(latent), whole.encode(image)
    assert {each.dtype for each in (decoded, mean, log_variance)} == {torch.float32}
    assert 0 < off_by(decoded, exact.decode(latent)) <= 1.2 * off_by(slab.decode(latent), exact.decode(latent))
    assert 0 < off_by(mean, exact.encode(image)[0]) <= 1.2 * off_by(slab.encode(image)[0], exact.encode(image)[0])
    assert whole.factor == exact.factor


@torch.no_grad()
def test_unet_and_controlnet_in_autocast_are_within_the_rounding_of_bfloat16() -> None:
    unet, controlnet = drawn(DenoisingUNet(UNetConfig(**BACKBONE, spacing=True))), drawn(_controlnet())
    half_unet, half_controlnet = (
        whole_network(lowered(copy.deepcopy(each), torch.bfloat16), "cpu", torch.bfloat16)
        for each in (unet, controlnet)
    )
    x, t, bits = normal(1, 4, 8, 8, 8), torch.tensor([500.0]), (normal(1, 8, 16, 16, 16, seed=1) > 0).float()
    embedding, half_embedding = controlnet.embed_condition(bits), half_controlnet.embed_condition(bits.bfloat16())
    modality = CONDITIONS["modality"]
    residuals = controlnet(x, t, embedding, modality=modality)
    half_residuals = half_controlnet(x, t, half_embedding, modality=modality)
    assert {each.dtype for each in (half_embedding, *half_residuals.skips)} == {torch.bfloat16}
    assert 0 < off_by(half_embedding, embedding) < 0.01
    assert off_by(half_residuals.middle, residuals.middle) < 0.02
    half_conditions = CONDITIONS | {"spacing": CONDITIONS["spacing"].bfloat16()}
    prediction = half_unet(x, t, residuals=half_residuals, **half_conditions)
    assert prediction.dtype == torch.float32
    assert 0 < off_by(prediction, unet(x, t, residuals=residuals, **CONDITIONS)) < 0.02


def _controlnet() -> ControlNet:
    return ControlNet(ControlNetConfig(**BACKBONE, embedding_widths=(8, 32)))


@torch.no_grad()
def test_narrow_convolutions_norms_and_interpolation_keep_float32_within_autocast() -> None:
    network = drawn(Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=4)))
    latent = normal(1, 4, 8, 8, 8)
    found = whole_network(lowered(copy.deepcopy(network), torch.bfloat16), "cpu", torch.bfloat16).decode(latent)
    assert torch.equal(found, network.decode(latent))


@pytest.fixture(scope="module")
def on_meta() -> Bundle:
    """A bundle on a device that is no CPU and computes nothing."""
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig(channels=(32, 32), num_res_blocks=(1, 1), norm_groups=8))
        unet = DenoisingUNet(UNetConfig(**BACKBONE, spacing=True))
    info = BundleInfo(name="meta", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec())
    return Bundle.of(info, {"autoencoder": autoencoder, "unet": unet})


def test_off_the_cpu_an_unlimited_network_works_on_whole_tensors(on_meta: Bundle) -> None:
    assert fit(on_meta, Compute(device="cuda", precision="float32"), lambda bundle: None).unet is on_meta.unet
    for network in (on_meta.autoencoder, on_meta.unet):
        lowered(network, torch.float16)
    fitted = fit(on_meta, Compute(device="cuda", precision="float16"), lambda bundle: None)
    assert isinstance(fitted.unet, WrappedNetwork)
    assert fitted.unet.config == on_meta.unet.config
    latent = torch.empty(1, 4, 8, 8, 8, device="meta")
    with pytest.raises(RuntimeError, match="autocast"):  # the meta device has none: this is the way that was taken
        fitted.autoencoder.decode(latent)
