"""`maisi evaluate images`: two sets of volumes compared, in JSON and on a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from maisi.compute.machine import device_of, fill_defaults
from maisi.errors import InvalidRequestError
from maisi.evaluation.extractors import find_extractor
from maisi.evaluation.features import PLANES, PROTOCOLS, FeatureExtractor, PlaneProtocol
from maisi.evaluation.images import ImageProtocol, MeasuredSet, check_patients, compare_images
from maisi.evaluation.images_page import images_page
from maisi.evaluation.requests import EvaluateImagesRequest
from maisi.evaluation.sets import NamedImage, features_of, image_set
from maisi.evaluation.stored import StoredPlanes, features_are_of, write_features
from maisi.runs.pieces import case_file, features_made_of, write_report
from maisi.runs.task import Checked, Run, Task
from maisi.splitting.ranks import Ranks
from maisi.storage.folders import storage_errors

REPORT, PAGE = "images.json", "images.html"


@dataclass(frozen=True)
class ToCompare:
    """Both sets, and what gives features of them."""

    real: Sequence[NamedImage]
    synthetic: Sequence[NamedImage]
    extractor: FeatureExtractor
    device: torch.device


def check(request: EvaluateImagesRequest) -> Checked[EvaluateImagesRequest]:
    """The request with both sets and the features."""
    if request.compute.memory is not None or request.compute.precision not in (None, "float32"):
        raise InvalidRequestError("features are made plane by plane in float32; leave out memory and precision")
    compute = fill_defaults(request.compute.model_copy(update={"precision": "float32"}))
    real = image_set(request.real, request.real_split, request.modality)
    synthetic = image_set(request.synthetic, request.synthetic_split, request.modality)
    check_patients(real)
    device = device_of(compute)
    found = ToCompare(real, synthetic, find_extractor(request.features, device), device)
    return Checked(request.model_copy(update={"compute": compute}), found)


def inputs(request: EvaluateImagesRequest) -> tuple[Path, ...]:
    """Both sets, and the features, where they are files."""
    paths = (request.real, request.synthetic, Path(request.features))
    return tuple(path for path in paths if path.is_file())


def work(checked: Checked[EvaluateImagesRequest], run: Run) -> None:
    """Features volume by volume, each in a file of its own and shared out over ranks; then the report and its page.

    Those that an earlier part of the run left are taken where volume and extractor are what they were made of.
    """
    request, given = checked.request, checked.subject
    protocol = PROTOCOLS[request.protocol]
    named = [(image, _file("real", image)) for image in given.real]
    named += [(image, _file("synthetic", image)) for image in given.synthetic]
    sources = {name: features_made_of(given.extractor.name, image.path) for image, name in named}
    todo = [
        (image, name)
        for image, name in named
        if not (run.has((name,)) and features_are_of(run.folder / name, sources[name]))
    ]
    done = len(named) - len(todo)
    for (_, name), (grid, planes) in zip(todo, _measured(todo, given, protocol, run.ranks), strict=True):
        done += 1
        if run.writes:
            with storage_errors(run.folder):
                write_features(run.partial / name, planes, grid, sources[name])
            run.publish()
        run.on_stage("features", done, len(named))
    if not run.writes:
        return
    paths = [run.folder / name for _, name in named]
    real, made = (
        MeasuredSet(given.real, StoredPlanes(paths[: len(given.real)])),
        MeasuredSet(given.synthetic, StoredPlanes(paths[len(given.real) :])),
    )
    how = ImageProtocol(given.extractor.name, request.protocol, protocol, request.draws, request.seed)
    found = compare_images(real, made, how, partial(run.on_stage, "distances"))
    write_report(run, {REPORT: found, PAGE: images_page(found)})
    run.warnings += list(found.notes)
    run.publish()


def _file(which: str, image: NamedImage) -> str:
    return case_file(which, image.name, kind="features", ending=".npz")


Measured = tuple[np.ndarray, dict[str, np.ndarray]]
"""Spacing (mm) and shape of a volume in one row, and the features of its planes."""


def _measured(
    todo: Sequence[tuple[NamedImage, str]], given: ToCompare, protocol: PlaneProtocol, ranks: Ranks | None
) -> Iterator[Measured]:
    """What is measured of every volume, in their order; ranks work on one each and share what they found."""
    rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    for first in range(0, len(todo), size):
        together = todo[first : first + size]
        own = _of(together[rank][0], given.extractor, protocol) if rank < len(together) else None
        yield from _shared(own, len(together), ranks, given.device)


def _of(image: NamedImage, extractor: FeatureExtractor, protocol: PlaneProtocol) -> Measured:
    volume = image.read()
    return np.array([*volume.grid.spacing, *volume.grid.shape]), features_of(image.name, volume, extractor, protocol)


def _shared(own: Measured | None, count: int, ranks: Ranks | None, device: torch.device) -> list[Measured]:
    """What the first `count` ranks have measured; it travels from device to device."""
    if ranks is None:
        return [] if own is None else [own]
    grid, planes = own or (np.zeros(6), {name: np.zeros((0, 1)) for name in PLANES})
    heads = ranks.collect(torch.from_numpy(grid)[None].to(device))
    rows = {name: ranks.collect(torch.from_numpy(planes[name]).to(device)) for name in PLANES}
    return [
        (heads[rank][0].cpu().numpy(), {name: rows[name][rank].cpu().numpy() for name in PLANES})
        for rank in range(count)
    ]


EVALUATE_IMAGES = Task("evaluate images", EvaluateImagesRequest, check, work, inputs, on_ranks=True)
