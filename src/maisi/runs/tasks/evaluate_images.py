"""`maisi evaluate images`: two sets of volumes compared, in JSON and on a page."""

from functools import partial
from pathlib import Path

from maisi.evaluation.features import PROTOCOLS, find_extractor
from maisi.evaluation.images import compare_images
from maisi.evaluation.page import images_page
from maisi.evaluation.requests import EvaluateImagesRequest
from maisi.evaluation.sets import image_set
from maisi.runs.task import Checked, Run, Task

REPORT, PAGE = "images.json", "images.html"


def check(request: EvaluateImagesRequest) -> Checked[EvaluateImagesRequest]:
    """The request with both sets and the features."""
    extractor = find_extractor(request.features)
    real = image_set(request.real, request.real_split, request.modality)
    synthetic = image_set(request.synthetic, request.synthetic_split, request.modality)
    return Checked(request, (real, synthetic, extractor))


def inputs(request: EvaluateImagesRequest) -> tuple[Path, ...]:
    """Both sets, where they are files."""
    return tuple(path for path in (request.real, request.synthetic) if path.is_file())


def work(checked: Checked[EvaluateImagesRequest], run: Run) -> None:
    """Write the report and its page."""
    request, (real, synthetic, extractor) = checked.request, checked.subject
    protocol, told = PROTOCOLS[request.protocol], partial(run.on_stage, "features")
    found = compare_images(real, synthetic, extractor, protocol, request.draws, request.seed, told)
    run.on_stage("distances", 1, 1)
    (run.partial / REPORT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (run.partial / PAGE).write_text(images_page(found), encoding="utf-8")
    run.warnings += list(found.notes)
    run.publish()


EVALUATE_IMAGES = Task("evaluate images", EvaluateImagesRequest, check, work, inputs)
