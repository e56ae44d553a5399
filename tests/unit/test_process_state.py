"""What holds for the whole process is the caller's: work leaves it as it found it."""

import logging
import os
import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from made_bundle import SMALL, random_bundle

from maisi.bundle.bundle import Bundle
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.networks.autoencoder import Autoencoder
from maisi.pipelines.codec import decode, encode, rehearse_both
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.space.grid import Grid
from maisi.space.volume import Volume


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    made = random_bundle(SMALL)
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
