"""Cases listed in a JSON file: MONAI datalists, datasets of the Medical Segmentation Decathlon, and our manifests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi.data.manifest import Case, read_manifest
from maisi.data.sources.names import case_key, safe_id
from maisi.data.sources.raw import Found, PassedOver, RawCase, RawLabels, Split
from maisi.errors import InvalidConfigError
from maisi.shapes import Modality
from maisi.space.endings import stem_of

SPLITS: dict[str, Split | None] = {
    "training": None,
    "train": None,
    "validation": "validation",
    "val": "validation",
    "testing": "testing",
    "test": "testing",
}
"""Lists of a datalist; what is listed for training is divided by us, unless its folds say otherwise."""

MANIFESTS = ("manifest.jsonl", "manifest.json")
HELD_OUT_FOLD = 0


def content_of(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises `InvalidConfigError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidConfigError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfigError(f"{path} holds a {type(content).__name__}; expected a mapping with lists of cases")
    return content


def is_manifest(path: Path) -> bool:
    """Whether this is a manifest of ours, or a folder that holds one."""
    if path.is_dir():
        return any((path / name).is_file() for name in MANIFESTS)
    return path.suffix == ".jsonl" or (path.suffix == ".json" and "cases" in content_of(path))


def read_our_manifest(path: Path) -> Found:
    """The cases with an image of a manifest, split as it says."""
    file = next((path / name for name in MANIFESTS if (path / name).is_file()), path) if path.is_dir() else path
    cases, passed = [], []
    for case in read_manifest(file):
        if case.image is None:
            passed.append(PassedOver(file, f"case {case.id} has no image"))
        else:
            cases.append(_of_case(case, case.image))
    return Found("maisi manifest", tuple(cases), tuple(passed))


def _of_case(case: Case, image: Path) -> RawCase:
    labels = []
    if case.labels_maisi is not None:
        labels.append(RawLabels(case.labels_maisi, numbering="maisi"))
    elif case.labels is not None:
        names = {int(id): name for id, name in case.label_names.items() if id.isdecimal()}
        labels.append(RawLabels(case.labels, names=names or None))
    return RawCase(
        id=safe_id(case.id),
        image=image,
        labels=tuple(labels),
        patient=case.patient or case.id,
        modality=case.modality,
        split=case.split,
        dataset=case.group,
        licence=case.licence,
        region=" ".join(case.span) if case.span is not None else case.region,
        source=case.source,
        attributes=case.attributes,
    )


def is_datalist(path: Path) -> bool:
    """Whether this is a JSON file with lists of cases for training, validation or testing."""
    if path.suffix != ".json" or not path.is_file():
        return False
    return any(isinstance(content_of(path).get(name), list) for name in SPLITS)


def read_datalist(path: Path) -> Found:
    """The cases of a MONAI datalist, or of an MSD `dataset.json`; paths are relative to the file.

    `validation` and `testing` lists keep their split; where the entries of `training` have folds, fold 0 is validation
    (as upstream holds it out), else the split is ours to draw. Names of labels are taken from `labels` of the file.
    """
    content, cases, passed = content_of(path), [], []
    names, modality = label_names(content, path), _modality(content)
    for name, split in SPLITS.items():
        entries = content.get(name) or ()
        if not isinstance(entries, list | tuple):
            raise InvalidConfigError(f"{path}: {name!r} is {entries!r}; accepted: a list of cases")
        for entry in entries:
            raw = _entry(entry if isinstance(entry, Mapping) else {"image": entry}, path, names, split, modality)
            if isinstance(raw, PassedOver):
                passed.append(raw)
            else:
                cases.append(raw)
    is_msd = "modality" in content and "labels" in content
    return Found("MSD dataset" if is_msd else "MONAI datalist", tuple(cases), tuple(passed))


def _entry(
    entry: Mapping[str, Any],
    path: Path,
    names: Mapping[int, str] | None,
    split: Split | None,
    modality: Modality | None,
) -> RawCase | PassedOver:
    image = entry.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        what = "several channels" if isinstance(image, list) else f"the image {image!r}"
        return PassedOver(path, f"an entry with {what}; expected the path of one image")
    file = (path.parent / image).absolute()
    label = entry.get("label", entry.get("labels", entry.get("mask")))
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(label, str | None):
        return PassedOver(path, f"an entry with the label {label!r}; expected the path of one label map")
    labels = (RawLabels((path.parent / label).absolute(), names=names),) if isinstance(label, str) else ()
    fold = entry.get("fold")
    if split is None and isinstance(fold, int):
        split = "validation" if fold == HELD_OUT_FOLD else "training"
    home = path.parent.absolute()
    key = case_key(file, home if file.is_relative_to(home) else file.parent.parent)
    said_of = (entry.get(name) for name in ("patient", "subject"))
    patient = next((str(each) for each in said_of if each not in (None, "")), key)
    said = entry.get("modality")
    return RawCase(
        id=key if key else safe_id(stem_of(file)),
        image=file,
        labels=labels,
        patient=patient,
        modality=as_modality(said) if isinstance(said, str) else modality,
        split=split,
        region=str(entry.get("region", entry.get("body_region", ""))),
        dataset=path.parent.name if path.name == "dataset.json" else stem_of(path),
        attributes={name: str(entry[name]) for name in ("sex", "gender", "age") if name in entry},
    )


def label_names(content: Mapping[str, Any], path: Path) -> dict[int, str] | None:
    """The names of ids that a `dataset.json` tells, either way round, without the background."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping):
        return None
    pairs = {}
    for key, value in labels.items():
        id, name = (key, value) if str(key).isdecimal() else (value, key)
        if not str(id).isdecimal() or not isinstance(name, str):
            raise InvalidConfigError(f"{path}: labels has the entry {key!r}: {value!r}; accepted: an id and a name")
        pairs[int(id)] = name
    return {id: name for id, name in pairs.items() if id != 0}


def _modality(content: Mapping[str, Any]) -> Modality | None:
    said = content.get("modality")
    first = next(iter(said.values()), None) if isinstance(said, Mapping) else said
    return as_modality(first) if isinstance(first, str) else None


def as_modality(said: str) -> Modality | None:
    """The modality that a word of a dataset means, such as CT or MRI_T1; None where it is neither."""
    word = said.strip().lower()
    if word.startswith("ct"):
        return "ct"
    return "mr" if word.startswith(("mr", "t1", "t2", "flair")) else None
