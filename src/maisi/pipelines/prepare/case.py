"""One raw scan as a training case: read, checked, labelled, on the grid that the networks need, windowed."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from maisi.anatomy.body import complete_labels
from maisi.anatomy.numberings import Numbering, in_our_ids
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import words_span
from maisi.data.door import open_labels, open_volume
from maisi.data.manifest import Case
from maisi.data.sources.raw import RawCase, RawLabels
from maisi.errors import InvalidLabelsError, InvalidRequestError, MaisiError, RunError
from maisi.pipelines.prepare.segmenter import segmented
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.pipelines.preview import preview, write_png
from maisi.shapes import Frozen, Size3, Spacing3
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.intensity import CT_WINDOW, from_unit, to_unit
from maisi.space.label_files import read_labels
from maisi.space.reading import Finding, ReadOptions
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import LabelMap, Volume
from maisi.storage.atomic import write_atomically, write_directory
from maisi.storage.sums import sha256

CASES, REFUSED, FACTS = "cases", "refused", "case.json"
IMAGE, LABELS, PICTURE = "image.nii.gz", "labels.nii.gz", "picture.png"


@dataclass(frozen=True)
class CaseWork:
    """What is to be done for one case: plain data that may go to another process."""

    raw: RawCase
    settings: PrepareSettings
    reading: ReadOptions
    store: Path


class CaseFacts(Frozen):
    """All that is known of a case: `case.json` in its folder, or what it was refused for."""

    id: str
    made_with: str  # of source and settings: another value means that the case is to be made again
    image: str
    patient: str = ""
    dataset: str = ""
    refused: str | None = None
    case: Case | None = None  # its paths relative to the store, its split the one that the source gives
    given_split: str | None = None
    content: str = ""  # SHA-256 of the voxels as read
    shape: Size3 | None = None  # as scanned
    spacing_mm: Spacing3 | None = None
    span_from: str = ""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def is_done(work: CaseWork) -> bool:
    """Whether an earlier run has made or refused this case, from the same files with the same settings."""
    known = known_facts(work.store, work.raw.id)
    if known is None or known.made_with != _made_with(work):
        return False
    case = known.case
    paths = () if case is None else (case.image, case.labels_maisi)
    return all((work.store / path).is_file() for path in paths if path is not None)


def prepare_case(work: CaseWork) -> CaseFacts:
    """The facts of a case, its files in `cases/ID`, or of its refusal in `refused/ID.json`.

    What is wrong with the case is what it is refused for. Raises `RunError` where the segmenter fails and
    `StorageError` where a disk does: both may go well the next time, so no file says that the case is done.
    """
    raw, store = work.raw, work.store
    made_with = _made_with(work)
    facts = CaseFacts(
        id=raw.id, made_with=made_with, image=str(raw.image), patient=raw.patient or raw.id, dataset=raw.dataset
    )
    try:
        made = _make(work)
    except RunError:  # a StorageError too
        _remove(store, raw.id)
        raise
    except MaisiError as error:
        facts = facts.model_copy(update={"refused": str(error)})
        _remove(store, raw.id)
        (store / REFUSED).mkdir(exist_ok=True)
        with write_atomically(store / REFUSED / f"{raw.id}.json") as temporary:
            temporary.write_text(facts.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
        return facts
    (store / CASES).mkdir(exist_ok=True)
    with write_directory(store / CASES / raw.id, overwrite=True) as folder:
        facts = _written(made, facts, work, folder)
        (folder / FACTS).write_text(facts.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    (store / REFUSED / f"{raw.id}.json").unlink(missing_ok=True)
    return facts


def known_facts(store: Path, id: str) -> CaseFacts | None:
    """What an earlier run found out about a case; None where there was none."""
    return read_facts(store / CASES / id / FACTS) or read_facts(store / REFUSED / f"{id}.json")


def read_facts(path: Path) -> CaseFacts | None:
    """The facts in a file; None where there is none, or none that can be read: then the case is to be made again."""
    try:
        return CaseFacts.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, ValidationError):
        return None


def _remove(store: Path, id: str) -> None:
    """Take away what an earlier run made of another state of a case's files, its facts first."""
    (store / CASES / id / FACTS).unlink(missing_ok=True)
    shutil.rmtree(store / CASES / id, ignore_errors=True)
    (store / REFUSED / f"{id}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Made:
    volume: Volume  # on its new grid, windowed
    labels: LabelMap | None
    original: Grid
    content: str
    span: RegionSpan
    span_from: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def _make(work: CaseWork) -> _Made:
    raw, settings = work.raw, work.settings
    options = _options(raw, work.reading)
    if not raw.image.exists():
        raise InvalidRequestError(f"no file at {raw.image}")
    volume, report = open_volume(raw.image, options)
    findings, notes = list(report.findings), []
    labels, found = _merged(raw, volume, options, settings)
    findings += found
    if labels is None:
        if settings.labelled_only:
            raise InvalidRequestError(f"{raw.image} has no labels, and --labelled-only asks for some")
        notes.append("without labels")
    else:
        shown = np.unique(labels.array)
        structures = [id for id in shown.tolist() if id not in (0, load_vocabulary().id("body"))]
        notes += ["one structure only"] if len(structures) == 1 else []
        labels = complete_labels(labels, volume) if volume.modality == "ct" else labels
    span, span_from = _span(raw, volume, labels)
    resampled, on_grid = _on_new_grid(volume, labels, settings)
    if labels is not None and on_grid is not None:
        lost = sorted(set(np.unique(labels.array).tolist()) - set(np.unique(on_grid.array).tolist()))
        notes += [f"too small for the new grid: {load_vocabulary().name(id)}" for id in lost]
    content = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes() + str(volume.array.shape).encode())
    return _Made(resampled, on_grid, volume.grid, content.hexdigest(), span, span_from, tuple(findings), tuple(notes))


