"""What a file, of any format that maisi writes, says of its making."""

from pathlib import Path

from maisi.errors import InvalidRequestError
from maisi.space.checks import Refusal
from maisi.space.files import COMMENT
from maisi.space.nifti import open_nifti, suffix_of
from maisi.space.raster import reader_of
from maisi.storage.provenance import KEY, Provenance, is_provenance, parse_provenance


def read_provenance(path: Path) -> Provenance:
    """What made a NIfTI, NRRD, MetaImage or DICOM file, or a DICOM series by its folder.

    Raises `InvalidRequestError` for a file that does not say it, or of another format.
    """
    text = _text(path)
    if text is None:
        raise InvalidRequestError(
            f"{path} does not say how it was made; accepted: a file that maisi wrote, its run.yaml, or its folder"
        )
    return parse_provenance(text, path)


def known_provenance(path: Path) -> Provenance | None:
    """What made a file; None where it does not say it, as a scan does not."""
    try:
        return read_provenance(path)
    except InvalidRequestError:
        return None


def _text(path: Path) -> str | None:
    if path.is_dir():
        return next((found for file in sorted(path.iterdir()) if (found := _of_dicom(file)) is not None), None)
    if suffix_of(path) is not None:
        return _of_nifti(path)
    read = reader_of(path)
    return _of_dicom(path) if read is None else read(path, _refusal).fields.get(KEY)


def _refusal(path: Path, found: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path} cannot be read: found {found}; accepted: {accepted}")


def _of_nifti(path: Path) -> str | None:
    refuse: Refusal = _refusal
    image = open_nifti(path, refuse)
    for extension in reversed(image.header.extensions):  # the last command that changed the file
        content = extension.get_content() if extension.get_code() == COMMENT else ""
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if is_provenance(text):
            return text.strip("\0 ")
    return None


def _of_dicom(path: Path) -> str | None:
    from maisi.space.dicom import is_dicom
    from maisi.space.dicom.identity import provenance_text
    from maisi.space.dicom.opening import BROKEN, read_whole

    if not path.is_file() or not is_dicom(path):
        return None
    try:
        return provenance_text(read_whole(path))
    except BROKEN as error:
        raise _refusal(path, "a damaged DICOM file", "a whole file") from error
