"""Label maps wherever they are: a file, a folder of masks, a folder of either, a manifest."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.cases import own_labels
from maisi.data.door import open_labels
from maisi.data.manifest import STORED, Case, read_manifest
from maisi.data.sources.names import case_key, case_parts, is_label, safe_id
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.space.endings import IMAGES, image_files, mask_files, name_of
from maisi.space.files import log_findings
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap

Split = Literal["training", "validation", "testing"]


@dataclass(frozen=True)
class FoundMap:
    """A label map that a source holds, unread: a file or folder of masks, or what a case of a manifest names."""

    id: str
    path: Path
    case: Case | None = None

    def read(self, options: ReadOptions, vocabulary: Vocabulary | None = None) -> LabelMap:
        """The map in our ids along RAS; raises `InvalidLabelsError` for what is none, and for one without a label."""
        if self.case is None:
            labels, report = open_labels(self.path, options, vocabulary)
            log_findings(self.path, report.findings)
        else:
            own = own_labels(self.case, vocabulary=vocabulary)
            if own is None:
                raise InvalidLabelsError(f"{self.path}: no structure that the vocabulary knows")
            labels = own
        if not labels.array.any():
            raise InvalidLabelsError(f"{self.path}: every voxel is background")
        return labels


def find_maps(source: Path) -> tuple[FoundMap, ...]:
    """The label maps of a source, named after their files, folders or cases, in the order of names.

    Raises `InvalidRequestError` where there is nothing or no label map.
    """
    if not source.exists():
        raise InvalidRequestError(f"nothing at {source}; accepted: a label map, a folder of them, or a manifest")
    if source.suffix in (".json", ".jsonl") or (source / STORED).is_file():
        found = [_of_case(case) for case in read_manifest(source) if case.labels or case.labels_maisi]
    elif source.is_file():
        found = [FoundMap(name_of(source), source)]
    elif is_one_map(source):
        found = [FoundMap(source.name, source)]
    else:
        found = [FoundMap(name_of(path), path) for path in _map_files(source)] or _in_folders(source)
    if not found:
        raise InvalidRequestError(
            f"no label map in {source}; accepted: {', '.join(IMAGES)} files, folders of masks named after "
            "structures, or a manifest whose cases have labels"
        )
    return tuple(found)


def named_apart(found: Sequence[FoundMap]) -> tuple[FoundMap, ...]:
    """The maps, those of one name called after the folders that tell them apart too; the cases of manifests are not."""
    alike: dict[str, list[FoundMap]] = defaultdict(list)
    for each in found:
        alike[each.id.casefold()].append(each)  # some disks do not tell A from a
    names = {id: iter(_names_within(group)) for id, group in alike.items()}
    return tuple(replace(each, id=next(names[each.id.casefold()])) for each in found)


def _names_within(alike: Sequence[FoundMap]) -> list[str]:
    """The names of maps that have one name: after the folders of a case, else after all folders."""
    if len(alike) == 1 or any(each.case is not None for each in alike):
        return [each.id for each in alike]
    root = Path(os.path.commonpath([each.path.parent for each in alike]))
    keys = [case_key(each.path, root) for each in alike]
    if len({key.casefold() for key in keys}) == len(keys):
        return keys
    return [safe_id("_".join((*each.path.relative_to(root).parent.parts, each.id))) for each in alike]


def _map_files(folder: Path) -> list[Path]:
    """The image files right in a folder, without images whose labels lie beside them."""
    files = image_files(folder)
    labelled = {case_parts(path, folder) for path in files if is_label(path, folder)}
    return [path for path in files if is_label(path, folder) or case_parts(path, folder) not in labelled]


def _of_case(case: Case) -> FoundMap:
    path = case.labels_maisi or case.labels
    assert path is not None
    return FoundMap(case.stem, path, case)


def _in_folders(source: Path) -> list[FoundMap]:
    """A map for each folder inside that is one, or holds one."""
    found = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = _map_files(folder)
        if is_one_map(folder):
            found.append(FoundMap(folder.name, folder))
        elif len(files) == 1:
            found.append(FoundMap(folder.name, files[0]))
    return found


def is_one_map(folder: Path) -> bool:
    """Whether a folder holds one label map, a binary file for each structure, and not a map in each file."""
    names = [name_of(path) for path in mask_files(folder)]
    return bool(names) and all(load_vocabulary().knows(name) for name in names)
