"""Cases with their labels as a data set of another tool: a MONAI datalist, a Decathlon folder, raw data of nnU-Net."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maisi.anatomy.classes import Classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest
from maisi.data.pairs import is_of_files, pairs_in
from maisi.data.sources.names import safe_id
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.shapes import Modality
from maisi.space.files import write_labels, write_volume
from maisi.space.origin import known_provenance
from maisi.space.volume import LabelMap, check_same_grid

Layout = Literal["monai", "msd", "nnunet"]
"""What data sets may be laid out as."""

ENDING = ".nii.gz"
TESTING = "testing"
CHANNELS: dict[Modality, str] = {"ct": "CT", "mr": "MRI"}
SOURCES = "a manifest, or a folder of files NAME_ct with NAME_labels"
NNUNET_NAME = re.compile(r"Dataset\d{3}_\w+")
"""What nnU-Net calls the folder of a data set."""


@dataclass(frozen=True)
class Export:
    """What is to be written: cases of one modality, which of them have labels, and the classes of these."""

    cases: tuple[Case, ...]
    classes: Classes
    modality: Modality
    to: Layout

    def is_test(self, case: Case) -> bool:
        """Whether a case is no training case: it is held out, or has no labels to learn from."""
        return case.split == TESTING or not has_labels(case)

    @property
    def training(self) -> list[Case]:
        return [case for case in self.cases if not self.is_test(case)]

    @property
    def tests(self) -> list[Case]:
        return [case for case in self.cases if self.is_test(case)]


def has_labels(case: Case) -> bool:
    """Whether a case comes with labels."""
    return case.labels_maisi is not None or case.labels is not None


def checked_export(source: Path, to: Layout, classes_named: Sequence[str] = ()) -> Export:
    """The export of a manifest or of a folder of pairs; without names of classes of all structures, label maps being
    read where it tells none.

    Raises `InvalidRequestError` for cases that no such data set can hold, `InvalidLabelsError` for unknown classes.
    """
    classes = Classes.of(classes_named) if classes_named else None
    if not source.exists():
        raise InvalidRequestError(f"there is no {source}; accepted: {SOURCES}")
    given = pairs_in(source) if is_of_files(source) else read_manifest(source)
    cases = tuple(case for case in given if case.image is not None)
    if not cases:
        raise InvalidRequestError(f"{source} has no case with an image; accepted: {SOURCES}")
    modalities = sorted({case.modality for case in cases})
    if len(modalities) > 1:
        raise InvalidRequestError(f"{source} holds {' and '.join(modalities)}; accepted: cases of one modality")
    cases = tuple(case.model_copy(update={"id": safe_id(case.id)}) for case in cases)
    twice = [id for id, count in Counter(case.id.casefold() for case in cases).items() if count > 1]
    if twice:
        raise InvalidRequestError(f"two cases of {source} would have one file name: {twice[0]}")
    export = Export(cases, classes or _present(cases), cases[0].modality, to)
    if not export.training:
        raise InvalidRequestError(f"{source} has no case with labels to train on")
    return export


def _present(cases: Iterable[Case]) -> Classes:
    """A class for each structure that any label map shows."""
    vocabulary = load_vocabulary()
    ids: set[int] = set()
    for case in cases:
        if case.labels_present and case.labels_maisi is not None:
            ids |= {vocabulary.find(name) for name in case.labels_present}
        elif has_labels(case):
            labels = own_labels(case)
            ids |= set() if labels is None else set(vocabulary.check_ids(labels.array))
    if not ids:
        raise InvalidLabelsError("no case shows any structure; accepted: cases with labels")
    return Classes.present(sorted(ids), vocabulary)


# Writing --------------------------------------------------------------------------------------------------------------


def write_export(export: Export, folder: Path, name: str, on_case: Callable[[int, int], None]) -> None:
    """Write the data set into a folder that is to be called `name`; tells how many cases are done."""
    if export.to == "nnunet" and not NNUNET_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"nnU-Net would not find a folder called {name!r}; accepted: DatasetNNN_Name, such as Dataset501_Synthetic"
        )
    for done, case in enumerate(export.cases, start=1):
        write_case(export, case, folder)
        on_case(done, len(export.cases))
    content = {"monai": monai_datalist, "msd": msd_dataset, "nnunet": nnunet_dataset}[export.to](export, name)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / description_of(export.to)).write_text(text, encoding="utf-8")


def description_of(to: Layout) -> str:
    """The name of the file that describes a data set."""
    return "datalist.json" if to == "monai" else "dataset.json"


def write_case(export: Export, case: Case, folder: Path) -> None:
    """Write image and labels of a case, both along RAS on one grid, the labels in the numbers of the classes.

    A generated image goes on to say what made it.
    """
    volume = case_volume(case)
    assert case.image is not None
    image, label = (folder / path for path in paths_of(export, case))
    image.parent.mkdir(exist_ok=True)
    write_volume(volume, image, known_provenance(case.image))
    if has_labels(case):
        labels = own_labels(case)
        if labels is None:  # of a healthy one
            labels = LabelMap(np.zeros(volume.grid.shape, np.uint8), volume.grid)
        check_same_grid(labels, volume)
        label.parent.mkdir(exist_ok=True)
        write_labels(LabelMap(export.classes.renumbered(labels).array, volume.grid), label)


def paths_of(export: Export, case: Case) -> tuple[str, str]:
    """Where image and labels of a case are in the data set."""
    part = "Ts" if export.is_test(case) else "Tr"
    channel = "_0000" if export.to == "nnunet" else ""
    return f"images{part}/{case.id}{channel}{ENDING}", f"labels{part}/{case.id}{ENDING}"


def monai_datalist(export: Export, name: str) -> dict[str, Any]:
    """Lists of image and label by split, and the names of the labels' numbers."""
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], TESTING: []}
    for case in export.cases:
        image, label = paths_of(export, case)
        entry = {"image": image, **({"label": label} if has_labels(case) else {})}
        told = {"modality": CHANNELS[export.modality], "patient": case.patient or case.id}
        lists[TESTING if export.is_test(case) else case.split].append({**entry, **told})
    described = {"name": name, "reference": sources(export.cases), "licence": licences(export.cases)}
    return {**described, "labels": _by_number(export), **lists}


