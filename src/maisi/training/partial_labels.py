"""Label dropout: label maps that name less than they could, so that a map of a few organs steers too."""

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.lesions import lesion_ids, unnamed
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary
from maisi.shapes import Frozen


class LabelDropout(Frozen):
    """How often a map is thinned out, and between which shares of its structures keep their names then."""

    probability: float = Field(default=0.0, ge=0, le=1)
    kept: tuple[float, float] = (0.0, 0.9)
    by_group: float = Field(default=0.5, ge=0, le=1)  # how often whole groups lose their names together, such as ribs

    @model_validator(mode="after")
    def _shares(self) -> "LabelDropout":
        if not 0 <= self.kept[0] <= self.kept[1] <= 1:
            raise ValueError(f"kept is a least and a greatest share from 0 to 1, not {self.kept}")
        return self


def thinned_out(labels: Tensor, config: LabelDropout, vocabulary: Vocabulary, rng: np.random.Generator) -> Tensor:
    """The ids (x, y, z), sometimes with structures as plain body, as in maps made elsewhere.

    Lesions always keep their names: a lesion that shows without a label would teach to draw lesions anywhere.
    """
    if rng.random() >= config.probability:
        return labels
    share, together = rng.uniform(*config.kept), rng.random() < config.by_group
    ids = labels.numpy()
    keep = {BACKGROUND, vocabulary.id("body"), *lesion_ids(vocabulary)}
    present = [int(id) for id in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)) if int(id) not in keep]
    kinds = [vocabulary.structure(id).groups[0] if together else str(id) for id in present]
    lost = {kind for kind in sorted(set(kinds)) if rng.random() >= share}
    gone = [id for id, kind in zip(present, kinds, strict=True) if kind in lost]
    return torch.from_numpy(unnamed(ids, gone, vocabulary))
