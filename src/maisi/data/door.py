"""The one door: every command reads images and label maps here, with a report of what was found and decided."""

from pathlib import Path

from maisi.anatomy.codes import name_coded
from maisi.anatomy.numberings import OURS, Numbering, find_numbering, fitting_numberings, in_our_ids, meanings
from maisi.anatomy.places import footprints, middle_of, misplacements
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.space.files import read_image
from maisi.space.label_files import StoredLabels, read_stored_labels
from maisi.space.reading import FileReport, Finding, ReadOptions
from maisi.space.volume import LabelMap, Volume

_PLAIN = ReadOptions()
_NUM_SHOWN = 3


def open_volume(path: str | Path, options: ReadOptions = _PLAIN) -> tuple[Volume, FileReport]:
    """The volume of a NIfTI file, a DICOM file or a DICOM folder, along RAS, and what was found in it.

    Raises `InvalidVolumeError` for what is no image, is damaged, or does not look like HU, with what would be taken.
    """
    path = Path(path)
    volume, findings = read_image(path, options)
    return volume, FileReport(path=str(path), kind="volume", findings=tuple(findings))


def open_labels(
    path: str | Path, options: ReadOptions = _PLAIN, vocabulary: Vocabulary | None = None
) -> tuple[LabelMap, FileReport]:
    """The label map of a file or of a folder of masks in our ids, uint8 along RAS, and what was found in it.

    `options.numbering` says whose numbers the file has; without it the names that the file itself holds count, and
    otherwise our own ids. The masks of a folder have the names of their files. `vocabulary` is that of a bundle with
    classes of its own; without, the one that ships with the package. A map whose structures lie where they cannot is
    warned of in the report, with the numbering that fits if one does.

    Raises `InvalidLabelsError` for what is no label map, for ids without a name and for names that nobody knows, each
    with its number, count and place.
    """
    path, vocabulary = Path(path), vocabulary or load_vocabulary()
    said = None if options.numbering is None else find_numbering(options.numbering, vocabulary)
    channels = None if said is None else said.ids
    stored = read_stored_labels(path, channels=channels, palette=vocabulary.palette, affine=options.affine)
    numbering, coded = _own_numbering(stored, path, vocabulary)
    if said is not None and not path.is_dir() and not stored.is_coloured:
        numbering, coded = said, ()
    labels, findings = _translated(stored, numbering, vocabulary, path)
    placed = _out_of_place(stored, labels, numbering, vocabulary)
    return labels, FileReport(path=str(path), kind="labels", findings=(*stored.findings, *coded, *findings, *placed))


def _own_numbering(stored: StoredLabels, path: Path, vocabulary: Vocabulary) -> tuple[Numbering, tuple[Finding, ...]]:
    """What the file itself calls its ids; a name that nobody knows gives way to that of its standard code."""
    if not stored.names:
        return find_numbering(OURS, vocabulary), ()
    title = "the names of its files" if path.is_dir() else "the names in its header"
    numbering = Numbering(name="its own names", title=title, names=dict(stored.names))
    strange = [id for id, ours in meanings(numbering, vocabulary).items() if ours is None]
    codings = {id: stored.codings[stored.names[id]] for id in strange if stored.names[id] in stored.codings}
    coded = {id: ours for id, coding in codings.items() if (ours := name_coded(coding, vocabulary)) is not None}
    if not coded:
        return numbering, ()
    shown = ", ".join(f"{stored.names[id]!r} ({codings[id].type.meaning}) as {ours}" for id, ours in coded.items())
    finding = Finding(topic="numbering", found="names that nobody knows, with standard codes", decided=f"taken {shown}")
    return numbering.model_copy(update={"names": {**numbering.names, **coded}}), (finding,)


def _translated(
    stored: StoredLabels, numbering: Numbering, vocabulary: Vocabulary, path: Path
) -> tuple[LabelMap, tuple[Finding, ...]]:
    try:
        return in_our_ids(stored.labels, numbering, vocabulary, path)
    except InvalidLabelsError as error:
        fitting = fitting_numberings(footprints(stored.labels), numbering, vocabulary)
        if not fitting:
            raise
        raise InvalidLabelsError(f"{error}. Its structures lie as they should by {_options(fitting)}") from error


def _out_of_place(
    stored: StoredLabels, labels: LabelMap, numbering: Numbering, vocabulary: Vocabulary
) -> tuple[Finding, ...]:
    middle = middle_of(labels.grid)
    wrong = misplacements(footprints(labels), vocabulary, middle)
    if not wrong:
        return ()
    shown = "; ".join(each.words for each in wrong[:_NUM_SHOWN])
    more = f"; and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
    fitting = fitting_numberings(footprints(stored.labels), numbering, vocabulary, middle)
    advice = f"all lie as they should by {_options(fitting)}" if fitting else "no numbering known here fits better"
    return (
        Finding(
            topic="numbering",
            found=f"structures out of place by the numbering {numbering.name}: {shown}{more}",
            decided=f"taken as they are, but {advice}",
            is_warning=True,
        ),
    )


def _options(names: tuple[str, ...]) -> str:
    return " or ".join(f"--numbering {name}" for name in names)
