"""What a label map alone tells: sizes, pieces, places, and hosts of tumours."""

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from maisi.anatomy.measure import Extent, Pieces, extents, pieces
from maisi.anatomy.places import footprints, middle_of, misplacements
from maisi.anatomy.references import neighbour_references, piece_references
from maisi.anatomy.resize import mask_of
from maisi.anatomy.vocabulary import Vocabulary
from maisi.pipelines.quality.report import Finding, Level
from maisi.space.volume import LabelMap

Findings = dict[int, list[Finding]]

VOLUME_INFO, VOLUME_FAIL = 0.10, 0.25
"""A volume that differs from the one asked for by a larger share is told, or fails."""

PIECE_VOXELS = 100
"""Of structures with fewer voxels, coarse grids break thin parts off (`benchmarks/reference_pieces.py --coarse`)."""

NEIGHBOUR_VOXELS = 200
"""Structures with fewer voxels may lose a neighbour to a coarse grid."""

PLACE_VOXELS = 27
"""Of fewer voxels the middle may be that of a part."""

WHOLE = 0.9
"""The largest piece is at least this share of a structure that is of one piece in real maps."""

FEW_MAPS = 5
"""Of what fewer real maps show whole, more pieces are told and fail nothing."""

PIECE_INFO, PIECE_FAIL = 0.1, 0.3
"""A largest piece whose share is by more than this below the least in real maps is told, or fails."""

CUT_FAIL = 0.4
"""Of what the field of view cuts the largest piece has at least this share, in real maps cut anywhere."""


def extents_as_asked(labels: LabelMap, asked_ml: Mapping[int, float], vocabulary: Vocabulary) -> dict[int, Extent]:
    """The extents of structures that a volume was asked of, where they are there, with all that counts to them.

    An organ with its tumours and vessels, lungs with their lobes.
    """
    masks = {id: mask_of(labels, id, vocabulary) for id, ml in asked_ml.items() if ml}
    return {id: extents(LabelMap(mask.astype(np.uint8), labels.grid))[1] for id, mask in masks.items() if mask.any()}


def volume_findings(found: Mapping[int, Extent], asked_ml: Mapping[int, float]) -> Findings:
    """Structures that were asked for and are not there, the reverse, and volumes (ml) other than asked."""
    findings: Findings = defaultdict(list)
    for id, asked in asked_ml.items():
        ml = found[id].ml if id in found else 0.0
        if asked == 0 or ml == 0:
            if (asked == 0) != (ml == 0):
                words = f"not asked for, and {ml:.3g} ml are there" if ml else f"asked for {asked:.3g} ml, not there"
                findings[id].append(Finding(check="presence", level="fail", words=words))
            continue
        off = abs(ml - asked) / asked
        if off > VOLUME_INFO:
            words = f"asked for {asked:.3g} ml, got {ml:.3g} ml"
            findings[id].append(Finding(check="volume", level="fail" if off > VOLUME_FAIL else "info", words=words))
    return findings


def place_findings(
    labels: LabelMap, found: Mapping[int, Extent], vocabulary: Vocabulary, is_complete: bool
) -> Findings:
    """Structures that are larger than they can be, or where no body has them.

    In a map that is not complete any structure may be there in part, and a few voxels are a part too: their middle says
    little, and is told.
    """
    findings: Findings = defaultdict(list)
    for wrong in misplacements(footprints(labels), vocabulary, middle_of(labels.grid)):
        is_shown = is_complete and all(found[id].voxels >= PLACE_VOXELS for id in wrong.ids)
        level: Level = "fail" if is_shown or len(wrong.ids) == 1 else "info"
        for id in wrong.ids:
            findings[id].append(Finding(check="place", level=level, words=f"out of place: {wrong.words}"))
    return findings


def pieces_of(labels: LabelMap, found: Mapping[int, Extent], vocabulary: Vocabulary) -> dict[int, Pieces]:
    """The pieces of those structures of which the real maps say that they are one."""
    known = piece_references().structures
    single = {id for id in found if known.get(vocabulary.name(id), (0, 0.0))[1] >= WHOLE}
    return {id: pieces(labels, id, found[id].box) for id in single}


def piece_findings(found: Mapping[int, Extent], parts: Mapping[int, Pieces], vocabulary: Vocabulary) -> Findings:
    """Structures in more pieces than real maps show; where the field of view cuts them, in many more."""
    findings: Findings = defaultdict(list)
    for id, part in parts.items():
        count, least = piece_references().structures[vocabulary.name(id)]
        if found[id].is_cut:
            least = min(least, CUT_FAIL + PIECE_FAIL)
        short = least - part.largest
        if short > PIECE_INFO and found[id].voxels >= PIECE_VOXELS:
            level: Level = "fail" if short > PIECE_FAIL and count >= FEW_MAPS else "info"
            words = f"{part.count} pieces, the largest {part.largest:.0%} of it; at least {least:.0%} in {count} maps"
            findings[id].append(Finding(check="pieces", level=level, words=words))
    return findings


def host_findings(found: Collection[int], contacts: Mapping[tuple[int, int], int], vocabulary: Vocabulary) -> Findings:
    """Tumours and cysts that do not touch what they grow in."""
    findings: Findings = defaultdict(list)
    for id in found:
        host = vocabulary.structure(id).host
        if host is None:
            continue
        hosts = (set(found) if host == "body" else set(vocabulary.members(host))) - {id}
        if not hosts & set(found):
            words = f"grows in {host}, which the map does not have"
            findings[id].append(Finding(check="host", level="info", words=words))
        elif not any(contacts.get((id, each), 0) for each in hosts):
            findings[id].append(Finding(check="host", level="fail", words=f"does not touch its host, {host}"))
    return findings


def neighbour_findings(
    found: Mapping[int, Extent], contacts: Mapping[tuple[int, int], int], vocabulary: Vocabulary
) -> Findings:
    """Structures that do not touch what they touch in all real maps, where the field of view cuts neither: told."""
    findings: Findings = defaultdict(list)
    whole = {
        vocabulary.name(id): id for id, each in found.items() if not each.is_cut and each.voxels >= NEIGHBOUR_VOXELS
    }
    for name, id in whole.items():
        for other, maps in neighbour_references().structures.get(name, {}).items():
            if other in whole and (id, whole[other]) not in contacts:
                words = f"does not touch {other}, as in {maps} of {maps} maps"
                findings[id].append(Finding(check="neighbours", level="info", words=words))
    return findings
