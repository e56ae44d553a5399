"""What `maisi plan --train` says that a step holds is what each process of a training holds."""

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_ranks
from test_training_on_slabs import source

from maisi.bundle.bundle import load_bundle
from maisi.diffusion.denoiser import predict
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.label_codec import label_channels
from maisi.recipes.load import load_recipe
from maisi.recipes.memory import training_memory
from maisi.recipes.recipe import BundleRecipe
from maisi.training.autoencoder import AutoencoderTraining, train_autoencoder
from maisi.training.controlnet import ControlNetTraining
from maisi.training.diffusion import DiffusionTraining
from maisi.training.distributed import learning_together
from maisi.training.labels import LabelPatches, train_label_autoencoder
from maisi.training.learner import TOTAL, checkpoint_activations
from maisi.training.loop import LoopConfig
from maisi.training.memory import NUMBER, MadeTensors, kept_bytes
from maisi.training.optimization import Optimization
from maisi.training.slabs import Slabs, gathered


class Kept:
    """A tensor that the backward pass will read."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def measured() -> Iterator[list[int]]:
    """Bytes that are kept for backward passes within, at most, but for weights."""
    alive: dict[int, tuple[int, int]] = {}  # by storage: how many keep it, and its bytes
    most = [0]

    def drop(key: int) -> None:
        count, size = alive.pop(key)
        if count > 1:
            alive[key] = count - 1, size

    def keep(tensor: Tensor) -> Kept | Tensor:
        base = tensor if tensor._base is None else tensor._base
        if base.is_leaf and base.requires_grad:
            return tensor
        storage, kept = tensor.untyped_storage(), Kept(tensor)
        count, size = alive.get(storage._cdata, (0, storage.nbytes()))
        alive[storage._cdata] = count + 1, size
        weakref.finalize(kept, drop, storage._cdata)
        most[0] = max(most[0], sum(size for _, size in alive.values()))
        return kept

    def give(kept: Kept | Tensor) -> Tensor:
        return kept.tensor if isinstance(kept, Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        yield most


def recipe(slabs: int) -> BundleRecipe:
    """The tiny recipe's autoencoder on patches that are longer than wide, in slabs."""
    whole = load_recipe("tiny")
    config = whole.for_autoencoder()
    update = {
        "optimization": config.optimization.model_copy(update={"slabs": slabs, "precision": "float32"}),
        "loop": LoopConfig(num_steps=1),
        "batch_size": 1,
        "patch": (24, 64, 24),
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
        "early_share": 0.0,
    }
    settings = {**config.model_dump(), **update}
    return BundleRecipe(name="tiny", licence="none", autoencoder=AutoencoderTraining.model_validate(settings))


UNET = UNetConfig(
    channels=(8, 16), num_res_blocks=(1, 1), attention_levels=(False, True), head_channels=8, norm_groups=4
)
LATENT = (8, 24, 8)


def hold_of_unet(rank: int, folder: Path, slabs: int) -> None:
    unet, x, shares = DenoisingUNet(UNET), torch.zeros(1, 4, *LATENT), Slabs.of(slabs)
    t = torch.tensor([300.0])
    kept = kept_bytes([unet], lambda: gathered(predict(unet, None, shares.split(x), t, conditions={}))[0].abs().mean())
    (folder / f"{rank}.json").write_text(json.dumps(kept))


