"""The one place that sets what holds for the whole process: threads, and its part among ranks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from maisi.compute.compute import Compute
from maisi.compute.threads import default_threads
from maisi.splitting.ranks import Ranks


@contextmanager
def process_for(compute: Compute) -> Iterator[Ranks | None]:
    """This process made ready for a request: its threads, and its place among those that torchrun started together.

    Gives None where it works alone. All ranks make the same checks and the same numbers; the first one writes. A rank
    that fails makes the others fail.
    """
    set_threads(compute)
    set_exact(compute)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    ranks = Ranks.join()
    try:
        yield ranks
    except BaseException:
        ranks.abort()
        raise
    ranks.leave()


def set_exact(compute: Compute) -> None:
    """Let float32 mean float32 on a GPU too: by default torch convolves with three digits there (TF32)."""
    import torch

    if compute.device != "cpu":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def set_threads(compute: Compute) -> None:
    """Let torch compute with the threads of a request, else with those that the machine has to spare."""
    import torch

    torch.set_num_threads(compute.threads or default_threads())
