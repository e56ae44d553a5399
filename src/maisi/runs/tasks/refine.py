"""`maisi refine`: small structures of a CT drawn again at finer spacing."""

import json
from pathlib import Path

from maisi.pipelines.preview import lesion_preview, write_png
from maisi.pipelines.refine import ValidRefine, draw_again, validate_refine
from maisi.pipelines.refine_request import RefineRequest
from maisi.runs.task import Checked, Run, Task
from maisi.shapes import in_words
from maisi.space.endings import stem_of
from maisi.space.files import write_labels, write_volume
from maisi.space.in_place import open_original, write_changed, write_labels_like
from maisi.space.nifti import suffix_of


def check(request: RefineRequest) -> Checked[RefineRequest]:
    """The request with its CT and labels read and its windows found."""
    valid = validate_refine(request)
    return Checked(valid.request, valid, valid.bundle, valid.reports)


def inputs(request: RefineRequest) -> tuple[Path, ...]:
    """The CT and its labels."""
    return (request.source,) if request.labels is None else (request.source, request.labels)


def work(checked: Checked[RefineRequest], run: Run) -> None:
    """Draw and write; without a new voxel size, all that was not drawn again keeps its bits in the CT's own file."""
    valid: ValidRefine = checked.subject
    request = valid.request
    suffix = (suffix_of(request.source) if request.source.is_file() else None) or ".nii.gz"
    name = (stem_of(request.source) if request.source.is_file() else request.source.name).removesuffix("_ct")
    result = draw_again(valid, run.on_stage)
    files = {kind: run.partial / f"{name}_{kind}{suffix}" for kind in ("ct", "labels")}
    made = {kind: run.made(file.name) for kind, file in files.items()}
    if request.spacing is None:
        original = open_original(request.source, valid.volume, request.reading)
        write_changed(valid.volume, result.volume, original, files["ct"], request.reading.hu_offset, made["ct"])
        write_labels_like(result.labels, original, files["labels"], made["labels"])
    else:
        write_volume(result.volume, files["ct"], made["ct"])
        write_labels(result.labels, files["labels"], made["labels"])
    title = f"{name} · {', '.join(request.structures)} at {in_words(request.zoom or ())} mm"
    picture = lesion_preview(result.before, result.volume, result.changed, title)
    write_png(picture, run.partial / f"{name}_preview.png")
    told = {"structures": [each.model_dump() for each in result.structures]}
    (run.partial / f"{name}_quality.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    run.publish()


REFINE = Task("refine", RefineRequest, check, work, inputs)
