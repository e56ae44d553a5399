"""`maisi labels generate`: label maps drawn by a network, a preview and the obtained sizes each."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.slots import ABSENT, measured_sizes
from maisi.bundle.bundle import Bundle, LabelGeneratorInfo
from maisi.compute.fit import fit
from maisi.errors import InvalidRequestError
from maisi.pipelines.generate import sample_generators
from maisi.pipelines.label_generator import GeneratedLabels, generator_info, rehearse
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.requests import GenerateLabelsRequest
from maisi.pipelines.validate import compute_for, lasting_name, load_for
from maisi.runs.task import Checked, Run, Task
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

BODY_HU, AIR_HU = 40.0, -1000.0  # behind the colours of a preview


def check(request: GenerateLabelsRequest) -> Checked[GenerateLabelsRequest]:
    """The request with its bundle, its grid filled in."""
    request = request.model_copy(update={"compute": compute_for(request.compute, None)})
    region = RegionSpan.named(request.region).top.name.lower()
    request = request.model_copy(update={"region": region})
    bundle = load_for(request)
    grid = grid_of(request, generator_info(bundle))
    source = source_of(request, bundle, grid)
    update = {"bundle": lasting_name(request.bundle, bundle), "size": grid.shape, "spacing": grid.spacing}
    return Checked(request.model_copy(update=update), source, bundle)


def grid_of(request: GenerateLabelsRequest, told: LabelGeneratorInfo) -> Grid:
    """The grid that is asked for; without size and spacing the generator's, without one of them as large as it goes."""
    spacing = request.spacing or told.spacing_mm
    if request.size is not None:
        return Grid.centered(request.size, spacing)
    x, y, z = (int(n * s / wanted + 1e-6) for n, s, wanted in zip(told.size, told.spacing_mm, spacing, strict=True))
    if min(x, y, z) < 1:
        raise InvalidRequestError(f"a spacing of {spacing} mm is larger than what the label generator draws")
    return Grid.centered((x, y, z), spacing)


def source_of(request: GenerateLabelsRequest, bundle: Bundle, grid: Grid) -> GeneratedLabels:
    """The source of the maps."""
    return GeneratedLabels(
        bundle, request.region, grid, request.sizes, request.steps, request.max_tries, request.compute
    )


def work(checked: Checked[GenerateLabelsRequest], run: Run) -> None:
    """Draw and write map after map; those that an earlier part of the run has written stay."""
    request, source = checked.request, checked.subject
    fitted = fit(source.bundle, request.compute, partial(rehearse, source), run.ranks)
    source = source_of(request, fitted, source.grid)
    run.on_stage("load", 1, 1)
    for index in range(request.count):
        names = file_names(request, index)
        if run.has(names.values()):
            continue
        rng, of_labels, _ = sample_generators(request.seed, index)
        run.on_stage("labels", 0, 1)
        labels = source.draw(rng, of_labels).labels
        run.on_stage("labels", 1, 1)
        if run.writes:
            write_map(labels, source, index, {kind: run.partial / name for kind, name in names.items()})
            run.publish()


def file_names(request: GenerateLabelsRequest, index: int) -> dict[str, str]:
    """The files of a map by what they hold."""
    stem = f"sample_{index:03d}"
    labels = f"{stem}_labels.{request.format}"
    return {"labels": labels, "preview": f"{stem}_preview.png", "sizes": f"{stem}_sizes.json"}


def write_map(labels: LabelMap, source: GeneratedLabels, index: int, files: dict[str, Path]) -> None:
    """Write the map, a picture, and what was asked for beside what is there."""
    write_labels(labels, files["labels"])
    title = f"{source.bundle.name} · {source.region} · label map {index}"
    write_png(labels_preview(labels, title), files["preview"])
    found = measured_sizes(labels, generator_info(source.bundle).sized)
    told = {
        name: {"asked": source.sizes.get(name), "obtained": None if size == ABSENT else round(size, 4)}
        for name, size in found.items()
    }
    files["sizes"].write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def labels_preview(labels: LabelMap, title: str) -> Image.Image:
    """Three planes of a label map in colour."""
    flat = np.where(labels.array > 0, BODY_HU, AIR_HU).astype(np.float32)
    return preview(Volume(flat, labels.grid), labels, title)


LABELS_GENERATE = Task("labels generate", GenerateLabelsRequest, check, work)
