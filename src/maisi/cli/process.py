"""The one place that sets what holds for the whole process: threads, and its part among ranks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from maisi.cli.console import ASKED_WRONGLY, complain
from maisi.compute.compute import Compute
from maisi.compute.threads import default_threads
from maisi.errors import InvalidRequestError, MaisiError, RankError
from maisi.splitting.ranks import Failure, Ranks, noticing_lost_ranks


@contextmanager
def process_for(compute: Compute) -> Iterator[Ranks | None]:
    """This process made ready for a request: its threads, and its place among those that torchrun started together.

    Gives None where it works alone. All ranks make the same checks and the same numbers; the first one writes. A rank
    that fails makes the others fail.
    """
    set_threads(compute)
    if compute.device != "cpu":
        from maisi.compute.machine import multiply_exactly

        multiply_exactly()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    ranks = Ranks.join()
    try:
        with noticing_lost_ranks():
            yield ranks
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        first = _first_failure(ranks, error)
        ranks.abort()
        if first is None:
            raise
        raise _as_told(error, first, ranks.rank) from error
    ranks.leave()


def _first_failure(ranks: Ranks, error: BaseException) -> Failure | None:
    """What failed first on any rank; an error that only says that another is gone is not told as a failure itself."""
    if not isinstance(error, Exception):
        return None
    own = str(error) if isinstance(error, MaisiError) else f"{type(error).__name__}: {error}"
    return ranks.first_failure(None if isinstance(error, RankError) else own)


def _as_told(error: BaseException, first: Failure, rank: int) -> BaseException:
    """The error that a rank ends with, so that what went wrong first is told, and told once."""
    if isinstance(error, RankError):
        return RankError(f"rank {first.rank} of this run failed: {first.message}")
    if not isinstance(error, InvalidRequestError):
        return error
    if first.rank == rank or first.message != str(error):
        complain(str(error))
    return SystemExit(ASKED_WRONGLY)


def set_threads(compute: Compute) -> None:
    """Let torch compute with the threads of a request, else with those that the machine has to spare."""
    import torch

    torch.set_num_threads(compute.threads or default_threads())
