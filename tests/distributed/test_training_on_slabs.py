"""One volume over several processes: each has its slabs of every activation, and the step is that of one process."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from processes import run_ranks
from test_training_slabs import PLAIN, reconstructed, steered

from maisi.data.dataset import NamedVolumes, PatchSource, patch_source
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.discriminator import DiscriminatorConfig
from maisi.space.grid import Grid
from maisi.space.volume import Volume
from maisi.splitting import Ranks
from maisi.training.autoencoder import AutoencoderTraining, train_autoencoder
from maisi.training.loop import LoopConfig
from maisi.training.slabs import WHOLE, Slabs


def source() -> PatchSource:
    hu = np.full((16, 16, 16), -1000.0, np.float32)
    hu[4:12, 4:12] = np.random.default_rng(0).normal(40.0, 200.0, (8, 8, 16))
    volume = Volume(hu, Grid.centered(hu.shape, (3.0, 3.0, 3.0)))
    return patch_source([(1.0, [NamedVolumes("a", partial(list, [volume]))])])


def learn(folder: Path, slabs: int) -> None:
    """A run with all losses; one batch a step, which batches over processes could not share."""
    config = AutoencoderTraining(
        network=AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2),
        discriminator=DiscriminatorConfig(channels=4, num_layers=2),
        loop=LoopConfig(num_steps=3, validate_every=3),
        optimization=PLAIN.model_copy(update={"slabs": slabs}),
        batch_size=1,
        patch=(12, 16, 12),
        perceptual_weight=0.1,
        perceptual_slices=2,
        adversarial_weight=0.1,
        adversarial_start=1,
        validation_patches=1,
    )
    train_autoencoder(config, source(), folder, validation=source())


def work(rank: int, folder: Path) -> None:
    ranks = Ranks(timeout_s=60)
    for case in (steered, reconstructed):
        networks, loss = case()
        parameters = [p for network in networks.values() for p in network.parameters()]
        whole = torch.autograd.grad(loss(WHOLE), parameters)
        scale = max(float(gradient.abs().max()) for gradient in whole)
        for count in (2, 3):
            slabs = Slabs(count, ranks)
            loss(slabs).backward()
            slabs.sum_gradients(parameters)
            for parameter, wanted in zip(parameters, whole, strict=True):
                assert parameter.grad is not None
                assert float((parameter.grad - wanted).abs().max()) < 1e-11 * scale
                parameter.grad = None
    learn(folder / "two", slabs=2)


def test_steps_on_slabs_of_two_processes_are_those_of_one_on_the_whole(tmp_path: Path) -> None:
    run_ranks(work, 2, tmp_path)
    learn(tmp_path / "one", slabs=1)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = ([json.loads(line) for line in each] for each in lines)
    assert len(one) == len(two) == 4
    for split, whole in zip(two, one, strict=True):
        assert split.keys() == whole.keys()
        for name in whole.keys() - {"seconds", "split"}:
            assert split[name] == pytest.approx(whole[name], rel=2e-3, abs=1e-4), name  # of float32 and Adam
