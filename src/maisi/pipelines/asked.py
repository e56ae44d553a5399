"""Label maps of any source, changed into the anatomy that was asked for."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from maisi.anatomy.fulfil import fulfil
from maisi.anatomy.request import AnatomyRequest, check_region, check_view
from maisi.anatomy.resize import check_voxels
from maisi.errors import InvalidAnatomyError
from maisi.pipelines.labels import Anatomy, GivenLabels, LabelFile, LabelsOf, LabelSource
from maisi.space.reading import FileReport

logger = logging.getLogger(__name__)

MOST_DRAWS = 4
"""Of label maps for one sample, where those that come first cannot be changed into what was asked."""


@dataclass(frozen=True)
class AskedLabels(LabelsOf):
    """The label maps of another source, changed into what was asked for; see `anatomy.fulfil`."""

    request: AnatomyRequest

    @property
    def report(self) -> FileReport | None:
        """What was found in the file that the source reads."""
        return getattr(self.source, "report", None)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        """The anatomy of one sample; raises `InvalidAnatomyError` where none of a few maps shows what was asked."""
        draws = 1 if is_given(self.source) and not self.request.lesions else MOST_DRAWS
        for draw in range(1, draws + 1):
            try:
                drawn = self.source.draw(rng, generator)
                assert drawn.labels is not None
                found = fulfil(drawn.labels, self.request, rng)
            except InvalidAnatomyError as error:
                if draw == draws:
                    raise
                logger.info("%s; another label map is drawn", error)
            else:
                break
        return replace(drawn, labels=found.labels, asked=found.asked, obtained=found.obtained)


def asked(source: LabelSource, request: AnatomyRequest) -> LabelSource:
    """The source with all that it draws changed into what was asked for.

    Raises `InvalidAnatomyError` for what can be known to be impossible before anything is drawn: structures outside of
    the regions, what does not fit into the field of view and what is smaller than its fewest voxels. What given label
    maps lack is told by `file_source`.
    """
    if not is_given(source):
        check_region(request, source.span)
    check_view(request, source.grid.fov_mm)
    for id, ml in request.sized.items():
        check_voxels(id, ml, source.grid.spacing, request.vocabulary)
    return AskedLabels(source, request)


def is_given(source: LabelSource) -> bool:
    """Whether every draw of a source is the same label map."""
    return isinstance(source, GivenLabels | LabelFile)
