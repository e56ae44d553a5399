"""A helper that stays: tells what a job would take, from its request, without computing it. It imports torch.

Each line of its standard input is a question in JSON, `{kind, request, threads, memory}`, the latter two being what a
worker has; each line of its standard output the answer, `{seconds, bytes, how, problems}`.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from maisi.bundle.bundle import Bundle
from maisi.compute.compute import Compute, format_bytes
from maisi.compute.fit import fixed_bytes, plan
from maisi.compute.machine import dtype_of
from maisi.errors import InvalidRequestError, MaisiError
from maisi.pipelines.generate import rehearse
from maisi.pipelines.labels import LabelSource
from maisi.pipelines.validate import ValidRequest, validate_generate
from maisi.runs.tasks import task_named
from maisi.service.helper import end_with_parent
from maisi.service.job import Limits
from maisi.service.kinds import KINDS
from maisi.service.worker import WorkerSettings, resolve
from maisi.shapes import in_words
from maisi.splitting.plan import MemoryPlan
from maisi.storage.settings import check_settings

BOUNDLESS = 1 << 60
HELD_BYTES = 16  # what a volume, its labels and its file take, a voxel
_TRIED = (1, 16, 32, 32, 32)  # the shape that the speed of this machine is measured with


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What a job would take; `problems` are what its check refuses."""
    kind = str(question["kind"])
    limits, threads = Limits(memory=question.get("memory")), int(question.get("threads") or 1)
    try:
        settings = WorkerSettings(folder=Path(), limits=limits, threads=threads)
        checked = check_settings(KINDS[kind], resolve(kind, question["request"], settings))
        torch.set_num_threads(threads)
        if kind != "generate":
            task_named(kind.replace("-", " ")).check(checked)
            return {"how": "checked; how long it takes is told when it runs"}
        return _told(validate_generate(checked))  # type: ignore[arg-type]
    except MaisiError as error:
        return {"problems": str(error).splitlines()}


def _told(valid: ValidRequest) -> dict[str, Any]:
    """Time and memory of a generate request; where it has a budget of memory, within it."""
    request, source = valid.request, valid.sources[0]
    memory = request.compute.memory
    compute = request.compute.model_copy(update={"memory": memory or BOUNDLESS, "device": "cpu"})
    plans = _plans(valid, source, compute)
    samples = request.count * len(valid.sources)
    flops = sum(each.flops * _times(name, request.steps) for name, each in plans.items())
    voxels = source.grid.shape[0] * source.grid.shape[1] * source.grid.shape[2]
    peak = max(each.peak_bytes for each in plans.values())
    taken = fixed_bytes(valid.bundle, dtype_of(compute)) + peak + HELD_BYTES * voxels
    cut = max((each.parts for each in plans.values()), default=1)
    size = in_words(source.grid.shape)
    how = f"{samples} of {size} voxels, {request.steps} steps, {'in one piece' if cut == 1 else f'in {cut} slabs'}"
    if memory:
        how += f", within {format_bytes(memory)}"
    return {"seconds": round(samples * flops / (speed() * torch.get_num_threads()), 3), "bytes": int(taken), "how": how}


def _plans(valid: ValidRequest, source: LabelSource, compute: Compute) -> dict[str, MemoryPlan]:
    def work(networks: Bundle) -> None:
        rehearse(valid.request, source, networks)

    return plan(valid.bundle, compute, work)


def _times(name: str, steps: int) -> int:
    """How often a sample calls a network: those of the denoising at every step, the autoencoder once."""
    return 1 if name.startswith("autoencoder") else steps


@lru_cache(maxsize=1)
def speed() -> float:
    """Operations a second that a thread of this machine convolves with, measured once, whoever else computes."""
    x, weight = torch.rand(_TRIED), torch.rand(16, 16, 3, 3, 3)
    work = 2 * 16 * 16 * 27 * 32**3
    best = min(_seconds(x, weight) for _ in range(4))
    return work / best


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.process_time()
    with torch.inference_mode():
        torch.nn.functional.conv3d(x, weight, padding=1)
    return time.process_time() - started


def main() -> None:
    """Answer line by line until standard input ends."""
    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except (InvalidRequestError, MemoryError) as error:
            told = {"problems": [str(error) or "it takes more memory than there is"]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(Path("/"))
    end_with_parent()
    main()
