"""The verdict on a label map, alone or with the CT that was made after it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from maisi.anatomy.measure import Extent, Look, Pieces, contacts, extents, faces, looks
from maisi.anatomy.references import HuRange
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary, load_vocabulary
from maisi.pipelines.quality import image
from maisi.pipelines.quality.labels import (
    Findings,
    extents_as_asked,
    host_findings,
    neighbour_findings,
    piece_findings,
    pieces_of,
    place_findings,
    volume_findings,
)
from maisi.pipelines.quality.report import Finding, HuMeasure, QualityReport, StructureReport
from maisi.pipelines.quality.segmenter import Overlap, dice_findings
from maisi.space.volume import LabelMap, Volume

BODY = "body"

NEIGHBOURS = 4
"""So many neighbours are told, by the share of the surface that they have."""


@dataclass(frozen=True)
class Measured:
    """What was measured of a label map and of its CT, by id; `asked` are the extents of what a volume was asked of."""

    extents: Mapping[int, Extent]
    asked: Mapping[int, Extent]
    contacts: Mapping[tuple[int, int], int]
    pieces: Mapping[int, Pieces]
    looks: Mapping[int, Look] = field(default_factory=dict)
    expected: Mapping[int, HuRange] = field(default_factory=dict)
    edges: Mapping[int, float] = field(default_factory=dict)
    overlaps: Mapping[int, Overlap] = field(default_factory=dict)


def judge_labels(
    labels: LabelMap,
    *,
    asked_ml: Mapping[int, float] | None = None,
    is_given: bool = False,
    vocabulary: Vocabulary | None = None,
) -> QualityReport:
    """The report on a label map alone.

    `asked_ml` are the volumes that were asked for, 0 for what is not to be there. What `is_given`, a user's own map,
    is told and fails nothing.
    """
    vocabulary = vocabulary or load_vocabulary()
    sizes, asked_ml = extents(labels), asked_ml or {}
    as_asked = extents_as_asked(labels, asked_ml, vocabulary)
    measured = Measured(sizes, as_asked, contacts(labels), pieces_of(labels, sizes, vocabulary))
    findings = _of_labels(labels, measured, asked_ml, is_given, vocabulary)
    return QualityReport(structures=_rows(measured, findings, asked_ml, vocabulary))


def judge(
    volume: Volume,
    labels: LabelMap | None,
    *,
    modality: str = "ct",
    asked_ml: Mapping[int, float] | None = None,
    is_given: bool = False,
    held_to: Collection[str] | None = None,
    overlaps: Mapping[int, Overlap] | None = None,
    least_dice: float = 0.5,
    outside_is_air: bool | None = None,
    vocabulary: Vocabulary | None = None,
) -> QualityReport:
    """The report on a volume and the labels that it is to follow; without labels, on the volume alone.

    `held_to` names the structures and groups of which the image can fail, all without it; `overlaps` are what a
    segmenter found; `outside_is_air` says what 0 in the map is, air or nothing known; without it, air where the map has
    a body. The rest as `judge_labels`. Only a CT has Hounsfield units to judge. Raises `InvalidLabelsError` for labels
    on another grid.
    """
    vocabulary = vocabulary or load_vocabulary()
    named = tuple(held_to) if held_to is not None else None
    sizes = {} if labels is None else extents(labels)
    is_air = vocabulary.id(BODY) in sizes if outside_is_air is None else outside_is_air
    is_held = named is None or BODY in named
    whole = image.image_findings(volume, labels, vocabulary, is_held, is_air)
    if labels is None:
        return QualityReport(held_to=named, findings=whole)
    held = set(sizes) if named is None else {id for name in named for id in vocabulary.members(name)}
    is_ct = volume.modality == "ct"
    touching = faces(volume, labels)
    found = looks(volume, labels) if is_ct else {}
    phase = image.phase_of(modality, found, vocabulary)
    expected = image.ranges(sizes, vocabulary, phase) if is_ct else {}
    asked_ml = asked_ml or {}
    measured = Measured(
        sizes,
        extents_as_asked(labels, asked_ml, vocabulary),
        {pair: each.count for pair, each in touching.items()},
        pieces_of(labels, sizes, vocabulary),
        found,
        expected,
        image.edges(touching, expected, is_air),
        overlaps or {},
    )
    findings = _joined(
        _of_labels(labels, measured, asked_ml, is_given, vocabulary),
        image.hu_findings(found, expected, held),
        image.edge_findings(measured.edges, held),
        dice_findings(measured.overlaps, sizes, held, least_dice),
    )
    rows = _rows(measured, findings, asked_ml, vocabulary)
    return QualityReport(phase=phase, held_to=named, findings=whole, structures=rows)


def _of_labels(
    labels: LabelMap, measured: Measured, asked_ml: Mapping[int, float], is_given: bool, vocabulary: Vocabulary
) -> Findings:
    findings = _joined(
        volume_findings({**measured.extents, **measured.asked}, asked_ml),
        piece_findings(measured.extents, measured.pieces, vocabulary),
        place_findings(labels, measured.extents, vocabulary, vocabulary.id(BODY) in measured.extents),
        host_findings(measured.extents, measured.contacts, vocabulary),
        neighbour_findings(measured.extents, measured.contacts, vocabulary),
    )
    if not is_given:
        return findings
    return {id: [each.model_copy(update={"level": "info"}) for each in found] for id, found in findings.items()}


def _joined(*parts: Findings) -> Findings:
    ids = sorted({id for part in parts for id in part})
    return {id: [found for part in parts for found in part.get(id, ())] for id in ids}


def _rows(
    measured: Measured, findings: Findings, asked_ml: Mapping[int, float], vocabulary: Vocabulary
) -> tuple[StructureReport, ...]:
    """A row a structure that is there, or that was asked for, by id."""
    return tuple(
        _row(id, measured, findings.get(id, []), asked_ml.get(id), vocabulary)
        for id in sorted({*measured.extents, *asked_ml, *findings})
    )


def _row(
    id: int, measured: Measured, findings: list[Finding], asked_ml: float | None, vocabulary: Vocabulary
) -> StructureReport:
    extent = measured.asked.get(id, measured.extents.get(id))
    parts, look, overlap = measured.pieces.get(id), measured.looks.get(id), measured.overlaps.get(id)
    return StructureReport(
        id=id,
        name=vocabulary.name(id),
        ml=round(extent.ml, 3) if extent else 0.0,
        voxels=extent.voxels if extent else 0,
        asked_ml=asked_ml,
        segmented_ml=overlap and round(overlap.ml, 3),
        is_cut=bool(extent and extent.is_cut),
        pieces=parts and parts.count,
        largest_piece=parts and round(parts.largest, 4),
        neighbours=_neighbours(id, measured.contacts, vocabulary),
        hu=look and _hu(look, measured.expected.get(id)),
        edge=round(measured.edges[id], 3) if id in measured.edges else None,
        dice=overlap and round(overlap.dice, 4),
        findings=tuple(findings),
    )


def _hu(look: Look, expected: HuRange | None) -> HuMeasure:
    return HuMeasure(
        median=round(look.median, 1),
        spread=round(look.spread, 1),
        voxels=look.voxels,
        is_core=look.is_core,
        reference=expected,
    )


def _neighbours(id: int, touching: Mapping[tuple[int, int], int], vocabulary: Vocabulary) -> tuple[str, ...]:
    found = sorted(((count, b) for (a, b), count in touching.items() if a == id and b != BACKGROUND), reverse=True)
    return tuple(vocabulary.name(b) for _, b in found[:NEIGHBOURS])
