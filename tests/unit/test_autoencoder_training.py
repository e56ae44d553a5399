"""What is particular to training an autoencoder: two sides that do not mix, a steered weight, a curriculum, changes."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maisi.data.dataset import NamedVolumes, Patches, PatchSource, patch_source
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.discriminator import DiscriminatorConfig
from maisi.space.grid import Grid
from maisi.space.volume import Volume
from maisi.training import autoencoder as module
from maisi.training.augment import RELEASED, Augmentation, augmented
from maisi.training.autoencoder import AutoencoderTraining, _agreement, _AutoencoderTraining, train_autoencoder
from maisi.training.loop import LoopConfig
from maisi.training.losses import discriminator_loss
from maisi.training.optimization import Optimization
from maisi.training.steering import SteeredWeight, Steering


def volume(seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    hu = np.full((24, 24, 24), -1000.0, np.float32)
    hu[4:20, 4:20, :] = rng.normal(40.0, 200.0, (16, 16, 24))
    return Volume(hu, Grid.centered((24, 24, 24), (3.0, 3.0, 3.0)))


def source() -> PatchSource:
    return patch_source([(1.0, [NamedVolumes(f"case {k}", partial(lambda k: [volume(k)], k)) for k in range(3)])])


def recipe(steps: int, **more: object) -> AutoencoderTraining:
    return AutoencoderTraining.model_validate(
        {
            "network": AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2),
            "discriminator": DiscriminatorConfig(channels=4, num_layers=2),
            "loop": LoopConfig(num_steps=steps, save_every=2, validate_every=2),
            "optimization": Optimization(learning_rate=1e-3, warmup=0, precision="float32"),
            "batch_size": 1,
            "patch": (16, 16, 16),
            "validation_patches": 2,
            **more,
        }
    )


EVERYTHING = {
    "steering": Steering(gain=0.5),
    "perceptual_weight": 0.1,
    "perceptual_slices": 2,
    "adversarial_weight": 0.1,
    "adversarial_start": 1,
    "early_patch": (12, 12, 12),
    "early_share": 0.5,
    "augmentation": Augmentation(quarter_turns=0.5, zoom=0.5, intensity_scale=0.5),
}


def test_the_critics_step_takes_no_gradient_of_the_generator() -> None:
    """Upstream's notebook keeps it, so that its critic is taught in part to call fakes real."""
    training = _AutoencoderTraining(recipe(4, **EVERYTHING), source(), None)
    assert training.critic is not None
    fakes: dict[int, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    apply = training.judge._apply

    def watch(step: int, precision: str) -> None:
        seen.append(torch.cat([p.grad.flatten().clone() for p in training.critic.parameters()]))
        apply(step, precision)

    training.judge._apply = watch  # type: ignore[method-assign]
    before = [p.detach().clone() for p in training.critic.parameters()]
    patches, _ = training._patches(1, 0)
    training.learner.update(1, [training._batch(1, 0, True, fakes)])
    assert all(torch.equal(a, b) for a, b in zip(before, training.critic.parameters(), strict=True))
    training.judge.update(1, [training._judged_batch(1, 0, fakes[0])])
    for parameter, value in zip(training.critic.parameters(), before, strict=True):
        parameter.data.copy_(value)
        parameter.grad = None
    discriminator_loss(training.critic(patches.images)[-1], training.critic(fakes[0])[-1]).backward()
    alone = torch.cat([p.grad.flatten() for p in training.critic.parameters()])
    norm = torch.linalg.vector_norm(alone)
    torch.testing.assert_close(seen[0], alone * min(1.0, float(1.0 / (norm + 1e-6))), rtol=1e-4, atol=1e-7)


def test_a_run_with_everything_on_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = recipe(6, **EVERYTHING)
    whole = train_autoencoder(config, source(), tmp_path / "whole", validation=source())
    for until in (3, 5, None):
        parts = train_autoencoder(config, source(), tmp_path / "parts", until=until, validation=source())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    told = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert told[0] == told[1]
    assert sum(line.get("split") == "validation" for line in told[0]) == 3
    seen = [line for line in told[0] if line.get("split") == "validation"]
    assert all(line["psnr_db"] > 0 and -1 <= line["ssim"] <= 1 for line in seen)
    assert {"kl_weight", "latent_std", "discriminator", "generator"} <= told[0][-2].keys()
    assert sorted(p.name for p in (tmp_path / "parts" / "pictures").iterdir()) == [
        f"step_{step:06d}.png" for step in (2, 4, 6)
    ]


def test_the_picture_of_a_validation_shows_a_patch_with_something_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slope = torch.linspace(0, 1, 16).expand(1, 1, 16, 16, 16)
    in_turn = iter((torch.zeros_like(slope), slope.clone(), torch.zeros_like(slope)))
    monkeypatch.setattr(PatchSource, "draw", lambda *_: Patches(next(in_turn), ("case",)))
    shown: list[np.ndarray] = []
    draw = module.comparison

    def watched(real: Volume, fake: Volume, title: str) -> Image.Image:
        shown.append(real.array)
        return draw(real, fake, title)

    monkeypatch.setattr(module, "comparison", watched)
    training = _AutoencoderTraining(recipe(2, validation_patches=3), source(), None)
    training.validate(source(), tmp_path, 2)
    assert len(shown) == 1
    assert np.ptp(shown[0]) > 1000
    assert (tmp_path / "pictures" / "step_000002.png").is_file()


def test_patches_that_come_back_as_they_were_agree_and_noise_does_not() -> None:
    real = torch.rand((1, 1, 12, 12, 12), generator=torch.Generator().manual_seed(0))
    assert _agreement(real, real) == {"loss": 0.0, "psnr_db": 120.0, "ssim": pytest.approx(1.0)}
    off = _agreement(real * 0.5, real)
    assert off["psnr_db"] == pytest.approx(-10 * float((real / 2).square().mean().log10()), abs=1e-3)
    assert off["ssim"] < 0.9


def test_small_patches_come_first_and_large_ones_after() -> None:
    config = recipe(9, early_patch=(8, 8, 8), early_share=1 / 3)
    sizes = [config.patch_at(step, 9) for step in range(9)]
    assert sizes == [(8, 8, 8)] * 3 + [(16, 16, 16)] * 6
    training = _AutoencoderTraining(config, source(), None)
    assert training._patches(0, 0)[0].images.shape == (1, 1, 8, 8, 8)
    assert training._patches(3, 0)[0].images.shape == (1, 1, 16, 16, 16)


@given(st.floats(0.2, 5.0), st.floats(-12, -2), st.floats(0.1, 0.8))
def test_steering_brings_the_spread_into_its_band_and_leaves_it_there(scale: float, start: float, slope: float) -> None:
    """A latent space whose spread falls as a power of the weight, as a stronger KL term pulls it together."""
    weight = SteeredWeight(10.0**start, Steering(gain=0.3, least_weight=1e-30, greatest_weight=1e30))
    wanted = 1e-6
    for _ in range(3000):
        weight.follow(scale * (weight.weight / wanted) ** -slope)
    settled = scale * (weight.weight / wanted) ** -slope
    assert 0.89 <= settled <= 1.11
    before = weight.weight
    for _ in range(50):
        weight.follow(1.0)
    assert weight.weight == pytest.approx(before, rel=0.05)


def test_steering_moves_the_weight_of_a_real_run_and_a_steady_one_does_not(tmp_path: Path) -> None:
    def weights(folder: Path) -> list[float]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["kl_weight"] for line in lines if "split" not in line]

    steering = Steering(low=1e-4, high=2e-4, gain=0.01, greatest_weight=1e9)
    train_autoencoder(recipe(12, steering=steering, kl_weight=1e-5), source(), tmp_path / "steered")
    assert all(later > before for before, later in pairwise(weights(tmp_path / "steered")))
    train_autoencoder(recipe(4, kl_weight=1e-5), source(), tmp_path / "steady")
    assert set(weights(tmp_path / "steady")) == {1e-5}


