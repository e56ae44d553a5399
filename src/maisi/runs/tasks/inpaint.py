"""`maisi inpaint`: a CT with a lesion put in or taken out, its labels, the mask, a picture and what was made of it."""

import json
from dataclasses import dataclass
from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest, write_manifest
from maisi.errors import InvalidRequestError
from maisi.pipelines.inpaint import (
    Inpainted,
    ValidInpaint,
    carry_in,
    scene_of,
    validate_inpaint,
    validate_scene,
    with_bundle,
)
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.preview import lesion_preview, write_png
from maisi.runs.task import Checked, Run, Task
from maisi.space.endings import stem_of
from maisi.space.in_place import write_changed, write_labels_like
from maisi.space.nifti import suffix_of

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Cases:
    """The cases of a manifest that have an image."""

    cases: tuple[Case, ...]
    bundle: Bundle


def check(request: InpaintRequest) -> Checked[InpaintRequest]:
    """The request with its CT read and its lesion found; of a manifest, with its cases listed."""
    if request.manifest is None:
        valid = validate_inpaint(request)
        return Checked(valid.request, valid, valid.bundle, valid.reports)
    cases = tuple(case for case in read_manifest(request.manifest) if case.image is not None and case.modality == "ct")
    if not cases:
        raise InvalidRequestError(f"{request.manifest} has no case with a CT")
    request, bundle = with_bundle(request, None)
    return Checked(request, Cases(cases, bundle), bundle)


def inputs(request: InpaintRequest) -> tuple[Path, ...]:
    """All files that are read, and of a manifest the manifest."""
    named = (request.source, request.mask, request.labels, request.manifest)
    return tuple(path for path in named if path is not None)


def work(checked: Checked[InpaintRequest], run: Run) -> None:
    """Draw and write case after case; those that an earlier part of the run has written stay."""
    if isinstance(checked.subject, ValidInpaint):
        source = checked.request.source
        assert source is not None
        _one(checked.subject, stem_of(source) if source.is_file() else source.name, run, 0)
        return
    subject: Cases = checked.subject
    for index, case in enumerate(subject.cases):
        assert case.image is not None
        if run.has(file_names(case.stem, case.image).values()):
            continue
        try:
            valid = valid_case(checked.request, subject.bundle, case, index)
        except InvalidRequestError as error:
            run.warnings.append(f"{case.id}: {error}")
            run.failed.append(case.id)
            continue
        _one(valid, case.stem, run, index)
    _list(subject.cases, _what(checked.request), run)


def valid_case(request: InpaintRequest, bundle: Bundle, case: Case, index: int) -> ValidInpaint:
    """One case of a manifest, as the request of a single CT would be."""
    scene = scene_of(case_volume(case), own_labels(case), str(case.image))
    return validate_scene(request.model_copy(update={"source": case.image}), bundle, scene, index)


def file_names(name: str, source: Path) -> dict[str, str]:
    """The files of a case by what they hold; volumes in the format of their source."""
    suffix = (suffix_of(source) if source.is_file() else None) or ".nii.gz"
    volumes = {kind: f"{name}_{kind}{suffix}" for kind in ("ct", "labels", "mask")}
    return {**volumes, "preview": f"{name}_preview.png", "quality": f"{name}_quality.json"}


def _one(valid: ValidInpaint, name: str, run: Run, index: int) -> None:
    source = valid.request.source
    assert source is not None
    names = file_names(name, source)
    if run.has(names.values()):
        return
    result = carry_in(valid, run.on_stage, index)
    files = {kind: run.partial / file for kind, file in names.items()}
    made, offset = {kind: run.made(file) for kind, file in names.items()}, valid.request.reading.hu_offset
    write_changed(valid.scene.volume, result.volume, valid.original, files["ct"], offset, made["ct"])
    write_labels_like(result.labels, valid.original, files["labels"], made["labels"])
    write_labels_like(result.mask, valid.original, files["mask"], made["mask"])
    write_png(lesion_preview(valid.scene.volume, result.volume, result.mask, _title(valid, name)), files["preview"])
    files["quality"].write_text(_told(result), encoding="utf-8")
    moved = sum(lesion.contrast.made_by == "reference" for lesion in result.lesions)
    if moved:
        run.warnings.append(
            f"{name}: the HU of {moved} of {len(result.lesions)} lesions are the table's, not the network's"
        )
    run.publish()


def _title(valid: ValidInpaint, name: str) -> str:
    return f"{name} · {_what(valid.request)} · seed {valid.request.seed}"


def _what(request: InpaintRequest) -> str:
    return f"{request.tumor or 'lesion'} {'removed' if request.remove else 'put in'}"


def _told(result: Inpainted) -> str:
    return json.dumps({"lesions": [lesion.model_dump() for lesion in result.lesions]}, indent=2) + "\n"


def _list(cases: tuple[Case, ...], what: str, run: Run) -> None:
    """Write the manifest of what was made; raises `InvalidRequestError` where that is nothing."""
    made = []
    for case in cases:
        assert case.image is not None
        names = file_names(case.stem, case.image)
        if run.folder / names["ct"] in run.outputs:
            files = {"image": Path(names["ct"]), "labels": None, "labels_maisi": Path(names["labels"])}
            told = {"sums": {}, "label_names": {}, "labels_present": (), "notes": f"{what} by maisi inpaint"}
            made.append(case.model_copy(update=files | told))
    if not made:
        raise InvalidRequestError(f"no case could be inpainted; first: {run.warnings[0]}")
    write_manifest(made, run.partial / MANIFEST)
    run.publish()


INPAINT = Task("inpaint", InpaintRequest, check, work, inputs)
