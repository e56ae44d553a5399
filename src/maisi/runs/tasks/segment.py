"""`maisi segment`: the structures of a CT, as a folder with a preview or as one file."""

import json
from dataclasses import dataclass
from pathlib import Path

from maisi.anatomy.codes import segments_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import load_bundle
from maisi.compute.machine import device_of, fill_defaults
from maisi.data.door import open_volume
from maisi.errors import InvalidRequestError
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.requests import SegmentRequest
from maisi.pipelines.segment import NetworkSegmenter, segmenter_of
from maisi.pipelines.validate import lasting_name
from maisi.runs.task import Checked, Output, Run, Task
from maisi.space.files import LABEL_FILES, log_findings, write_labels
from maisi.space.volume import LabelMap, Volume, id_counts

LABELS, PREVIEW, STRUCTURES = "labels.nii.gz", "preview.png", "structures.json"


@dataclass(frozen=True)
class ToSegment:
    """A CT and what tells its structures."""

    volume: Volume
    segmenter: NetworkSegmenter


def check(request: SegmentRequest) -> Checked[SegmentRequest]:
    """The request with its bundle and CT."""
    if request.reading.modality != "ct":
        raise InvalidRequestError(f"a segmenter takes a CT, not modality {request.reading.modality!r}")
    if request.compute.memory is not None or request.compute.precision not in (None, "float32"):
        raise InvalidRequestError("a segmenter works window by window in float32; leave out memory and precision")
    compute = fill_defaults(request.compute.model_copy(update={"precision": "float32"}))
    bundle = load_bundle(request.bundle, device_of(compute))
    segmenter = segmenter_of(bundle)
    volume, report = open_volume(request.source, request.reading)
    log_findings(request.source, report.findings)
    update = {"bundle": lasting_name(request.bundle, bundle), "source": request.source.resolve(), "compute": compute}
    return Checked(request.model_copy(update=update), ToSegment(volume, segmenter), bundle, (report,))


def inputs(request: SegmentRequest) -> tuple[Path, ...]:
    """The CT."""
    return (request.source,)


def write_folder(checked: Checked[SegmentRequest], run: Run) -> None:
    """Write the label map, a picture, and the volume of each class."""
    given: ToSegment = checked.subject
    assert checked.bundle is not None
    channels = given.segmenter.classes(given.volume)
    labels = given.segmenter.written(channels)
    run.on_stage("segment", 1, 1)
    write_labels(labels, run.partial / LABELS, run.made(LABELS))
    write_png(preview(given.volume, labels, f"{checked.bundle.name} · segmented"), run.partial / PREVIEW)
    facts = {"bundle": checked.bundle.name, "volume_ml": volumes_ml(channels, given.segmenter)}
    (run.partial / STRUCTURES).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    run.publish()


def write_file(checked: Checked[SegmentRequest], run: Run) -> None:
    """Write the label map alone."""
    given: ToSegment = checked.subject
    labels, vocabulary = given.segmenter(given.volume), load_vocabulary()
    run.on_stage("segment", 1, 1)
    segments = segments_of(vocabulary.check_ids(labels.array), vocabulary)
    write_labels(labels, run.partial / run.name, run.made(run.name), segments)
    run.publish()


def volumes_ml(channels: LabelMap, segmenter: NetworkSegmenter) -> dict[str, float]:
    """The volume of each class that is there, in ml."""
    counts, (x, y, z) = id_counts(channels.array), channels.grid.spacing
    counted = zip(segmenter.config.names, counts[1:].tolist(), strict=False)  # the last ones may be missing
    return {name: round(n * x * y * z / 1000, 2) for name, n in counted if n}


SEGMENT = Task("segment", SegmentRequest, check, write_folder, inputs, Output.PIECES)
SEGMENT_FILE = Task("segment file", SegmentRequest, check, write_file, inputs, Output.FILE, LABEL_FILES)
