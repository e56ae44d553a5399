"""A ControlNet that learns to fill holes from what is around them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_denoising import UNET, flat, question, shaken, source, steering

from maisi.anatomy.bits import label_bits
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, RectifiedFlowSpec
from maisi.diffusion.scheduler import DDPM, RectifiedFlow
from maisi.errors import InvalidRequestError
from maisi.networks.controlnet import around_hole
from maisi.networks.unet import DenoisingUNet
from maisi.pipelines.generate import Locked, around
from maisi.pipelines.guidance import embedded
from maisi.recipes.load import load_recipe
from maisi.training.controlnet import starting_controlnet, train_controlnet
from maisi.training.holes import Inpainting, hole_of

NAMES = load_vocabulary()
HOLES = {"structures": ("tumours",), "whole": 0.0}


def hole(labels: torch.Tensor, seed: int = 0, **more: object) -> torch.Tensor:
    config = Inpainting.model_validate({**HOLES, **more})
    return hole_of(labels, (8, 8, 8), config, NAMES, np.random.default_rng(seed))


def test_a_hole_lies_over_the_tumour_with_a_rim() -> None:
    labels = torch.full((16, 16, 16), NAMES.id("liver"), dtype=torch.uint8)
    labels[6:8, 6:8, 6:8] = NAMES.id("hepatic tumor")
    assert hole(labels, rim=0).nonzero().tolist() == [[3, 3, 3]]
    assert hole(labels, rim=1).sum() == 27


def test_without_a_tumour_it_is_a_box_and_now_and_then_everything() -> None:
    labels = torch.full((16, 16, 16), NAMES.id("liver"), dtype=torch.uint8)
    for seed in range(20):
        box = hole(labels, seed, box=(0.25, 0.5))
        assert 2**3 <= box.sum() <= 4**3
        assert box.any(0).any(0).sum() * box.any(0).any(1).sum() * box.any(1).any(1).sum() == box.sum()
    assert hole(labels, whole=1.0).all()


def test_what_is_in_the_hole_is_not_seen() -> None:
    clean, other = torch.randn(2, 1, 4, 4, 4, 4)
    empty = torch.zeros(1, 4, 4, 4)
    empty[:, 1:3, 1:3, 1:3] = 1
    seen = around_hole(clean, empty)
    assert seen.shape == (1, 5, 4, 4, 4)
    assert torch.equal(seen[:, 4], empty)
    assert torch.equal(seen, around_hole(torch.where(empty[:, None] > 0, other, clean), empty))


def test_a_controlnet_that_starts_to_see_surroundings_answers_as_before() -> None:
    unet = shaken(DenoisingUNet(UNET))
    first = shaken(starting_controlnet(steering(), unet, None))
    second = starting_controlnet(steering(controlnet=first.config, inpainting=HOLES), unet, first)
    assert second.config.sees_surroundings
    assert not second.embed_surroundings(torch.randn(1, 5, 4, 4, 4)).any()
    with pytest.raises(InvalidRequestError, match="sees no surroundings"):
        first.embed_surroundings(torch.randn(1, 5, 4, 4, 4))
    with pytest.raises(InvalidRequestError, match="sees_surroundings of the ControlNet to start from"):
        starting_controlnet(steering(controlnet=first.config), unet, second)


def test_the_loss_depends_on_what_is_around_the_hole() -> None:
    asked = question(steering(inpainting=HOLES))
    batch = asked.task.batch(0)
    here = asked.answer(batch, asked.labels(batch), asked.surroundings(batch))
    nothing = asked.answer(batch, asked.labels(batch), torch.zeros_like(asked.surroundings(batch)))
    assert not torch.allclose(here, nothing)
    asked.losses(asked.task.batch(0))["loss"].backward()
    assert asked.controlnet.surroundings.weight.grad.abs().sum() > 0


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    unet, config = DenoisingUNet(UNET), steering(inpainting={**HOLES, "whole": 0.3})
    whole, _ = train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "whole")
    train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "parts", until=1)
    parts, _ = train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "parts")
    assert torch.equal(flat(whole), flat(parts))


def test_inpainting_shows_the_network_what_is_locked() -> None:
    unet = DenoisingUNet(UNET)
    controlnet = shaken(starting_controlnet(steering(inpainting=HOLES), unet, None)).eval()
    info = BundleInfo(name="tiny", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec())
    bundle = Bundle.of(info, {"unet": unet, "controlnet": controlnet})
    noise, bits = torch.randn(1, 4, 4, 4, 4), label_bits(torch.ones(1, 8, 8, 8, dtype=torch.uint8))
    free = torch.zeros(4, 4, 4, dtype=torch.bool)
    free[:2] = True
    held, whole = (around(bundle, noise, each) for each in (Locked(torch.ones_like(noise), free), None))
    assert held[0, :, 3, 0, 0].tolist() == [1, 1, 1, 1, 0]
    assert held[0, :, 0, 0, 0].tolist() == whole[0, :, 3, 0, 0].tolist() == [0, 0, 0, 0, 1]
    assert not torch.allclose(embedded(controlnet, bits, held), embedded(controlnet, bits, whole))


def test_the_path_can_start_at_a_part_of_the_noise() -> None:
    clean, noise = torch.ones(1, 4, 2, 2, 2), torch.zeros(1, 4, 2, 2, 2)
    locked = Locked(clean, torch.ones(2, 2, 2, dtype=torch.bool), strength=0.6)
    start = locked.start(RectifiedFlow(), 8)
    assert start == 600
    torch.testing.assert_close(locked.noisy(noise, RectifiedFlow(), start), 0.4 * clean)
    assert Locked(clean, locked.free).start(RectifiedFlow(), 8) is None
    assert locked.start(DDPM(), 8) == 599


def test_the_preset_fits_any_bundle() -> None:
    recipe = load_recipe("inpaint")
    assert recipe.controlnet.inpainting.structures == ("tumours", "cysts")
    assert recipe.controlnet.controlnet is None