def msd_dataset(export: Export, name: str) -> dict[str, Any]:
    """`dataset.json` of the Medical Segmentation Decathlon; cases for validation are among those for training."""
    training = [paths_of(export, case) for case in export.training]
    return {
        "name": name,
        "description": f"{len(export.cases)} cases, written by maisi",
        "reference": sources(export.cases),
        "licence": licences(export.cases),
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": CHANNELS[export.modality]},
        "labels": _by_number(export),
        "numTraining": len(training),
        "numTest": len(export.tests),
        "training": [{"image": f"./{image}", "label": f"./{label}"} for image, label in training],
        "test": [f"./{paths_of(export, case)[0]}" for case in export.tests],
    }


def nnunet_dataset(export: Export, name: str) -> dict[str, Any]:
    """`dataset.json` of nnU-Net (v2), which draws its own folds from the training cases."""
    return {
        "channel_names": {"0": CHANNELS[export.modality]},
        "labels": export.classes.numbers,
        "numTraining": len(export.training),
        "file_ending": ENDING,
        "name": name,
        "reference": sources(export.cases),
        "licence": licences(export.cases),
    }


def _by_number(export: Export) -> dict[str, str]:
    return {str(number): name for name, number in export.classes.numbers.items()}


def licences(cases: Sequence[Case]) -> str:
    """The licences of cases, each once."""
    return "; ".join(dict.fromkeys(case.licence for case in cases if case.licence))


def sources(cases: Sequence[Case]) -> str:
    """Where cases are from, each source once."""
    return "; ".join(dict.fromkeys(case.source for case in cases if case.source))