def _options(raw: RawCase, reading: ReadOptions) -> ReadOptions:
    """How the image is read; what the source says of its modality counts unless another was asked for."""
    if raw.modality == "ct" and reading.modality == "mr":
        raise InvalidRequestError(f"{raw.image} is a CT by what its source says, and --modality asks for mr")
    modality = raw.modality or reading.modality
    return reading.model_copy(update={"modality": modality, "series": raw.series or reading.series})


def _merged(
    raw: RawCase, volume: Volume, options: ReadOptions, settings: PrepareSettings
) -> tuple[LabelMap | None, list[Finding]]:
    """The labels of all sources on the image's grid, those of experts over those of models; None without any."""
    given = sorted(raw.labels, key=lambda each: each.is_expert)
    layers: list[LabelMap] = []
    findings: list[Finding] = []
    if settings.segmenter is not None:
        layers.append(segmented(volume, settings))
    for each in given:
        labels, found = _read(each, raw.dataset, options)
        if not labels.grid.is_close(volume.grid):
            raise InvalidLabelsError(
                f"{each.path} is on another grid than its image: {labels.grid}, not {volume.grid}; "
                "accepted: labels drawn on the image"
            )
        layers.append(labels)
        findings += found
    if not layers or not any(layer.array.any() for layer in layers):
        return None, findings
    array = np.zeros(volume.grid.shape, np.uint8)
    for layer in layers:
        np.copyto(array, layer.array.astype(np.uint8), where=layer.array > 0)
    return LabelMap(array, volume.grid), findings


def _read(labels: RawLabels, dataset: str, options: ReadOptions) -> tuple[LabelMap, Sequence[Finding]]:
    if labels.names is None:
        numbering = labels.numbering or options.numbering
        found, report = open_labels(labels.path, options.model_copy(update={"numbering": numbering}))
        return found, report.findings
    title = f"the names that {dataset or 'its source'} gives {labels.path.name}"
    numbering_of = Numbering(name="its source's", title=title, names=dict(labels.names))
    return in_our_ids(read_labels(labels.path), numbering_of, load_vocabulary(), labels.path)


def _span(raw: RawCase, volume: Volume, labels: LabelMap | None) -> tuple[RegionSpan, str]:
    """The body regions that a scan shows, and what told them."""
    said = words_span(raw.region)
    if said is not None:
        return said, "source"
    if labels is not None:
        try:
            return region_span(labels), "labels"
        except InvalidLabelsError:  # only structures that may be anywhere
            pass
    if volume.modality != "ct":
        raise InvalidRequestError(
            f"nothing tells the body region of {raw.image}; accepted: labels, or a manifest that names the region"
        )
    from maisi.anatomy.region_estimator import estimate_span

    return estimate_span(volume), "image"


