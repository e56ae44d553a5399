"""`maisi labels augment`: variants of a label map by its tumours, a preview each."""

from pathlib import Path

from maisi.data.door import open_labels
from maisi.pipelines.augment_labels import draw_variant, picture_of
from maisi.pipelines.preview import write_png
from maisi.pipelines.requests import AugmentLabelsRequest
from maisi.runs.task import Checked, Run, Task
from maisi.space.files import log_findings, write_labels


def check(request: AugmentLabelsRequest) -> Checked[AugmentLabelsRequest]:
    """The request with its label map, of which a first variant could be drawn."""
    request = request.model_copy(update={"labels": request.labels.resolve()})
    labels, report = open_labels(request.labels, request.reading)
    log_findings(request.labels, report.findings)
    draw_variant(labels, request, 0)
    return Checked(request, labels, None, (report,))


def inputs(request: AugmentLabelsRequest) -> tuple[Path, ...]:
    """The label map."""
    return (request.labels,)


def work(checked: Checked[AugmentLabelsRequest], run: Run) -> None:
    """Draw and write variant after variant; those that an earlier part of the run has written stay."""
    request = checked.request
    for index in range(request.count):
        names = f"sample_{index:03d}_labels.{request.format}", f"sample_{index:03d}_preview.png"
        if not run.has(names):
            variant = draw_variant(checked.subject, request, index)
            write_labels(variant, run.partial / names[0], run.made(names[0]))
            write_png(picture_of(variant, request, index), run.partial / names[1])
            run.publish()
        run.on_stage("labels", index + 1, request.count)


AUGMENT_LABELS = Task("labels augment", AugmentLabelsRequest, check, work, inputs)
