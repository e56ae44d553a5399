"""Manifests: the list of cases that training, evaluation and preparation work on.

A manifest is a file of JSON lines, a case each, as `maisi prepare` writes it, or one JSON object `{"cases": [...]}`;
paths in it are relative to the file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.shapes import Frozen, Modality, Size3, Spacing3
from maisi.storage.atomic import write_atomically

STORED = "manifest.jsonl"
"""The manifest in the folder that `maisi prepare` makes."""


class Case(Frozen):
    """One scan (or label map) of a manifest, with absolute paths once it was read."""

    id: str
    group: str = "default"
    image: Path | None = None
    labels: Path | None = None
    labels_maisi: Path | None = None
    label_names: dict[str, str] = Field(default_factory=dict)
    labels_present: tuple[str, ...] = ()
    region: str = ""
    shape: Size3 | None = None
    spacing_mm: Spacing3 | None = None
    licence: str = ""
    source: str = ""
    patient: str = ""
    notes: str = ""
    modality: Modality = "ct"
    span: tuple[str, str] | None = None  # topmost and bottommost body region that the scan shows
    sums: dict[str, str] = Field(default_factory=dict)  # SHA-256 of files, by the name of the field
    attributes: dict[str, str] = Field(default_factory=dict)  # about the patient or the scan, such as sex and age
    split: Literal["training", "validation", "testing"] = "training"

    @property
    def stem(self) -> str:
        """What files of the case are called after: its id, which may look like a path, as one name."""
        return _stem(self.id)


def _stem(id: str) -> str:
    return id.replace("/", "__").lstrip(".") or "case"


def read_manifest(path: Path) -> tuple[Case, ...]:
    """All cases of a manifest, or of the folder that `maisi prepare` made, with paths resolved against its folder.

    Raises `InvalidConfigError` for a file that is not a manifest, a case with unknown fields, an id used twice, and two
    ids that give one file name.
    """
    path = Path(path)
    if path.is_dir() and (path / STORED).is_file():
        path = path / STORED
    if not path.is_file():
        raise InvalidRequestError(f"no manifest at {path}; expected JSON lines, or a JSON file with a list 'cases'")
    try:
        cases = tuple(Case.model_validate(entry) for entry in _entries(path))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InvalidConfigError(
            f"{path} is not a manifest: expected JSON lines, or JSON with a list 'cases' ({error})"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidConfigError(f"{path}: case field {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    check_ids(path, [case.id for case in cases])
    return tuple(_resolve(case, path.parent) for case in cases)


def check_ids(path: Path, ids: Sequence[str]) -> None:
    """Raise `InvalidConfigError` where an id of a manifest or folder is used twice, or two give one file name."""
    twice = sorted(id for id, count in Counter(ids).items() if count > 1)
    if twice:
        raise InvalidConfigError(f"{path}: case ids must be unique; used twice: {', '.join(twice)}")
    stems: dict[str, str] = {}
    for id in ids:
        if (other := stems.setdefault(_stem(id), id)) != id:
            raise InvalidConfigError(
                f"{path}: files of the cases {other} and {id} would have one name; rename one of them"
            )


def check_cases(cases: Sequence[Case]) -> None:
    """Raise `InvalidRequestError` where files of cases are not there, or a patient is on two sides of the split."""
    named = [(case.id, path) for case in cases for path in (case.image, case.labels, case.labels_maisi) if path]
    lost = [f"case {id}: no file at {path}" for id, path in named if not path.exists()]
    if lost:
        more = f" (and {len(lost) - 1} files more)" if len(lost) > 1 else ""
        raise InvalidRequestError(f"{lost[0]}{more}; accepted: a manifest whose files are there")
    sides: dict[str, dict[str, str]] = {}
    for case in cases:
        if case.patient:
            sides.setdefault(case.patient, {}).setdefault(case.split, case.id)
    torn = {patient: by_split for patient, by_split in sides.items() if len(by_split) > 1}
    for patient, by_split in torn.items():
        where = ", ".join(f"{id} in {split}" for split, id in by_split.items())
        more = f" (and {len(torn) - 1} patients more)" if len(torn) > 1 else ""
        raise InvalidRequestError(
            f"patient {patient} is on two sides of the split: {where}{more}; accepted: all cases of a patient on one"
        )


def _entries(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    entries: list[Any] = json.loads(text)["cases"]
    return entries


def write_manifest(cases: Iterable[Case], path: Path) -> None:
    """Write cases as JSON lines, what is not said left out; paths are written as they are, relative to the file."""
    lines = [case.model_dump_json(exclude_defaults=True) for case in cases]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _resolve(case: Case, root: Path) -> Case:
    paths = {
        name: root / value for name in ("image", "labels", "labels_maisi") if (value := getattr(case, name)) is not None
    }
    return case.model_copy(update=paths)
