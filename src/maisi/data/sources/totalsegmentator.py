"""The TotalSegmentator dataset: a folder a patient with `ct.nii.gz` (or `mri.nii.gz`), masks, and `meta.csv`."""

import csv
from pathlib import Path

from maisi.data.sources.raw import Found, PassedOver, RawCase, RawLabels, Split
from maisi.errors import InvalidConfigError
from maisi.shapes import Modality
from maisi.space.endings import ending_of

MASKS, TABLE = "segmentations", "meta.csv"
IMAGES: dict[str, Modality] = {"ct.nii.gz": "ct", "mri.nii.gz": "mr"}
SPLITS: dict[str, Split] = {"train": "training", "val": "validation", "test": "testing"}


def is_totalsegmentator(path: Path) -> bool:
    """Whether its folders hold an image beside a folder of masks: some where there is a table, else all of them."""
    if not path.is_dir() or any(ending_of(each) for each in path.iterdir()):
        return False
    has = [_image(folder) is not None and (folder / MASKS).is_dir() for folder in _folders(path)]
    return any(has) if (path / TABLE).is_file() else bool(has) and all(has)


def read_totalsegmentator(path: Path) -> Found:
    """A case for each folder; split, sex, age and more from `meta.csv` where it is there."""
    table = _table(path / TABLE)
    cases, passed = [], []
    for folder in _folders(path):
        image = _image(folder)
        if image is None:
            passed.append(PassedOver(folder, "a folder without ct.nii.gz or mri.nii.gz"))
            continue
        row = table.get(folder.name, {})
        cases.append(
            RawCase(
                id=folder.name,
                image=image,
                labels=(RawLabels(folder / MASKS),) if (folder / MASKS).is_dir() else (),
                patient=folder.name,
                modality=IMAGES[image.name],
                split=SPLITS.get(row.get("split", "")),
                dataset=path.name,
                attributes={key: value for key, value in row.items() if key not in ("image_id", "split") and value},
            )
        )
    return Found("TotalSegmentator dataset", tuple(cases), tuple(passed))


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith((".", "__")))


def _image(folder: Path) -> Path | None:
    return next((folder / name for name in IMAGES if (folder / name).is_file()), None)


def _table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of `meta.csv` by their image_id; its columns are parted by semicolons, or by commas."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidConfigError(f"{path} is not text in UTF-8: {error}") from error
    separator = ";" if ";" in text.partition("\n")[0] else ","
    rows = csv.DictReader(text.splitlines(), delimiter=separator)
    return {row["image_id"]: {k: v or "" for k, v in row.items() if k} for row in rows if row.get("image_id")}
