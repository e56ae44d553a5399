"""`maisi labels prepare`: label maps of any vocabulary made ours, with a manifest."""

from collections import Counter
from pathlib import Path

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.label_maps import FoundMap, find_maps, named_apart
from maisi.data.manifest import STORED, Case, write_manifest
from maisi.errors import InvalidRequestError
from maisi.pipelines.label_requests import PrepareLabelsRequest
from maisi.pipelines.prepare_labels import prepared
from maisi.runs.task import Checked, Run, Task, check_not_within
from maisi.space.files import write_labels
from maisi.space.volume import LabelMap
from maisi.storage.folders import user_path
from maisi.storage.sums import sha256


def check(request: PrepareLabelsRequest) -> Checked[PrepareLabelsRequest]:
    """The request with the maps that its sources hold, none of them read."""
    if not request.sources:
        raise InvalidRequestError("nothing to prepare; accepted: label maps, folders of them, manifests")
    resolved = tuple(user_path(source).resolve() for source in request.sources)
    found = named_apart([each for source in resolved for each in find_maps(source)])
    counts = Counter(each.id.casefold() for each in found)
    twice = sorted({each.id for each in found if counts[each.id.casefold()] > 1})
    if twice:
        raise InvalidRequestError(
            f"two label maps are called {twice[0]}; accepted: names that differ, or one at a time"
        )
    return Checked(request.model_copy(update={"sources": resolved}), found)


def work(checked: Checked[PrepareLabelsRequest], run: Run) -> None:
    """Write map after map, then the manifest; a map that is refused stops no other."""
    cases = []
    for done, found in enumerate(checked.subject, start=1):
        name = f"{found.id}_labels.nii.gz"
        try:
            labels, span = prepared(found, checked.request)
        except InvalidRequestError as error:
            run.warnings.append(f"{found.id}: {error}")
            continue
        if not run.has([name]):
            write_labels(labels, run.partial / name, run.made(name))
            run.publish()
        cases.append(case_of(found, labels, span, run.folder / name))
        run.on_stage("prepare", done, len(checked.subject))
    if not cases:
        raise InvalidRequestError(f"none of {len(checked.subject)} label maps could be prepared: {run.warnings[0]}")
    write_manifest(cases, run.partial / STORED)


def case_of(found: FoundMap, labels: LabelMap, span: RegionSpan, path: Path) -> Case:
    """What a manifest says of a prepared map."""
    vocabulary, told = load_vocabulary(), found.case or Case(id=found.id)
    return told.model_copy(
        update={
            "image": None,
            "labels": None,
            "labels_maisi": Path(path.name),
            "label_names": {},
            "labels_present": tuple(vocabulary.name(id) for id in vocabulary.check_ids(labels.array)),
            "shape": labels.grid.shape,
            "spacing_mm": labels.grid.spacing,
            "span": (span.top.name.lower(), span.bottom.name.lower()),
            "sums": {"labels_maisi": sha256(path)},
        }
    )


def check_place(request: PrepareLabelsRequest, out: Path) -> None:
    """Nothing, or the refusal of a place in which maps lie that are read."""
    check_not_within(out, request.sources)


PREPARE_LABELS = Task("labels prepare", PrepareLabelsRequest, check, work, check_place=check_place)
