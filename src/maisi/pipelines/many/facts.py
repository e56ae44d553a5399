"""What is known of the samples in a folder: a small file for each, and the manifest of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from maisi.anatomy.vocabulary import Vocabulary
from maisi.bundle.bundle import Bundle
from maisi.data.manifest import STORED, Case, write_manifest
from maisi.pipelines.generate import Sample
from maisi.pipelines.many.requests import stem_of
from maisi.pipelines.many.stages import Made
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import bundle_vocabulary
from maisi.shapes import Frozen
from maisi.space.nifti import SUFFIXES
from maisi.space.volume import LabelMap, id_counts
from maisi.storage.atomic import write_atomically
from maisi.storage.sums import sha256, sha256_of_list

FACTS, SUMMARY = "facts.json", "summary.html"
SYNTHETIC = "synthetic"
"""The group of cases whose request names none."""


class SampleFacts(Frozen):
    """What one sample was to be and what became of it; the last of its files to be written."""

    index: int
    group: str = ""
    request: dict[str, Any]  # of `maisi generate`: what makes this sample alone
    files: dict[str, str] = Field(default_factory=dict)  # name -> SHA-256
    preview: str = ""
    case: Case | None = None  # None where it failed
    volumes_ml: dict[str, float] = Field(default_factory=dict)
    asked_ml: dict[str, float] = Field(default_factory=dict)
    obtained_ml: dict[str, float] = Field(default_factory=dict)  # of what was asked for, with all that counts to it
    origin: str = ""  # of labels from a library
    problems: tuple[str, ...] = ()
    failed: str = ""  # why there is no sample, or none among the good ones

    @property
    def stem(self) -> str:
        """What the sample's files are called."""
        return stem_of(self.index)


def facts_name(stem: str) -> str:
    """The name of the file with a sample's facts."""
    return f"{stem}_{FACTS}"


def read_facts(path: Path) -> SampleFacts | None:
    """The facts in a file; None where there is none that can be read: then the sample is to be made."""
    try:
        return SampleFacts.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None


def known_facts(folder: Path, stem: str, asked: Mapping[str, Any]) -> SampleFacts | None:
    """What an earlier run made of a sample; None where it is to be made, or is not of these settings.

    What computes it (`compute`) decides no more than the last bits, and does not count.
    """
    facts = read_facts(folder / facts_name(stem))
    wanted = {name: value for name, value in asked.items() if name != "compute"}
    if facts is None or not _agrees(facts.request, wanted):
        return None
    return facts if _is_whole(facts, folder) else None


def _agrees(known: Any, asked: Any) -> bool:
    """Whether settings are those asked for, as far as these say anything."""
    if isinstance(asked, Mapping) and isinstance(known, Mapping):
        return all(_agrees(known.get(name), value) for name, value in asked.items())
    return bool(known == asked)


def all_facts(folder: Path) -> list[SampleFacts]:
    """Of every sample in a folder that is whole, by index."""
    read = (read_facts(path) for path in folder.glob(f"sample_*_{FACTS}"))
    return sorted((each for each in read if each and _is_whole(each, folder)), key=lambda facts: facts.index)


def _is_whole(facts: SampleFacts, folder: Path) -> bool:
    return all((folder / name).is_file() for name in facts.files)


def write_facts(facts: SampleFacts, path: Path) -> None:
    """Write them; the same facts give the same bytes."""
    with write_atomically(path) as temporary:
        temporary.write_text(facts.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def facts_of(made: Made, bundle: Bundle, folder: Path, names: Mapping[str, str]) -> SampleFacts:
    """The facts of a sample whose files, named by what they hold, were just written into a folder."""
    drawn, request, sample = made.work.drawn, made.work.request, made.sample
    if sample is None:
        return SampleFacts(index=drawn.index, group=drawn.group, request=_told(request), failed=made.failed)
    parts = {kind: _sums(folder / name) for kind, name in names.items()}
    volumes = {} if sample.labels is None else volumes_ml(sample.labels, bundle_vocabulary(bundle))
    sized = {each.name: (each.asked_ml, each.ml) for each in sample.quality.structures if each.asked_ml is not None}
    return SampleFacts(
        index=drawn.index,
        group=drawn.group,
        request=_told(request),
        files={_joined(names[kind], part): each for kind, sums in parts.items() for part, each in sums.items()},
        preview=names.get("preview", ""),
        case=None
        if made.failed
        else _case(made, sample, names, {kind: _sum(each) for kind, each in parts.items()}).model_copy(
            update={"labels_present": tuple(volumes), "licence": bundle.info.licence}
        ),
        volumes_ml=volumes,
        asked_ml={name: float(f"{ml:.4g}") for name, (ml, _) in sized.items()},
        obtained_ml={name: float(f"{ml:.4g}") for name, (_, ml) in sized.items()},
        origin="" if sample.origin is None else str(sample.origin),
        problems=() if made.failed else sample.problems,
        failed=made.failed,
    )


def _sums(path: Path) -> dict[str, str]:
    """The sum of a file, by ""; of a folder, such as a DICOM series, those of its files by their names."""
    return {"": sha256(path)} if path.is_file() else {each.name: sha256(each) for each in sorted(path.iterdir())}


def _sum(parts: Mapping[str, str]) -> str:
    return parts[""] if "" in parts else sha256_of_list(parts)


def _joined(name: str, part: str) -> str:
    return f"{name}/{part}" if part else name


def _case(made: Made, sample: Sample, names: Mapping[str, str], sums: Mapping[str, str]) -> Case:
    """A sample as a line of a manifest."""
    drawn, request = made.work.drawn, made.work.request
    has_labels = "labels" in names and sample.labels is not None
    return Case(
        id=drawn.stem,
        group=drawn.group or SYNTHETIC,
        image=Path(names["volume"]),
        labels_maisi=Path(names["labels"]) if has_labels else None,
        shape=sample.volume.grid.shape,
        spacing_mm=sample.volume.grid.spacing,
        source=f"maisi generate, bundle {Path(request.bundle).name}",
        patient=_patient(request, sample) or drawn.stem,
        modality=sample.volume.modality,
        span=(sample.span.top.name.lower(), sample.span.bottom.name.lower()),
        sums={"image": sums["volume"], **({"labels_maisi": sums["labels"]} if has_labels else {})},
        attributes={"seed": str(request.seed)},
        notes="; ".join(sample.problems),
    )


def _told(request: GenerateRequest) -> dict[str, Any]:
    return request.model_dump(mode="json")


def volumes_ml(labels: LabelMap, vocabulary: Vocabulary) -> dict[str, float]:
    """The volume of each structure that a label map shows, by name, ml to four digits."""
    counts = id_counts(labels.array)
    voxel_ml = float(np.prod(labels.grid.spacing)) / 1000.0
    return {
        vocabulary.name(id): float(f"{count * voxel_ml:.4g}")
        for id, count in enumerate(counts.tolist())
        if id and count
    }


def write_cases(facts: Sequence[SampleFacts], folder: Path) -> Path:
    """Write the manifest of the samples that were made, and give its path."""
    write_manifest((each.case for each in facts if each.case is not None), folder / STORED)
    return folder / STORED


def _patient(request: GenerateRequest, sample: Sample) -> str:
    """Samples of one label map are one patient: a split must not part them. "" where each is of its own."""
    if sample.origin is not None:
        return sample.origin.entry.patient or sample.origin.entry.id
    if request.labels is None:
        return ""
    name = request.labels.name
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