def test_a_process_keeps_of_a_unet_with_attention_what_was_planned(tmp_path: Path) -> None:
    run_ranks(hold_of_unet, 2, tmp_path, 2)
    kept = max(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    settings = {"loop": LoopConfig(num_steps=1), "network": UNET, "sizes": (LATENT,)}
    optimization = Optimization(slabs=2, precision="float32")
    diffusion = DiffusionTraining.model_validate({**settings, "optimization": optimization})
    planned = training_memory(BundleRecipe(name="tiny", licence="none", diffusion=diffusion))["diffusion"]
    assert kept == pytest.approx(planned.activations, rel=0.02)


def hold(rank: int, folder: Path, slabs: int) -> None:
    config = recipe(slabs).for_autoencoder()
    with MadeTensors("cpu") as made, measured() as most:
        train_autoencoder(config, source(), folder / "run")
    (folder / f"{rank}.json").write_text(json.dumps({"kept": most[0], "made": made.most}))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_process_keeps_and_makes_what_was_planned(size: int, tmp_path: Path) -> None:
    """What is made are all tensors of a whole run: weights, optimiser and data among them."""
    run_ranks(hold, size, tmp_path, size)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    planned = training_memory(recipe(size))["autoencoder"]
    assert planned.processes == size
    assert max(each["kept"] for each in found) == pytest.approx(planned.activations, rel=0.02)
    assert max(each["made"] for each in found) == pytest.approx(planned.peak, rel=0.05)


@pytest.mark.parametrize("again", [False, True])
def test_a_step_of_a_unet_makes_what_was_planned_also_where_blocks_are_computed_again(again: bool) -> None:
    optimization = Optimization(checkpoint_activations=again, accumulate=2, precision="float32")
    settings = {"loop": LoopConfig(num_steps=1), "network": UNET, "sizes": (LATENT,), "optimization": optimization}
    recipe = BundleRecipe(name="tiny", licence="none", diffusion=DiffusionTraining.model_validate(settings))
    planned = training_memory(recipe)["diffusion"]
    unet, x, t = DenoisingUNet(UNET), torch.zeros(1, 4, *LATENT), torch.tensor([300.0])
    if again:
        checkpoint_activations(unet)
    with MadeTensors("cpu") as made:
        for _ in range(2):
            predict(unet, None, x, t, conditions={}).abs().mean().backward()
    stays = planned.weights + planned.moments + planned.averages
    assert made.most + stays == pytest.approx(planned.peak, rel=0.02)


def test_a_label_autoencoder_makes_what_was_planned(tmp_path: Path) -> None:
    labels = load_recipe("tiny").for_labels()
    labels = labels.model_copy(update={"maps": labels.maps.model_copy(update={"channels": "released"})})
    config = labels.autoencoder.model_copy(update={"loop": LoopConfig(num_steps=1)})
    patches = LabelPatches([np.zeros(config.patch, np.uint8)], ["air"], label_channels())
    with MadeTensors("cpu") as made:
        train_label_autoencoder(config, patches, tmp_path)
    planned = training_memory(BundleRecipe(name="tiny", licence="none", labels=labels))["label_autoencoder"]
    assert made.most == pytest.approx(planned.peak, rel=0.05)


def travel(rank: int, folder: Path) -> None:
    unet, x, t = DenoisingUNet(UNET), torch.zeros(1, 4, *LATENT), torch.tensor([300.0])
    losses = learning_together({"unet": unet}, TOTAL, x.device, sharded=False)
    for _ in range(2):  # after the first, buckets are put into the order in which gradients come
        losses(lambda _: {TOTAL: predict(unet, None, x, t, conditions={}).abs().mean()}, "float32")[TOTAL].backward()
        gradients = [p.grad for p in unet.parameters() if p.grad is not None]
        lie_in = {gradient.untyped_storage()._cdata: gradient.untyped_storage().nbytes() for gradient in gradients}
        for parameter in unet.parameters():
            parameter.grad = None
    told = {"gradients": len(gradients), "storages": len(lie_in), "bytes": sum(lie_in.values())}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_replicated_gradients_lie_where_they_travel_from_and_nowhere_else(tmp_path: Path) -> None:
    run_ranks(travel, 2, tmp_path)
    numbers = sum(parameter.numel() for parameter in DenoisingUNet(UNET).parameters())
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["storages"] < told["gradients"]
        assert told["bytes"] == NUMBER * numbers


def test_processes_that_share_no_slabs_keep_their_gradients_from_step_to_step() -> None:
    settings = {"loop": LoopConfig(num_steps=1), "network": UNET, "sizes": (LATENT,)}
    recipe = BundleRecipe(name="tiny", licence="none", diffusion=DiffusionTraining.model_validate(settings))
    alone, together = (training_memory(recipe, processes)["diffusion"] for processes in (1, 2))
    assert alone.peak < together.peak <= alone.peak + alone.gradients


def test_parts_are_counted_alone() -> None:
    whole = load_recipe("tiny")
    assert training_memory(whole, parts=("diffusion",)) == {"diffusion": training_memory(whole)["diffusion"]}


@pytest.mark.parametrize("part", ["diffusion", "controlnet"])
def test_all_samples_of_a_batch_are_counted_and_a_second_answer_too(part: str) -> None:
    def made(**more: object) -> int:
        settings = load_recipe("tiny").model_dump(mode="json")
        settings[part] |= more
        return training_memory(BundleRecipe.model_validate(settings), 1, (part,))[part].activations

    one = made()
    assert made(batch_size=4) > 3 * one
    if part == "controlnet":
        contrast = {"structures": ["tumours"], "weight": 0.1}
        assert made(contrast=contrast) > 1.5 * made(contrast=None)


def test_networks_of_a_bundle_are_counted_where_the_recipe_describes_none() -> None:
    """Those that go before and those that go on learning; the factor of the autoencoder with them."""
    bundle = load_bundle("ct-small")
    settings = {"start_from": "ct-small", "loop": LoopConfig(num_steps=1), "sizes": ()}
    recipe = BundleRecipe(
        name="more",
        licence="none",
        limits=bundle.info.limits.model_copy(update={"max_size": (64, 64, 64)}),
        diffusion=DiffusionTraining.model_validate(settings),
        controlnet=ControlNetTraining.model_validate(settings),
    )
    counted = training_memory(recipe, before=bundle)
    sizes = {name: sum(p.numel() for p in bundle.network(name).parameters()) for name in ("unet", "controlnet")}
    assert counted["diffusion"].weights == NUMBER * sizes["unet"]
    assert counted["controlnet"].weights == NUMBER * sum(sizes.values())
    coarser = AutoencoderConfig(channels=(8,) * 3, num_res_blocks=(1,) * 3, norm_groups=4)
    assert coarser.factor == 2 * bundle.autoencoder.config.factor
    other = replace(bundle, configs={"autoencoder": coarser, "unet": bundle.configs["unet"]})
    smaller = training_memory(recipe, parts=("diffusion",), before=other)
    assert 4 * smaller["diffusion"].activations < counted["diffusion"].activations
