"""One sample of many in three stages: what it shows, the volume, and the files; see `overlap`."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maisi.bundle.bundle import Bundle
from maisi.compute.compute import Compute
from maisi.errors import InvalidRequestError, RunError, StorageError
from maisi.pipelines.generate import OnStage, Sample, draw_one, fit_to, sample_generators
from maisi.pipelines.labels import Anatomy, LabelsOf, LabelSource
from maisi.pipelines.many.requests import Drawn
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import ValidRequest, load_for, validate_generate

OF_MEMORY = {
    "bundle",
    "unlabelled",
    "modality",
    "controlnet_scale",
    "guidance_labels",
    "guidance_conditions",
    "compute",
}
"""Settings of a request that its memory depends on, besides its shape: what networks are asked, and how."""


@dataclass(frozen=True)
class SampleWork:
    """A sample to make, as plain data: what was drawn, the request that it makes, checked, and the folder."""

    drawn: Drawn
    request: GenerateRequest
    folder: Path


@dataclass(frozen=True)
class Ready:
    """A sample whose anatomy is there, or why there can be none."""

    work: SampleWork
    valid: ValidRequest
    source: LabelSource
    impossible: str = ""


@dataclass(frozen=True)
class Made:
    """A sample that is still to be written, or why there is none."""

    work: SampleWork
    source: LabelSource
    sample: Sample | None
    impossible: str = ""
    trouble: str = ""  # what went wrong and may go well another time

    @property
    def failed(self) -> str:
        """Why there is no good sample; "" where there is one, or one that is to be kept however it is."""
        if self.sample is None:
            return self.impossible
        is_kept = self.sample.quality.passed or self.work.request.quality.on_failure == "keep"
        return "" if is_kept else "; ".join(self.sample.problems)


@dataclass(frozen=True)
class DrawnBefore(LabelsOf):
    """A label source, one draw of which was made before: of the numbers in `state`."""

    state: dict[str, object]
    first: Anatomy

    @classmethod
    def of(cls, source: LabelSource, seed: int) -> "DrawnBefore":
        """A source with the draw of the only sample of a request of that seed."""
        rng, generator, _ = sample_generators(seed, 0)
        state = dict(rng.bit_generator.state)
        return cls(source, state, source.draw(rng, generator))

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        if rng.bit_generator.state == self.state:
            return self.first
        return self.source.draw(rng, generator)


@dataclass
class Maker:
    """Makes samples with a bundle whose networks are loaded; plans of networks are kept from sample to sample."""

    bundle: Bundle
    on_stage: OnStage = lambda stage, done, total: None
    fitted: dict[str, Bundle] = field(default_factory=dict)

    def prepare(self, work: SampleWork) -> Ready:
        """The first stage: the request with its source, what the sample shows drawn where no network is needed.

        Raises `InvalidRequestError` where the request, checked before, cannot be carried out here: a file is gone.
        """
        valid = validate_generate(work.request, self.bundle)
        source = only_source(valid)
        if owns_networks(source):
            return Ready(work, valid, source)
        try:
            return Ready(work, valid, DrawnBefore.of(source, work.request.seed))
        except InvalidRequestError as error:
            return Ready(work, valid, source, str(error))

    def make(self, ready: Ready) -> Made:
        """The second stage: the volume."""
        if ready.impossible:
            return Made(ready.work, ready.source, None, ready.impossible)
        bundle = self.fit(ready.valid, ready.source)
        try:
            sample = draw_one(ready.valid.request, bundle, ready.source, 0, self.on_stage)
        except InvalidRequestError as error:
            return Made(ready.work, ready.source, None, str(error))
        except StorageError:
            raise
        except RunError as error:
            return Made(ready.work, ready.source, None, trouble=str(error))
        return Made(ready.work, ready.source, sample)

    def fit(self, valid: ValidRequest, source: LabelSource) -> Bundle:
        """The bundle fitted to a sample; within memory, one of the same shapes serves again."""
        if valid.request.compute.memory is None:
            return fit_to(valid, source)
        key = shapes_key(valid.request, source)
        if key not in self.fitted:
            self.fitted[key] = fit_to(valid, source)
        return self.fitted[key]


def owns_networks(source: LabelSource) -> bool:
    """Whether drawing computes with networks: then no other thread may do it while networks compute."""
    held = vars(source).values()
    return any(
        isinstance(each, nn.Module | Bundle) or (isinstance(each, LabelSource) and owns_networks(each)) for each in held
    )


def shapes_key(request: GenerateRequest, source: LabelSource) -> str:
    """What the memory of a sample depends on."""
    return f"{source.grid.shape} {request.model_dump_json(include=OF_MEMORY)}"


@lru_cache(maxsize=1)
def bundle_for(name: str, compute: Compute) -> Bundle:
    """The bundle of a request; a process that makes one sample after the other loads it once."""
    return load_for(GenerateRequest(bundle=name, compute=compute))


def only_source(valid: ValidRequest) -> LabelSource:
    """The one label source of a request; `InvalidRequestError` where it names a folder of several."""
    if len(valid.sources) > 1:
        raise InvalidRequestError(
            f"{valid.request.labels} holds {len(valid.sources)} label maps, and a sample follows one; accepted: "
            f"labels: {{file_of: {valid.request.labels}}} to draw one, or the path of one"
        )
    return valid.sources[0]
