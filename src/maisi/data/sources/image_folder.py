"""Folders of image files: images, with labels beside them by the usual names."""

from collections import Counter, defaultdict
from pathlib import Path

from maisi.data.sources.dicom_tree import is_dicom_tree
from maisi.data.sources.names import case_key, case_parts, images_below, is_label, patient_of
from maisi.data.sources.raw import Found, PassedOver, RawCase, RawLabels
from maisi.space.endings import ending_of, stem_of
from maisi.space.nifti import suffix_of

MASK_FOLDERS = ("segmentations", "segmentation", "masks", "structures")
OUR_LABELS = "labels_maisi"

Key = tuple[tuple[str, ...], str]
"""What an image and its labels have in common: folders and name."""


def is_image_folder(path: Path) -> bool:
    """Whether there is a NIfTI file, or an NRRD or MetaImage and no DICOM series beside it, or the path is one."""
    if path.is_file():
        return ending_of(path) is not None
    found = list(images_below(path))
    return any(map(suffix_of, found)) or (bool(found) and not is_dicom_tree(path))


def read_image_folder(path: Path) -> Found:
    """A case for each image; labels are `X_seg`, `X.seg`, `X_label(s)`, `X_mask`, files of the same name in a folder of
    labels.

    A file that is just called `labels` or `seg` belongs to the one image of its folder, a folder `segmentations` of
    masks too. Files named `labels_maisi` have our ids. Labels of no image are passed over.
    """
    if path.is_file():
        key = case_key(path, path.parent)
        return Found("image file", (RawCase(id=key, image=path, patient=key, dataset=path.parent.name),))
    masks = {
        file.parent for file in images_below(path) if file.parent.name.lower() in MASK_FOLDERS and file.parent != path
    }
    files = [file for file in images_below(path) if file.parent not in masks]
    images: dict[Key, list[Path]] = defaultdict(list)
    labels: dict[Key, list[RawLabels]] = defaultdict(list)
    for file in files:
        if is_label(file, path):
            ours = "maisi" if stem_of(file).endswith(OUR_LABELS) else None
            labels[case_parts(file, path)].append(RawLabels(file, numbering=ours))
        else:
            images[case_parts(file, path)].append(file)
    for folder in sorted(masks):
        labels[case_parts(folder.parent / "labels.nii.gz", path)].append(RawLabels(folder))
    return _paired(path, images, labels)


def _paired(path: Path, images: dict[Key, list[Path]], labels: dict[Key, list[RawLabels]]) -> Found:
    for folders, own in [key for key in labels if key not in images]:  # p1.nii.gz, and p1/segmentations
        if not own and folders and (beside_it := (folders[:-1], folders[-1])) in images:
            labels[beside_it] += labels.pop((folders, own))
    cases, passed = [], []
    beside = Counter(files[0].parent for files in images.values())
    for key in sorted(images):
        first, *others = images[key]
        id = case_key(first, path)
        passed += [PassedOver(other, f"another image of case {id}, which {first.name} is of too") for other in others]
        patient = patient_of(first, path, id, beside[first.parent])
        cases.append(RawCase(id=id, image=first, labels=tuple(labels[key]), patient=patient, dataset=path.name))
    for key in sorted(set(labels) - set(images)):
        passed += [PassedOver(each.path, "labels without an image of the same name") for each in labels[key]]
    return Found("image folder", tuple(cases), tuple(passed))
