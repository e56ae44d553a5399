"""`maisi labels generate`: label maps drawn by a network; a preview, volumes of structures and a verdict on each."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.resize import mask_of, volume_ml
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, LabelGeneratorInfo
from maisi.compute.fit import fit
from maisi.errors import InvalidRequestError
from maisi.pipelines.asked import asked
from maisi.pipelines.generate import draw_labels
from maisi.pipelines.label_generator import GeneratedLabels, check_channels, generator_info, rehearse, slot_values
from maisi.pipelines.labels import Anatomy, LabelSource
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.quality.report import QualityReport
from maisi.pipelines.requests import GenerateLabelsRequest
from maisi.pipelines.validate import bundle_vocabulary, compute_for, lasting_name, load_for
from maisi.runs.task import Checked, Run, Task
from maisi.runs.tasks.generate import has_passed, set_apart
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume, id_counts
from maisi.storage.provenance import Provenance

COARSE_MM = 5.0
BODY_HU, AIR_HU = 40.0, -1000.0  # behind the colours of a preview


def check(request: GenerateLabelsRequest) -> Checked[GenerateLabelsRequest]:
    """The request with its bundle, its grid filled in."""
    region = RegionSpan.named(request.region).top.name.lower()
    request = request.model_copy(update={"compute": compute_for(request.compute, None), "region": region})
    bundle = load_for(request)
    grid = grid_of(request, generator_info(bundle))
    source = source_of(request, bundle, grid)
    update = {"bundle": lasting_name(request.bundle, bundle), "size": grid.shape, "spacing": grid.spacing}
    return Checked(request.model_copy(update=update), source, bundle)


def grid_of(request: GenerateLabelsRequest, told: LabelGeneratorInfo) -> Grid:
    """The grid that is asked for; without a size as large as it goes, without a spacing the generator's.

    Voxels of more than `COARSE_MM` are divided: bundles that follow maps take no coarser ones.
    """
    spacing = request.spacing or tuple(s / math.ceil(s / COARSE_MM) for s in told.spacing_mm)
    if request.size is not None:
        return Grid.centered(request.size, spacing)
    x, y, z = (int(n * s / wanted + 1e-6) for n, s, wanted in zip(told.size, told.spacing_mm, spacing, strict=True))
    if min(x, y, z) < 1:
        raise InvalidRequestError(f"a spacing of {spacing} mm is larger than what the label generator draws")
    return Grid.centered((x, y, z), spacing)


def source_of(request: GenerateLabelsRequest, bundle: Bundle, grid: Grid) -> LabelSource:
    """The source of the maps: the networks, and what puts right what they missed."""
    anatomy = AnatomyRequest.parse(request.anatomy, bundle_vocabulary(bundle))
    drawn = drawn_by_network(request, bundle, grid, anatomy)
    return asked(drawn, anatomy) if anatomy else drawn


def drawn_by_network(
    request: GenerateLabelsRequest, bundle: Bundle, grid: Grid, anatomy: AnatomyRequest
) -> GeneratedLabels:
    """The networks alone, told of the anatomy that is asked for."""
    check_channels(bundle, anatomy)
    return GeneratedLabels(
        bundle,
        request.region,
        grid,
        slot_values(anatomy, generator_info(bundle)),
        steps=request.steps,
        compute=request.compute,
        guidance=request.guidance,
    )


def work(checked: Checked[GenerateLabelsRequest], run: Run) -> None:
    """Draw and write map after map; those that an earlier part of the run has written stay."""
    request, bundle, grid = checked.request, checked.bundle, checked.subject.grid
    assert bundle is not None
    plain = GeneratedLabels(bundle, request.region, grid, compute=request.compute, guidance=request.guidance)
    fitted = fit(bundle, request.compute, partial(rehearse, plain), run.ranks)
    source = source_of(request, fitted, grid)
    vocabulary, keeps = bundle_vocabulary(bundle), request.on_failure == "keep"
    run.on_stage("load", 1, 1)
    for index in range(request.count):
        names = file_names(request, index)
        if run.has(names.values()):
            run.kept += [] if has_passed(run.folder / names["quality"]) else [stem_of(index)]
            continue
        if run.has(set_apart(names).values()):
            run.failed.append(stem_of(index))
            continue
        run.on_stage("labels", 0, 1)
        anatomy, report = draw_labels(
            source, request.seed, index, request.max_tries, vocabulary, afresh=True, keeps=keeps
        )
        run.on_stage("labels", 1, 1)
        assert report is not None, "networks draw labels"
        run.num_made += 1
        run.warnings += [f"{stem_of(index)}: {reason}" for reason in report.reasons]
        provenance = run.made(names["labels"])
        if not report.passed and not keeps:
            run.failed.append(stem_of(index))
            names = set_apart(names)
        elif not report.passed:
            run.kept.append(stem_of(index))
        if run.writes:
            title = f"{bundle.name} · {request.region} · seed {request.seed} · label map {index}"
            files = {kind: run.partial / name for kind, name in names.items()}
            write_map(anatomy, report, title, files, provenance)
            run.publish()


def stem_of(index: int) -> str:
    """What a map is called."""
    return f"sample_{index:03d}"


def file_names(request: GenerateLabelsRequest, index: int) -> dict[str, str]:
    """The files of a map by what they hold."""
    stem = stem_of(index)
    labels = f"{stem}_labels.{request.format}"
    others = {"preview": "preview.png", "volumes": "volumes.json", "quality": "quality.json"}
    return {"labels": labels, **{kind: f"{stem}_{ending}" for kind, ending in others.items()}}


def write_map(
    anatomy: Anatomy, report: QualityReport, title: str, files: dict[str, Path], provenance: Provenance | None
) -> None:
    """Write the map, a picture, the volumes (ml) of what it shows beside those asked for, and the report on it."""
    assert anatomy.labels is not None
    for folder in {path.parent for path in files.values()}:
        folder.mkdir(exist_ok=True)
    write_labels(anatomy.labels, files["labels"], provenance)
    mark = "" if report.passed else f"FAILED: {report.in_brief}"
    write_png(labels_preview(anatomy.labels, title, mark), files["preview"])
    files["quality"].write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    files["volumes"].write_text(json.dumps(volumes(anatomy), indent=1) + "\n", encoding="utf-8")


def volumes(anatomy: Anatomy) -> dict[str, dict[str, float]]:
    """The volume (ml) obtained of each structure in a map, and that asked for where there was one."""
    assert anatomy.labels is not None
    vocabulary, counts = load_vocabulary(), id_counts(anatomy.labels.array)
    voxel_ml = float(np.prod(anatomy.grid.spacing)) / 1000
    found = {int(id): {"obtained_ml": round(float(counts[id]) * voxel_ml, 2)} for id in np.flatnonzero(counts) if id}
    for id, ml in anatomy.asked.items():
        whole = volume_ml(mask_of(anatomy.labels, id, vocabulary), anatomy.labels)  # as it is asked for
        found[id] = {"obtained_ml": round(whole, 2), "asked_ml": round(ml, 2)}
    return {vocabulary.name(id): told for id, told in sorted(found.items())}


def labels_preview(labels: LabelMap, title: str, mark: str = "") -> Image.Image:
    """Three planes of a label map in colour; `mark` is a warning across the top."""
    flat = np.where(labels.array > 0, BODY_HU, AIR_HU).astype(np.float32)
    return preview(Volume(flat, labels.grid), labels, title, mark=mark)


LABELS_GENERATE = Task("labels generate", GenerateLabelsRequest, check, work)
