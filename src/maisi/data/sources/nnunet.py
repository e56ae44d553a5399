"""Raw datasets of nnU-Net (v1 and v2): `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `dataset.json`."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi.data.sources.lists import as_modality, content_of, label_names
from maisi.data.sources.names import images_below, safe_id
from maisi.data.sources.raw import Found, PassedOver, RawCase, RawLabels, Split
from maisi.errors import InvalidConfigError
from maisi.space.endings import stem_of

_CHANNEL = re.compile(r"^(.*)_(\d{4})$")
FOLDERS: dict[str, tuple[str, Split | None]] = {"imagesTr": ("labelsTr", None), "imagesTs": ("labelsTs", "testing")}


def is_nnunet(path: Path) -> bool:
    """Whether this is a folder with `dataset.json` and images whose names end in a channel."""
    if not (path / "dataset.json").is_file() or not (path / "imagesTr").is_dir():
        return False
    return any(_CHANNEL.match(stem_of(file)) for file in images_below(path / "imagesTr"))


def read_nnunet(path: Path) -> Found:
    """A case for each image; of several channels that of CT, else the first, the others are passed over.

    Raises `InvalidConfigError` for regions (labels of several ids), which are no label map.
    """
    content = content_of(path / "dataset.json")
    channels = _channels(content, path / "dataset.json")
    labels = content.get("labels")
    if isinstance(labels, Mapping) and any(isinstance(value, list) for value in labels.values()):
        wrong = next(name for name, value in labels.items() if isinstance(value, list))
        raise InvalidConfigError(
            f"{path / 'dataset.json'}: {wrong!r} is a region of several ids; accepted: one id each"
        )
    names = label_names(content, path / "dataset.json")
    cases, passed = [], []
    for folder, (labels_folder, split) in FOLDERS.items():
        for name, files in sorted(_by_case(path / folder).items()):
            taken = _taken(channels)
            image = files.get(taken, next(iter(files.values())))
            passed += [PassedOver(f, f"another channel of case {name}") for f in files.values() if f != image]
            label = path / labels_folder / f"{name}{image.name[len(stem_of(image)) :]}"
            cases.append(
                RawCase(
                    id=safe_id(name),
                    image=image,
                    labels=(RawLabels(label, names=names),) if label.is_file() else (),
                    patient=name,
                    modality=as_modality(channels.get(taken, "")),
                    split=split,
                    dataset=path.name,
                )
            )
    return Found("nnU-Net raw", tuple(cases), tuple(passed))


def _channels(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The names of the channels by their four digits."""
    said = content.get("channel_names", content.get("modality")) or {}
    if not isinstance(said, Mapping):
        raise InvalidConfigError(f"{path}: the channels are {said!r}; accepted: a name for each number, {{'0': 'CT'}}")
    return {f"{int(key):04d}": str(value) for key, value in said.items() if str(key).isdecimal()}


def _taken(channels: Mapping[str, str]) -> str:
    return next((key for key, name in channels.items() if as_modality(name) == "ct"), "0000")


def _by_case(folder: Path) -> dict[str, dict[str, Path]]:
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in images_below(folder) if folder.is_dir() else ():
        matched = _CHANNEL.match(stem_of(file))
        if matched:
            cases[matched[1]][matched[2]] = file
    return cases
