"""Training steps at tiny size: they learn, and a killed run continues to the same weights."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.dataset import NamedVolumes, PatchSource, patch_source
from maisi.data.latents import Latent, LatentSource, LatentStore, latent_scale, write_latent
from maisi.diffusion.scheduler import RectifiedFlow
from maisi.errors import InvalidRequestError, RunError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.discriminator import DiscriminatorConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.codec import encode
from maisi.space.grid import Grid
from maisi.space.volume import Volume
from maisi.splitting.cpu.kernels import multiplies_bfloat16
from maisi.training.autoencoder import AutoencoderTraining, train_autoencoder
from maisi.training.controlnet import ControlNetTraining, train_controlnet
from maisi.training.denoising import loss_weights, weighted_mean
from maisi.training.diffusion import DiffusionTraining, train_unet
from maisi.training.learner import mixed_precision, update_average
from maisi.training.loop import LoopConfig, fit
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState, load_checkpoint, save_checkpoint

AUTOENCODER = AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)
BACKBONE = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, False),
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 4,
}
UNET = UNetConfig(**BACKBONE, regions=True, spacing=True)
SPAN = RegionSpan.named("chest")
OPTIMIZATION = Optimization(learning_rate=1e-3, warmup=2, precision="float32")


def volume(seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    hu = np.full((32, 32, 32), -1000.0, np.float32)
    hu[8:24, 8:24, :] = rng.normal(40.0, 30.0, (16, 16, 32))
    return Volume(hu, Grid.centered((32, 32, 32), (3.0, 3.0, 3.0)))


def patches() -> PatchSource:
    return patch_source([(1.0, [NamedVolumes(f"case {k}", partial(lambda k: [volume(k)], k)) for k in range(2)])])


def latents() -> list[Latent]:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER).eval()
    made = []
    for seed in range(2):
        v = volume(seed)
        labels = torch.from_numpy(np.where(v.array > -500, 200, 0).astype(np.uint8))
        latent = encode(autoencoder, v, dtype=torch.float16)
        made.append(dataclasses.replace(latent, labels=labels, span=SPAN, modality_code=1, group="real"))
    return made


def autoencoder_recipe(steps: int, **more: object) -> AutoencoderTraining:
    return AutoencoderTraining.model_validate(
        {
            "network": AUTOENCODER,
            "loop": LoopConfig(num_steps=steps, save_every=2),
            "batch_size": 1,
            "patch": (16, 16, 16),
            "optimization": OPTIMIZATION,
            **more,
        }
    )


def diffusion_recipe(steps: int) -> DiffusionTraining:
    loop = LoopConfig(num_steps=steps, save_every=2)
    return DiffusionTraining(network=UNET, loop=loop, sizes=((8, 8, 8), (8, 12, 8)), optimization=OPTIMIZATION)


def controlnet_recipe(steps: int, train_unet: bool) -> ControlNetTraining:
    return ControlNetTraining(
        **{**dict(diffusion_recipe(steps)), "drop_labels": 0.2},
        controlnet=ControlNetConfig(**BACKBONE, embedding_widths=(4, 8)),
        train_unet=train_unet,
    )


def source() -> LatentSource:
    return LatentSource(latents(), {"real": 1.0}, multiple=2)


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"perceptual_weight": 0.1, "perceptual_slices": 2},
        {
            "adversarial_weight": 0.1,
            "adversarial_start": 2,
            "discriminator": DiscriminatorConfig(channels=4, num_layers=2),
        },
        {"decoder_only_after": 3},
    ],
    ids=["plain", "perceptual", "adversarial", "decoder only"],
)
def test_an_autoencoder_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, more: dict) -> None:
    recipe = autoencoder_recipe(6, **more)
    whole = train_autoencoder(recipe, patches(), tmp_path / "whole")
    train_autoencoder(recipe, patches(), tmp_path / "parts", until=3)
    parts = train_autoencoder(recipe, patches(), tmp_path / "parts")
    assert torch.equal(weights(whole), weights(parts))
    assert (tmp_path / "whole" / "metrics.jsonl").read_text().count("\n") == 6
    assert (tmp_path / "parts" / "metrics.jsonl").read_text().count("\n") == 6


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    train_autoencoder(
        autoencoder_recipe(40), patches(), tmp_path, lambda step, metrics: losses.append(metrics["reconstruction"])
    )
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_decoder_only_leaves_the_encoder_as_it_was(tmp_path: Path) -> None:
    early = train_autoencoder(autoencoder_recipe(8, decoder_only_after=4), patches(), tmp_path, until=4)
    late = train_autoencoder(autoencoder_recipe(8, decoder_only_after=4), patches(), tmp_path)
    assert torch.equal(weights(early.encoder), weights(late.encoder))
    assert not torch.equal(weights(early.decoder), weights(late.decoder))


def test_a_unet_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    recipe, scheduler = diffusion_recipe(5), RectifiedFlow()
    whole = train_unet(recipe, source(), scheduler, 1.0, tmp_path / "whole")
    train_unet(recipe, source(), scheduler, 1.0, tmp_path / "parts", until=2)
    parts = train_unet(recipe, source(), scheduler, 1.0, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(parts))


def test_a_line_of_metrics_that_a_kill_cut_short_does_not_stop_the_next_run(tmp_path: Path) -> None:
    recipe, scheduler = diffusion_recipe(3), RectifiedFlow()
    train_unet(recipe, source(), scheduler, 1.0, tmp_path, until=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    train_unet(recipe, source(), scheduler, 1.0, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("train_unet", [False, True])
def test_a_controlnet_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, train_unet: bool) -> None:
    torch.manual_seed(0)
    unet, scheduler, recipe = DenoisingUNet(UNET), RectifiedFlow(), controlnet_recipe(5, train_unet)
    whole = train_controlnet(recipe, unet, source(), scheduler, 1.0, tmp_path / "whole")
    train_controlnet(recipe, unet, source(), scheduler, 1.0, tmp_path / "parts", until=2)
    parts = train_controlnet(recipe, unet, source(), scheduler, 1.0, tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(weights(a), weights(b))
    assert torch.equal(weights(unet), weights(whole[1])) is not train_unet
    assert (whole[1] is unet) is not train_unet  # it is in memory once where it does not learn


def linear(*names: str, size: int = 2) -> tuple[torch.nn.ModuleDict, TrainingState]:
    """A network of linear layers after one step of its optimiser."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({name: torch.nn.Linear(size, size) for name in names})
    optimizer = torch.optim.Adam(network.named_parameters(), lr=0.1)
    sum(layer(torch.ones(size)).square().sum() * (i + 1) for i, layer in enumerate(network.values())).backward()
    optimizer.step()
    return network, TrainingState({"net": network}, {"net": optimizer}, step=1)


