"""`maisi labels library add` and `draw`: maps into a library, and others out of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.data.library import INDEX, Library, LibraryEntry, add_map, entry_of, ids_of, lines_of, sum_of, write_index
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.pipelines.asked import asked
from maisi.pipelines.generate import sample_generators
from maisi.pipelines.label_requests import LibraryAddRequest, LibraryDrawRequest
from maisi.pipelines.labels import Anatomy, GridRules, LabelSource, region_grid
from maisi.pipelines.library import library_source
from maisi.pipelines.prepare_labels import prepared
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.requests import DEFAULT_REGION
from maisi.runs.task import Checked, Output, Run, Task
from maisi.runs.tasks.labels_prepare import check as check_prepare
from maisi.space.files import write_labels
from maisi.space.volume import Volume
from maisi.storage.provenance import Provenance

BODY_HU, AIR_HU = 40.0, -1000.0  # behind the colours of a preview
ANY_GRID = Limits(max_size=(2048, 2048, 2048))


def check_add(request: LibraryAddRequest) -> Checked[LibraryAddRequest]:
    """The request with the maps that its sources hold, none of them read."""
    return check_prepare(request)  # type: ignore[return-value]


def work_add(checked: Checked[LibraryAddRequest], run: Run) -> None:
    """Add map after map, then write the index; what is in the library already stays as it is."""
    run.publish()  # the settings, by which a later run knows that it adds to a library
    request, folder = checked.request, run.folder
    entries = {entry.id: entry for entry in lines_of(folder)}
    sums = {entry.sum: entry.id for entry in entries.values()}
    for done, found in enumerate(checked.subject, start=1):
        try:
            labels, span = prepared(found, request)
        except InvalidRequestError as error:
            run.warnings.append(f"{found.id}: {error}")
            continue
        sum, told = sum_of(labels), found.case or Case(id=found.id)
        if sum in sums:
            same = "already there" if sums[sum] == found.id else f"the same map as {sums[sum]}"
            run.warnings.append(f"{found.id}: {same}")
            continue
        entry = entry_of(
            labels,
            found.id if found.id.casefold() not in ids_of(folder) else f"{found.id}_{sum[:8]}",
            span,
            patient=told.patient,
            licence=told.licence or request.licence,
            source=told.source or request.source,
            split=request.split if found.case is None else told.split,
        )
        add_map(folder, labels, entry)
        entries[entry.id], sums[sum] = entry, entry.id
        run.on_stage("add", done, len(checked.subject))
    if not entries:
        raise InvalidRequestError(f"none of {len(checked.subject)} label maps could be added: {run.warnings[0]}")
    run.outputs.add(write_index(folder))


def check_draw(request: LibraryDrawRequest) -> Checked[LibraryDrawRequest]:
    """The request with the maps of the library that can be drawn for it."""
    region = request.region or DEFAULT_REGION
    grid = region_grid(region, GridRules(ANY_GRID, 1, request.size, request.spacing, force=True))
    library = Library.read(request.library)
    anatomy = AnatomyRequest.parse(request.anatomy)
    source = library_source(library, region, grid, anatomy, request.min_distance, request.enclose)
    told = {"library": request.library.resolve(), "region": region, "size": grid.shape, "spacing": grid.spacing}
    return Checked(request.model_copy(update=told), asked(source, anatomy))


def inputs_draw(request: LibraryDrawRequest) -> tuple[Path, ...]:
    """The index of the library, which holds the sums of its maps."""
    return (request.library / INDEX,)


def work_draw(checked: Checked[LibraryDrawRequest], run: Run) -> None:
    """Draw and write map after map; those that an earlier part of the run has written stay."""
    request = checked.request
    source: LabelSource = checked.subject
    for index in range(request.count):
        stem = f"sample_{index:03d}"
        names = {"labels": f"{stem}_labels.nii.gz", "preview": f"{stem}_preview.png", "origin": f"{stem}_origin.json"}
        if run.has(names.values()):
            continue
        rng, of_labels, _ = sample_generators(request.seed, index)
        drawn = source.draw(rng, of_labels)
        run.num_made += 1
        run.on_stage("labels", 1, 1)
        files = {kind: run.partial / name for kind, name in names.items()}
        write_drawn(drawn, f"{request.region} · label map {index}", files, run.made(names["labels"]))
        run.publish()


def write_drawn(drawn: Anatomy, title: str, files: dict[str, Path], provenance: Provenance | None) -> None:
    """Write a drawn map, a picture, and where it is from with what was asked for and obtained (ml)."""
    labels, origin = drawn.labels, drawn.origin
    assert labels is not None
    assert origin is not None
    write_labels(labels, files["labels"], provenance)
    behind = Volume(np.where(labels.array > 0, BODY_HU, AIR_HU), labels.grid)
    write_png(preview(behind, labels, f"{title} · {origin}"), files["preview"])
    told = {
        "from": _short(origin.entry),
        "nearest": _short(origin.nearest),
        "distance": origin.distance,
        "asked_ml": _named(drawn.asked),
        "obtained_ml": _named(drawn.obtained),
    }
    files["origin"].write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(entry: LibraryEntry) -> dict[str, str]:
    return {"id": entry.id, "patient": entry.patient, "licence": entry.licence, "source": entry.source}


def _named(volumes: Mapping[int, float]) -> dict[str, float]:
    return {load_vocabulary().name(id): round(ml, 3) for id, ml in sorted(volumes.items())}


ADD = Task(
    "labels library add",
    LibraryAddRequest,
    check_add,
    work_add,
    output=Output.SHARED,
    free=("reading", "licence", "source", "split", "enclose", "body"),
)
DRAW = Task("labels library draw", LibraryDrawRequest, check_draw, work_draw, inputs_draw)
