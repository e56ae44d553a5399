"""A rank that dies ends the run on the others, with an error and without a wait."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_each_to_its_end

from maisi.errors import InvalidPlanError, RankError
from maisi.splitting import Ranks, SlabTensor

NETWORK = [nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv3d(4, 2, 3, padding=1)]


def fail(rank: int, folder: Path, how: str) -> None:
    ranks = Ranks(timeout_s=60)
    network = nn.Sequential(*NETWORK).eval()
    with torch.no_grad():
        network(SlabTensor.split(torch.randn(1, 2, 6, 4, 4), ranks=ranks)).gather()
        started = time.monotonic()
        if rank == 1:
            if how == "killed":
                os.kill(os.getpid(), 9)
            ranks.abort()
            raise ZeroDivisionError
        try:
            for _ in range(100):
                network(SlabTensor.split(torch.randn(1, 2, 6, 4, 4), ranks=ranks)).gather()
        except RankError:
            (folder / str(rank)).write_text(str(time.monotonic() - started))
            raise


@pytest.mark.parametrize("how", ["killed", "an error"])
def test_the_others_get_an_error_within_seconds(tmp_path: Path, how: str) -> None:
    codes = run_each_to_its_end(fail, 3, tmp_path, how, timeout_s=60)
    assert all(codes), codes  # every rank ended, none as if nothing had happened
    seconds = {path.name: float(path.read_text()) for path in tmp_path.iterdir()}
    assert set(seconds) == {"0", "2"}
    assert max(seconds.values()) < 15


def test_outside_of_a_distributed_run_there_are_no_ranks() -> None:
    with pytest.raises(InvalidPlanError, match="torchrun"):
        Ranks.join()
    with pytest.raises(InvalidPlanError, match="torchrun"):
        Ranks()
