"""A label map of anywhere made ours: in our ids along RAS, with a body and at a spacing where asked."""

import numpy as np

from maisi.anatomy.body import body_envelope, enclosed
from maisi.anatomy.deform import resampled
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_span, case_volume
from maisi.data.label_maps import FoundMap
from maisi.errors import InvalidRequestError
from maisi.pipelines.label_requests import PreparingLabels
from maisi.space.resample import pad, with_spacing
from maisi.space.volume import LabelMap, check_same_grid


def prepared(found: FoundMap, settings: PreparingLabels) -> tuple[LabelMap, RegionSpan]:
    """The map, uint8, and the span of regions that it shows.

    Raises `InvalidLabelsError` for what is no label map, `InvalidRequestError` where a body is to come from a CT that
    is not there, and where nothing tells a region.
    """
    labels = found.read(settings.reading)
    labels = LabelMap(labels.array.astype(np.uint8), labels.grid)
    if settings.body:
        labels = _with_scanned_body(labels, found)
    elif settings.enclose and load_vocabulary().id("body") not in labels.array:
        labels = enclosed(_with_rim(labels))
    if settings.spacing is not None:
        labels = resampled(labels, with_spacing(labels.grid, settings.spacing))
    return labels, region_span(labels) if found.case is None else case_span(found.case, labels)


def _with_rim(labels: LabelMap) -> LabelMap:
    """The labels with room in each axial plane for the soft tissue that is to be drawn around them."""
    rules = load_vocabulary().body
    x, y, _ = (int(np.ceil((rules.enclosed_rim_mm + rules.enclosed_round_mm) / s)) for s in labels.grid.spacing)
    return pad(labels, (x, y, 0), (x, y, 0))


def _with_scanned_body(labels: LabelMap, found: FoundMap) -> LabelMap:
    """The labels, what has none inside of the body that the CT of the case shows being body."""
    if found.case is None or found.case.image is None:
        raise InvalidRequestError(
            f"{found.path} has no CT beside it that shows the body; accepted: a manifest that names one, or --enclose"
        )
    volume = case_volume(found.case)
    check_same_grid(labels, volume)
    body = body_envelope(volume) & (labels.array == 0)
    return LabelMap(np.where(body, np.uint8(load_vocabulary().id("body")), labels.array), labels.grid)