def test_a_checkpoint_finds_each_parameter_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    network, state = linear("a", "b")
    save_checkpoint(state, path)
    turned, other = linear("b", "a")
    load_checkpoint(other, path)
    for name, parameter in turned.named_parameters():
        kept = network.get_parameter(name)
        assert torch.equal(parameter, kept)
        ours, theirs = other.optimizers["net"].state[parameter], state.optimizers["net"].state[kept]
        assert all(torch.equal(ours[moment], theirs[moment]) for moment in ("exp_avg", "exp_avg_sq", "step"))
    assert other.step == 1


def test_a_checkpoint_of_other_parameters_is_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(linear("a", "b")[1], path)
    with pytest.raises(InvalidRequestError, match=r"another net: without c\.bias, c\.weight, with b\.bias, b\.weight"):
        load_checkpoint(linear("a", "c")[1], path)
    with pytest.raises(InvalidRequestError, match=r"another net: a\.weight \(2, 2\) instead of \(3, 3\)"):
        load_checkpoint(linear("a", "b", size=3)[1], path)
    network, state = linear("a", "b")
    state.optimizers["net"] = torch.optim.Adam(network["a"].named_parameters(prefix="a"), lr=0.1)
    with pytest.raises(InvalidRequestError, match=r"another optimizer of net: with b\.bias, b\.weight"):
        load_checkpoint(state, path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"something else")
    with pytest.raises(InvalidRequestError, match="not a readable checkpoint"):
        load_checkpoint(linear("a")[1], path)
    save_file({"module/net/a.weight": torch.zeros(2, 2)}, path, metadata={"step": "3", "learned": "{}"})
    with pytest.raises(InvalidRequestError, match="no checkpoint of this version"):
        load_checkpoint(linear("a")[1], path)


@torch.no_grad()
@pytest.mark.parametrize(("step", "rate"), [(0, 0.9), (8, 0.5), (10_000, 0.01)])
def test_the_average_moves_fast_at_first_and_then_by_its_decay(step: int, rate: float) -> None:
    with torch.enable_grad():
        average, network = linear("a")[0], linear("a")[0]
    network["a"].weight += 1.0
    before = average["a"].weight.clone()
    update_average(average, list(network.parameters()), 0.99, step)
    assert torch.equal(average["a"].weight, before.lerp(network["a"].weight, 1.0 - min(0.99, (1 + step) / (10 + step))))
    assert float((average["a"].weight - before).mean()) == pytest.approx(rate, abs=1e-3)


def test_a_device_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    config = diffusion_recipe(1).model_copy(update={"device": "cuda:99"})
    with pytest.raises(InvalidRequestError, match=r"no device cuda:99 here to train on; accepted: cpu"):
        train_unet(config, source(), RectifiedFlow(), 1.0, tmp_path)
    with pytest.raises(ValueError, match="accepted: cpu, cuda or cuda:N"):
        DiffusionTraining(loop=LoopConfig(num_steps=1), device="tpu")