def _on_new_grid(volume: Volume, labels: LabelMap | None, settings: PrepareSettings) -> tuple[Volume, LabelMap | None]:
    """Windowed, and resampled so that sizes are multiples; labels take the nearest id."""
    unit = Volume(from_unit(to_unit(volume.array, volume.modality), volume.modality), volume.grid, volume.modality)
    if volume.modality == "ct":
        unit = replace(unit, padding=volume.padding)
    grid = new_grid(volume.grid, settings.multiple, settings.spacing)
    if settings.spacing is not None:
        between = with_spacing(volume.grid, settings.spacing)
        resampled = fit(resample(unit, between), grid.shape)
        on_grid = None if labels is None else fit(resample(labels, between), grid.shape)
    else:
        resampled = resample(unit, grid)
        on_grid = None if labels is None else resample(labels, grid)
    assert isinstance(resampled, Volume)
    assert on_grid is None or isinstance(on_grid, LabelMap)
    low, high = CT_WINDOW
    array = np.clip(resampled.array, low, high) if volume.modality == "ct" else resampled.array
    return Volume(array, resampled.grid, volume.modality), on_grid


def new_grid(grid: Grid, multiple: int, spacing: Spacing3 | None = None) -> Grid:
    """The grid over the same field of view whose size is the nearest multiple on each axis, at least one.

    The spacing follows from it (MAISI, arXiv 2409.11169, supplement B). With a `spacing` that is kept, and the size
    goes up to the next multiple.
    """
    if spacing is not None:
        shape = [-(-n // multiple) * multiple for n in with_spacing(grid, spacing).shape]
        return Grid.axis_aligned(shape, spacing, (0, 0, 0))
    shape = [max(1, round(n / multiple)) * multiple for n in grid.shape]
    wide = [length / n for length, n in zip(grid.fov_mm, shape, strict=True)]
    origin = [o + (new - old) / 2 for o, new, old in zip(grid.origin, wide, grid.spacing, strict=True)]
    return Grid.axis_aligned(shape, wide, origin)


def _written(made: _Made, facts: CaseFacts, work: CaseWork, folder: Path) -> CaseFacts:
    """The facts, the files of the case being in `folder`."""
    raw, grid = work.raw, made.volume.grid
    write_volume(made.volume, folder / IMAGE)
    sums = {"image": sha256(folder / IMAGE)}
    present: tuple[str, ...] = ()
    if made.labels is not None:
        write_labels(made.labels, folder / LABELS)
        sums["labels_maisi"] = sha256(folder / LABELS)
        present = tuple(load_vocabulary().name(int(id)) for id in np.unique(made.labels.array) if id)
    write_png(preview(made.volume, made.labels, raw.id), folder / PICTURE)
    place = Path(CASES) / raw.id
    case = Case(
        id=raw.id,
        group=raw.dataset or "default",
        image=place / IMAGE,
        labels_maisi=None if made.labels is None else place / LABELS,
        labels_present=present,
        shape=grid.shape,
        spacing_mm=grid.spacing,
        licence=raw.licence,
        source=raw.source,
        patient=raw.patient or raw.id,
        modality=made.volume.modality,
        span=(made.span.top.name.lower(), made.span.bottom.name.lower()),
        sums=sums,
        attributes=dict(raw.attributes),
        notes="; ".join(made.notes),
    )
    update = {
        "case": case,
        "given_split": raw.split,
        "content": made.content,
        "shape": made.original.shape,
        "spacing_mm": made.original.spacing,
        "span_from": made.span_from,
        "findings": made.findings,
        "notes": made.notes,
    }
    return facts.model_copy(update=update)


def _made_with(work: CaseWork) -> str:
    """A sum of what a case is made from: its files (names, sizes, times) and all settings that change it."""
    own = {"validation", "testing", "split_seed", "segmenter_minutes"}  # these divide cases, and change none
    told = [work.settings.model_dump_json(exclude=own), work.reading.model_dump_json(), repr(work.raw)]
    for path in (work.raw.image, *(labels.path for labels in work.raw.labels)):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            about = file.stat() if file.is_file() else None
            told.append(f"{file} {about.st_size} {about.st_mtime_ns}" if about else f"{file}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
