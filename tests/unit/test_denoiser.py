import pytest
import torch

from maisi.diffusion.denoiser import denoiser, guide, guide_apart, predict
from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import RectifiedFlow
from maisi.errors import InvalidRequestError
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

SMALL = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 3,
}
STEERING = {"embedding_widths": (4, 8, 8), **SMALL}
X = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([300.0, 300.0])
BITS = (torch.rand(1, 8, 16, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
CONDITIONS = {"spacing": torch.tensor([[150.0, 150.0, 200.0]]), "modality": torch.tensor([1])}


def shake(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight away from zero, so that zero-initialised layers speak too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return shake(DenoisingUNet(UNetConfig(spacing=True, **SMALL)))


@pytest.fixture(scope="module")
def controlnet() -> torch.nn.Module:
    return shake(ControlNet(ControlNetConfig(embedding_widths=(4, 8, 8), **SMALL)))


def constant(value: float):
    return lambda x, t: torch.full_like(x, value)


def test_one_row_of_conditions_serves_the_whole_batch(unet: torch.nn.Module) -> None:
    rows = {name: torch.cat([value, value]) for name, value in CONDITIONS.items()}
    with torch.no_grad():
        assert torch.equal(denoiser(unet, conditions=CONDITIONS)(X, T), unet(X, T, **rows))


def test_the_controlnet_steers_by_its_labels(unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
    with torch.no_grad():
        alone = denoiser(unet, conditions=CONDITIONS)(X, T)
        steered = denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS)(X, T)
        other = denoiser(unet, controlnet, conditions=CONDITIONS, bits=1 - BITS)(X, T)
        silent = denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS, controlnet_scale=0.0)(X, T)
        half = denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS, controlnet_scale=0.5)(X, T)
    assert not torch.allclose(alone, steered, atol=1e-3)
    assert not torch.allclose(other, steered, atol=1e-3)
    assert not torch.allclose(half, steered, atol=1e-3)
    assert torch.equal(alone, silent)


@pytest.mark.parametrize("told", [{"num_modalities": 3}, {"context_channels": 5}, {"num_modalities": None}])
def test_a_controlnet_is_told_all_that_it_takes_and_nothing_else(told: dict) -> None:
    shape = {**SMALL, **told}
    steered = shake(DenoisingUNet(UNetConfig(**{**shape, "num_modalities": 3})))
    steering = shake(ControlNet(ControlNetConfig(embedding_widths=(4, 8, 8), **shape)))
    conditions = {"modality": torch.tensor([1])}
    if "context_channels" in told:
        conditions["context"] = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        embedding = steering.embed_condition(BITS)
        rows = {name: value.expand(2, *value.shape[1:]) for name, value in conditions.items()}
        taken = {name: rows[name] for name in rows if name == "context" or shape["num_modalities"] is not None}
        expected = steered(X, T, residuals=steering(X, T, embedding, scale=0.5, **taken), **rows)
        got = predict(steered, steering, X, T, conditions=conditions, embedding=embedding, scale=0.5)
    assert torch.equal(got, expected)


def test_a_controlnet_and_an_embedding_are_refused_without_each_other(
    unet: torch.nn.Module, controlnet: torch.nn.Module
) -> None:
    with pytest.raises(InvalidRequestError, match="no ControlNet to read it"):
        predict(unet, None, X, T, conditions=CONDITIONS, embedding=BITS)
    with pytest.raises(InvalidRequestError, match="needs its label map"):
        predict(unet, controlnet, X, T, conditions=CONDITIONS)


def test_the_label_embedding_is_computed_once_a_sample(unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
    calls = []
    hook = controlnet.condition_embedding.register_forward_hook(lambda *_: calls.append(1))
    denoise = denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS)
    sample(denoise, RectifiedFlow(), X, 4)
    hook.remove()
    assert len(calls) == 1


def test_bits_and_their_embedding_mean_the_same(unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
    with torch.no_grad():
        embedding = controlnet.embed_condition(BITS)
        by_bits = denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS)(X, T)
        by_embedding = denoiser(unet, controlnet, conditions=CONDITIONS, embedding=embedding)(X, T)
    assert torch.equal(by_bits, by_embedding)


def test_labels_and_controlnet_belong_together(unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
    with pytest.raises(InvalidRequestError, match="no ControlNet"):
        denoiser(unet, conditions=CONDITIONS, bits=BITS)
    with pytest.raises(InvalidRequestError, match="labels once"):
        denoiser(unet, controlnet, conditions=CONDITIONS)
    with pytest.raises(InvalidRequestError, match="labels once"):
        denoiser(unet, controlnet, conditions=CONDITIONS, bits=BITS, embedding=BITS)


def test_conditions_for_another_batch_are_refused(unet: torch.nn.Module) -> None:
    rows = {name: torch.cat([value] * 3) for name, value in CONDITIONS.items()}
    with pytest.raises(InvalidRequestError, match="'spacing' has 3 rows for a batch of 2"):
        denoiser(unet, conditions=rows)(X, T)


def test_guidance_moves_away_from_the_unguided_prediction() -> None:
    assert float(guide(constant(3.0), constant(1.0), 2.5)(X, T).mean()) == pytest.approx(6.0)
    assert float(guide(constant(3.0), constant(1.0), 0.0)(X, T).mean()) == pytest.approx(1.0)


def test_guidance_of_one_asks_one_network_only() -> None:
    guided = constant(3.0)
    assert guide(guided, constant(1.0), 1.0) is guided


def test_labels_and_conditions_are_guided_by_scales_of_their_own() -> None:
    labelled, plain, nothing = constant(7.0), constant(3.0), constant(1.0)
    guided = guide_apart(labelled, plain, nothing, labels=2.0, conditions=3.0)
    assert float(guided(X, T).mean()) == pytest.approx(1 + 3 * (3 - 1) + 2 * (7 - 3))
    by_labels = guide_apart(labelled, plain, nothing, labels=2.0, conditions=1.0)
    assert float(by_labels(X, T).mean()) == pytest.approx(3 + 2 * (7 - 3))
    by_conditions = guide_apart(labelled, plain, nothing, labels=1.0, conditions=3.0)
    assert float(by_conditions(X, T).mean()) == pytest.approx(1 + 3 * (3 - 1) + (7 - 3))
    assert guide_apart(labelled, plain, nothing, labels=1.0, conditions=1.0) is labelled


def test_networks_without_data_are_sampled_for_their_shapes() -> None:
    with torch.device("meta"):
        unet, controlnet = DenoisingUNet(UNetConfig(spacing=True, **SMALL)), ControlNet(ControlNetConfig(**STEERING))
    conditions = {name: value.to("meta") for name, value in CONDITIONS.items()}
    steered = denoiser(unet, controlnet, conditions=conditions, bits=BITS.to("meta"))
    end = sample(guide(steered, denoiser(unet, conditions=conditions), 2.0), RectifiedFlow(), X.to("meta"), 2)
    assert end.is_meta
    assert end.shape == X.shape


def test_guidance_works_on_meta_tensors_too() -> None:
    x, t = X.to("meta"), T.to("meta")
    assert guide(constant(3.0), constant(1.0), 2.0, interval=(200, 800))(x, t).shape == X.shape


def test_guidance_stays_within_its_interval() -> None:
    denoise = guide(constant(3.0), constant(1.0), 2.0, interval=(200, 800))
    means = [float(denoise(X, torch.full((2,), t)).mean()) for t in (100.0, 200.0, 500.0, 800.0, 900.0)]
    assert means == [3.0, 5.0, 5.0, 5.0, 3.0]
    with pytest.raises(InvalidRequestError, match="low, high"):
        guide(constant(3.0), constant(1.0), 2.0, interval=(800, 200))