def test_small_feature_maps_learn_in_float32_on_a_processor() -> None:
    cpu = torch.device("cpu")
    with mixed_precision("bfloat16", cpu, 3):
        assert torch.is_autocast_enabled("cpu") is multiplies_bfloat16()
    for precision, least_planes in (("bfloat16", 2), ("float32", 100)):
        with mixed_precision(precision, cpu, least_planes):
            assert not torch.is_autocast_enabled("cpu")


def test_training_on_stored_latents_is_training_on_those_in_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, latent in zip(paths, latents(), strict=True):
        write_latent(latent, path)
    recipe, scheduler = diffusion_recipe(3), RectifiedFlow()
    stored = LatentSource(LatentStore(paths, kept_bytes=0), {"real": 1.0}, multiple=2)
    ours = train_unet(recipe, stored, scheduler, 1.0, tmp_path / "stored")
    theirs = train_unet(recipe, source(), scheduler, 1.0, tmp_path / "memory")
    assert torch.equal(weights(ours), weights(theirs))


def test_a_step_that_is_not_finite_stops_the_run_before_it_is_kept(tmp_path: Path) -> None:
    network, state = linear("a")
    state.step = 0

    def take_step(step: int) -> dict[str, float]:
        with torch.no_grad():
            network["a"].weight.fill_(float(step))
        return {"loss": float("nan") if step == 2 else 1.0}

    with pytest.raises(RunError, match=r"step 3 of .* went wrong \(loss nan\)"):
        fit(state, take_step, LoopConfig(num_steps=5, save_every=1), tmp_path)
    again, kept = linear("a")
    fit(kept, take_step, LoopConfig(num_steps=2), tmp_path)
    assert kept.step == 2
    assert float(again["a"].weight.detach().max()) == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_as_the_processor_does_and_resumes(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, told in losses.items():
        recipe = controlnet_recipe(3, train_unet=True).model_copy(update={"device": device})
        torch.manual_seed(0)
        unet, folder = DenoisingUNet(UNET), tmp_path / device
        for until in (2, None):
            controlnet, _ = train_controlnet(
                recipe,
                unet,
                source(),
                RectifiedFlow(),
                1.0,
                folder,
                lambda step, metrics, told=told: told.append(metrics["loss"]),
                until=until,
            )
        assert next(controlnet.parameters()).device.type == device
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)
    config = autoencoder_recipe(2, device="cuda", adversarial_weight=0.1, perceptual_weight=0.1, perceptual_slices=2)
    assert next(train_autoencoder(config, patches(), tmp_path / "a").parameters()).is_cuda


def test_the_latent_scale_makes_sampled_latents_unit_wide() -> None:
    cases = latents()
    generator = torch.Generator().manual_seed(0)
    values = torch.cat(
        [
            (
                c.mean.float() + (0.5 * c.log_variance.float()).exp() * torch.randn(c.mean.shape, generator=generator)
            ).flatten()
            for c in cases
        ]
    )
    assert float(values.std()) * latent_scale(cases) == pytest.approx(1.0, abs=0.02)


def test_a_structure_and_the_latent_voxels_next_to_it_weigh_as_asked() -> None:
    labels = torch.full((16, 16, 16), 200, dtype=torch.uint8)
    labels[9, 9, 9] = load_vocabulary().id("skeleton")
    weights = loss_weights(labels, (8, 8, 8), {"bones": 4.0})
    expected = torch.ones(8, 8, 8)
    expected[3:6, 3:6, 3:6] = 4.0
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("weights", [{"bones": 2.0, "ribs": 5.0}, {"ribs": 5.0, "bones": 2.0}])
def test_the_weightiest_group_of_a_structure_counts(weights: dict[str, float]) -> None:
    labels = torch.full((2, 2, 2), load_vocabulary().id("left rib 5"), dtype=torch.uint8)
    assert torch.equal(loss_weights(labels, (1, 1, 1), weights), torch.full((1, 1, 1), 5.0))


def test_without_structures_every_voxel_weighs_one_and_the_mean_is_the_plain_mean() -> None:
    values = torch.rand((1, 3, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    weights = loss_weights(torch.full((8, 8, 8), 200, dtype=torch.uint8), (4, 4, 4), {"bones": 4.0})
    assert torch.equal(weights, torch.ones(4, 4, 4))
    assert weighted_mean(values, weights) == values.mean()


def test_the_mean_follows_the_weights() -> None:
    values, weights = torch.zeros(1, 2, 2, 2, 2), torch.ones(2, 2, 2)
    values[:, :, 0], weights[0] = 1.0, 3.0
    assert weighted_mean(values, weights) == pytest.approx(0.75)


@pytest.mark.parametrize(("weights", "said"), [({"bone": 2.0}, "bones"), ({"bones": 0.5}, "at least 1")])
def test_weights_of_unknown_structures_and_below_all_else_are_refused(weights: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DiffusionTraining(loop=LoopConfig(num_steps=1), structure_weights=weights)
