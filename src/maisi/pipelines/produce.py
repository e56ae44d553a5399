"""A generate request carried out into a folder: volumes, labels, previews and the record of the run."""

import math
from collections.abc import Callable
from pathlib import Path

from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle
from maisi.errors import InvalidRequestError
from maisi.networks.unet import UNetConfig
from maisi.pipelines.conditioning import Conditioning, encode_conditioning
from maisi.pipelines.execution import bundle_of, fitted, lasting_name, settled
from maisi.pipelines.generate import WORK, OnStage, Sample, controlnet_scale, draw_samples, label_source
from maisi.pipelines.labels import GivenLabels, LabelSource
from maisi.pipelines.meter import StageMeter
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.requests import DEFAULT_REGION, GenerateRequest
from maisi.pipelines.runs import RunRecord, check_free, check_same_inputs, finish_run, now, open_run, write_run_settings
from maisi.space.files import write_labels, write_volume
from maisi.splitting.ranks import Ranks

COMMAND = "generate"

OnSample = Callable[[int, list[Path]], None]
"""Called with the index of a sample and its files, once they are in place."""


def produce(
    request: GenerateRequest,
    path: Path,
    *,
    overwrite: bool = False,
    repeats: RunRecord | None = None,
    on_stage: OnStage | None = None,
    on_sample: OnSample | None = None,
    ranks: Ranks | None = None,
) -> RunRecord | None:
    """Fill a folder with what was asked for; every sample appears whole, `run.json` when all are there.

    All that can be refused is refused before a network is loaded or the folder is made. With `repeats`, the record of
    an earlier run, bundle and input files must be that run's. With `ranks`, all of them call this and compute each
    sample together; the first one writes, the others give None.
    """
    started, meter = now(), StageMeter()
    request = settled(request)
    bundle = bundle_of(request)
    source = checked_source(request, bundle)
    check_free(path, overwrite)
    request = resolved(request, bundle, source)
    if repeats is not None:
        check_same_inputs(repeats, request.model_dump(), bundle)
    for name in bundle.names:
        bundle.network(name)
    bundle = fitted(bundle, source.grid.shape, request, only=WORK, ranks=ranks)
    if ranks is not None:
        ranks.wait()  # until all have seen the folder as it was
    meter.end("load")

    def staged(stage: str, done: int, total: int) -> None:
        if done == total:
            meter.end(stage)
        if on_stage is not None:
            on_stage(stage, done, total)

    if ranks is not None and not ranks.is_first:
        for _ in draw_samples(request, bundle, source):
            pass
        return None
    with open_run(path, overwrite) as run:
        write_run_settings(run, COMMAND, request)
        for sample in draw_samples(request, bundle, source, staged):
            write_sample(sample, request, bundle, run.partial)
            files = run.publish()
            meter.end("write")
            if on_sample is not None:
                on_sample(sample.index, files)
        return finish_run(run, COMMAND, request, bundle, started, meter, num_ranks=ranks.size if ranks else 1)


def checked_source(request: GenerateRequest, bundle: Bundle) -> LabelSource:
    """The label source of a request that this bundle can carry out; raises what says why not."""
    source = label_source(request, bundle)
    config = bundle.configs["unet"]
    assert isinstance(config, UNetConfig)
    span = source.span if isinstance(source, GivenLabels) else RegionSpan.named(request.region or DEFAULT_REGION)
    encode_conditioning(Conditioning(span, source.grid.spacing, request.modality), config)
    bundle.scheduler.timesteps(request.steps, num_voxels=math.prod(source.grid.shape))  # refuses too many
    foreign = [r.name.lower() for r in span.regions if r.name.lower() not in bundle.limits.regions]
    if foreign and not request.force:
        raise InvalidRequestError(
            f"bundle {bundle.name!r} was not trained for {' and '.join(foreign)}; accepted: "
            f"{', '.join(bundle.limits.regions)}; --force goes on"
        )
    if request.modality not in bundle.limits.modalities and not request.force:
        known = ", ".join(bundle.limits.modalities)
        raise InvalidRequestError(
            f"bundle {bundle.name!r} was not trained for modality {request.modality!r}; accepted: {known}; "
            "--force goes on"
        )
    return source


def resolved(request: GenerateRequest, bundle: Bundle, source: LabelSource) -> GenerateRequest:
    """The request with all that it left open filled in, so that it says the same anywhere on this machine."""
    return request.model_copy(
        update={
            "bundle": lasting_name(request, bundle),
            "labels": request.labels and request.labels.resolve(),
            "region": request.region or (None if request.labels else DEFAULT_REGION),
            "controlnet_scale": controlnet_scale(request, bundle),
            "size": source.grid.shape,
            "spacing": source.grid.spacing if request.spacing is None else request.spacing,
        }
    )


def write_sample(sample: Sample, request: GenerateRequest, bundle: Bundle, folder: Path) -> None:
    """Write a sample as `sample_000_ct.nii.gz`, `sample_000_labels.nii.gz` and `sample_000_preview.png`."""
    stem = folder / f"sample_{sample.index:03d}"
    write_volume(sample.volume, Path(f"{stem}_ct.{request.format}"))
    write_labels(sample.labels, Path(f"{stem}_labels.{request.format}"))
    ends = dict.fromkeys(region.name.lower() for region in (sample.span.top, sample.span.bottom))
    title = f"{bundle.name} · {' to '.join(ends)} · seed {request.seed} · sample {sample.index}"
    write_png(preview(sample.volume, sample.labels, title), Path(f"{stem}_preview.png"))
