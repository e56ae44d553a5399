"""What holds for the whole process is the caller's: work leaves it as it found it."""

import logging
import os
import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.codec import decode, encode, rehearse_both
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.space.grid import Grid
from maisi.space.volume import Volume

BACKBONE = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {
            "autoencoder": Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)),
            "unet": DenoisingUNet(UNetConfig(**BACKBONE, regions=True, spacing=True)),
            "controlnet": ControlNet(ControlNetConfig(**BACKBONE, embedding_widths=(4, 8))),
        }
    limits = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(20, 20, 20), max_size=(32, 32, 32))
    info = BundleInfo(
        name="tiny", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec(), limits=limits
    )
    made = Bundle.of(info, networks)
    list(generate(asked(None), made))  # imports what torch imports at first use: sympy changes filters of warnings
    return made


def asked(memory: str | None) -> GenerateRequest:
    settings = {"size": (16, 16, 16), "spacing": (16.0, 16.0, 16.0), "steps": 2, "compute": {"memory": memory}}
    return GenerateRequest.model_validate(settings)


def process_state() -> dict[str, object]:
    """What torch, numpy and Python keep for a process and a library could change.

    Not the state of `random`: the checks of annotations draw from it in tests.
    """
    return {
        "threads": torch.get_num_threads(),
        "threads between operations": torch.get_num_interop_threads(),
        "default format": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul precision": torch.get_float32_matmul_precision(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "denormals": float(torch.tensor(1e-40) * 1) != 0.0,
        "TF32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "torch's draws": torch.get_rng_state().tolist(),
        "numpy's draws": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "numpy's errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)),
        "log": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("memory", [None, "2GB"])
def test_generating_from_python_changes_nothing_of_the_process(bundle: Bundle, memory: str | None) -> None:
    before = process_state()
    list(generate(asked(memory), bundle))
    assert process_state() == before


@pytest.mark.parametrize("memory", [None, 2_000_000_000])
def test_encoding_and_decoding_from_python_change_nothing_of_the_process(bundle: Bundle, memory: int | None) -> None:
    grid = Grid.centered((16, 16, 16), (2.0, 2.0, 2.0))
    volume = Volume(np.linspace(-900, 900, 4096, dtype=np.float32).reshape(16, 16, 16), grid)
    before = process_state()
    compute = Compute(memory=memory, precision="float32")
    autoencoder = fit(bundle, compute, partial(rehearse_both, grid.shape)).network("autoencoder")
    assert isinstance(autoencoder, Autoencoder)
    decode(autoencoder, encode(autoencoder, volume))
    assert process_state() == before