def test_changes_are_drawn_from_the_generator_and_those_of_mr_leave_ct_alone() -> None:
    pytest.importorskip("monai", reason="MONAI is not installed (extra train)")
    patch = np.random.default_rng(0).uniform(0.2, 0.8, (10, 12, 8)).astype(np.float32)
    first, second = (augmented(patch, "ct", RELEASED, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, patch)
    assert first.shape == patch.shape
    assert 0 <= first.min() <= first.max() <= 1
    of_mr = Augmentation(bias_field=1, gibbs=1, contrast=1, histogram_shift=1)
    np.testing.assert_array_equal(augmented(patch, "ct", of_mr, np.random.default_rng(1)), patch)
    for name in ("bias_field", "gibbs", "contrast", "histogram_shift"):
        changed = augmented(patch, "mr", Augmentation(**{name: 1.0}), np.random.default_rng(1))
        assert not np.array_equal(changed, patch), name
    assert augmented(patch, "mr", Augmentation(), np.random.default_rng(1)) is patch


def test_a_patch_of_air_alone_is_drawn_again() -> None:
    array = np.zeros((60, 8, 8), np.uint16)
    array[24:30] = np.arange(6 * 64, dtype=np.uint16).reshape(6, 8, 8) * 100
    drawn = PatchSource([array], np.ones(1)).draw(40, (8, 8, 8), np.random.default_rng(0)).images
    telling = (drawn.amax((1, 2, 3, 4)) > drawn.amin((1, 2, 3, 4))).double().mean()
    assert float(telling) > 0.7
