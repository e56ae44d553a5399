"""A folder of samples, as `maisi generate --requests` leaves it, that samples are read from and added to."""

from dataclasses import dataclass, replace
from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.data.cases import case_volume
from maisi.data.manifest import Case
from maisi.errors import StorageError
from maisi.pipelines.many.facts import SampleFacts, facts_name, facts_of, known_facts, write_facts
from maisi.pipelines.many.requests import Drawn
from maisi.pipelines.many.stages import Made
from maisi.pipelines.requests import GenerateRequest
from maisi.space.files import write_labels, write_volume
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap, Volume


@dataclass(frozen=True)
class Kept:
    """A sample, or why there is none."""

    volume: Volume | None
    labels: LabelMap | None
    failed: str = ""


def kept_sample(folder: Path, drawn: Drawn, request: GenerateRequest) -> Kept | None:
    """The sample of a request in a folder; None where it is not there. What the request leaves open does not count."""
    facts = known_facts(folder, drawn.stem, request.model_dump(mode="json", exclude_unset=True))
    if facts is None:
        return None
    if facts.case is None or facts.case.image is None:
        return Kept(None, None, facts.failed)
    case = _in(folder, facts.case)
    return Kept(case_volume(case), None if case.labels_maisi is None else read_labels(case.labels_maisi))


def keep_sample(folder: Path, made: Made, bundle: Bundle) -> SampleFacts:
    """Write volume, labels and facts of a sample; processes that do so at once leave the same files."""
    drawn, sample = made.work.drawn, made.sample
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
    names: dict[str, str] = {}
    if sample is not None and not made.failed:
        names["volume"] = f"{drawn.stem}_{sample.volume.modality}.nii.gz"
        write_volume(sample.volume, folder / names["volume"])
        if sample.labels is not None:
            names["labels"] = f"{drawn.stem}_labels.nii.gz"
            write_labels(sample.labels, folder / names["labels"])
    facts = facts_of(made if names else replace(made, sample=None, impossible=made.failed), bundle, folder, names)
    write_facts(facts, folder / facts_name(drawn.stem))
    return facts


def _in(folder: Path, case: Case) -> Case:
    assert case.image is not None
    labels = None if case.labels_maisi is None else folder / case.labels_maisi
    return case.model_copy(update={"image": folder / case.image, "labels_maisi": labels})
