"""`maisi evaluate memorization`: the nearest training volume and label map of all generated, and pictures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from maisi.data.lazy import LazySequence
from maisi.errors import InvalidRequestError
from maisi.evaluation.extractors import find_extractor
from maisi.evaluation.features import PROTOCOLS, FeatureExtractor
from maisi.evaluation.memorization import (
    MemorizationReport,
    Sight,
    find_copies,
    in_place,
    read_sight,
    sight_of,
    write_sight,
)
from maisi.evaluation.memorization_page import memorization_page
from maisi.evaluation.memorized_labels import find_copied_labels
from maisi.evaluation.neighbours import Neighbours
from maisi.evaluation.requests import EvaluateMemorizationRequest
from maisi.evaluation.sets import NamedImage, NamedLabels, image_set, label_set
from maisi.evaluation.stored import features_are_of
from maisi.pipelines.preview import comparison, preview, write_png
from maisi.runs.pieces import case_file, features_made_of, write_report
from maisi.runs.task import Checked, Run, Task
from maisi.space.volume import LabelMap, Volume
from maisi.storage.folders import storage_errors

REPORT, PAGE, NUM_PAIRS = "memorization.json", "memorization.html", 5
SETS = ("generated", "training", "held_out")
INSIDE_HU, OUTSIDE_HU = 40.0, -1000.0  # of the grey behind the colours of a label map


@dataclass(frozen=True)
class ToCompare:
    """Generated, training and held-out volumes, the same of label maps (none where not asked for), and the features."""

    images: tuple[Sequence[NamedImage], ...]
    labels: tuple[Sequence[NamedLabels], ...]
    extractor: FeatureExtractor


def check(request: EvaluateMemorizationRequest) -> Checked[EvaluateMemorizationRequest]:
    """The request with generated, training and held-out volumes or label maps, and the features."""
    extractor = find_extractor(request.features)
    training_split, held_out_split = request.splits
    held_out = request.held_out or request.real
    if held_out.resolve() == request.real.resolve() and held_out_split == training_split:
        raise InvalidRequestError(
            f"what was held out is what was trained on: {request.real}, split {training_split or 'any'}; accepted: "
            "real volumes that were not trained on, which tell what near is"
        )
    images: tuple[Sequence[NamedImage], ...] = ()
    labels: tuple[Sequence[NamedLabels], ...] = ()
    if request.of != "labels":
        images = (
            image_set(request.generated, None, request.modality, least=1),
            image_set(request.real, training_split, request.modality),
            image_set(held_out, held_out_split, request.modality),
        )
    if request.of != "images":
        labels = (
            label_set(request.generated, None, least=1),
            label_set(request.real, training_split),
            label_set(held_out, held_out_split),
        )
    return Checked(request, ToCompare(images, labels, extractor))


def inputs(request: EvaluateMemorizationRequest) -> tuple[Path, ...]:
    """The sets that are files, and the features where they are one."""
    paths = (request.generated, request.real, request.held_out, Path(request.features))
    return tuple(path for path in paths if path is not None and path.is_file())


def work(checked: Checked[EvaluateMemorizationRequest], run: Run) -> None:
    """Write the report, pictures of the nearest pairs, and the page that shows both."""
    given: ToCompare = checked.subject
    images = labels = None
    pictures: dict[str, list[bytes]] = {}
    if given.images:
        made, training, _ = given.images
        seen_made, seen_training, seen_held_out = _sights(given, run)
        images = find_copies(seen_made, seen_training, seen_held_out, run.on_stage)
        pictures["images"] = _written(_pairs(images, made, training), "pair", run.partial)
    if given.labels:
        made_maps, training_maps, held_out_maps = given.labels
        labels = find_copied_labels(made_maps, training_maps, held_out_maps, run.on_stage)
        pictures["labels"] = _written(_label_pairs(labels, made_maps, training_maps), "labels_pair", run.partial)
    parts = [each for each in (images, labels) if each is not None]
    copies = [pair for each in parts for pair in each.copies]
    names = tuple(pair.name for pair in copies)
    found = MemorizationReport(features=given.extractor.name, copies=names, images=images, labels=labels)
    write_report(run, {REPORT: found, PAGE: memorization_page(found, pictures)})
    run.warnings += [f"{pair.name} is a copy of {pair.nearest}" for pair in copies]
    run.warnings += [note for each in parts for note in each.notes]
    run.publish()


def _sights(given: ToCompare, run: Run) -> list[LazySequence[Sight]]:
    """What is compared of each set, a file a volume; those that an earlier part of the run left are taken."""
    done, total, sights = 0, sum(map(len, given.images)), []
    for which, images in zip(SETS, given.images, strict=True):
        paths = []
        for image in images:
            paths.append(_sight_file(which, image, given.extractor, run))
            done += 1
            run.on_stage("features", done, total)
        loads = [partial(read_sight, path) for path in paths]
        sights.append(LazySequence(loads, lambda sight: sight.fine.nbytes, kept_bytes=0))
    return sights


def _sight_file(which: str, image: NamedImage, extractor: FeatureExtractor, run: Run) -> Path:
    name = case_file(which, image.name, kind="sight", ending=".npz")
    made_of = features_made_of(extractor.name, image.path)
    if not (run.has((name,)) and features_are_of(run.folder / name, made_of)):
        sight = sight_of(image, extractor, PROTOCOLS["maisi"])
        with storage_errors(run.folder):
            write_sight(run.partial / name, sight, made_of)
        run.publish()
    return run.folder / name


def _written(pictures: Sequence[Image.Image], stem: str, folder: Path) -> list[bytes]:
    """Pictures as PNG, which are files too."""
    found = []
    for rank, picture in enumerate(pictures):
        path = folder / f"{stem}_{rank:02d}.png"
        write_png(picture, path)
        found.append(path.read_bytes())
    return found


def _pairs(found: Neighbours, generated: Sequence[NamedImage], training: Sequence[NamedImage]) -> list[Image.Image]:
    made, real = ({image.name: image for image in images} for images in (generated, training))
    pictures = []
    for pair in found.generated[:NUM_PAIRS]:
        volume = made[pair.name].read()
        title = f"{pair.name} and its nearest · {pair.distance:.2f} apart; held out at least {found.least:.2f}"
        near = in_place(real[pair.nearest].read(), pair, volume.grid)
        pictures.append(comparison(volume, near, title, (pair.name, pair.nearest)))
    return pictures


def _label_pairs(
    found: Neighbours, generated: Sequence[NamedLabels], training: Sequence[NamedLabels]
) -> list[Image.Image]:
    made, real = ({each.name: each for each in maps} for maps in (generated, training))
    pictures = []
    for pair in found.generated[:NUM_PAIRS]:
        both = [
            _shown(made[pair.name].read(), pair.name),
            _shown(real[pair.nearest].read(), f"nearest: {pair.nearest}"),
        ]
        sheet = Image.new("RGB", (max(each.width for each in both), sum(each.height for each in both)))
        sheet.paste(both[0], (0, 0))
        sheet.paste(both[1], (0, both[0].height))
        pictures.append(sheet)
    return pictures


def _shown(labels: LabelMap, title: str) -> Image.Image:
    flat = np.where(labels.array > 0, INSIDE_HU, OUTSIDE_HU).astype(np.float32)
    return preview(Volume(flat, labels.grid), labels, title)


EVALUATE_MEMORIZATION = Task("evaluate memorization", EvaluateMemorizationRequest, check, work, inputs)
