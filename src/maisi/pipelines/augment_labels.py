"""Variants of a label map by its tumours, and pictures of them."""

import numpy as np
from PIL import Image

from maisi.anatomy.tumours import augment_tumours, plant, tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.pipelines.preview import middle_of, preview
from maisi.pipelines.requests import AugmentLabelsRequest
from maisi.space.volume import LabelMap, Volume

_TRIES = 4  # draws of one variant
_NO_HU = -1000.0  # of what is no structure


def draw_variant(labels: LabelMap, request: AugmentLabelsRequest, index: int) -> LabelMap:
    """Variant `index` of a label map, from the request's seed and the index alone.

    Raises InvalidRequestError for what cannot be, and where none of a few draws finds room.
    """
    for attempt in range(_TRIES):
        rng = np.random.default_rng([request.seed, index, attempt])
        try:
            return _drawn(labels, request, rng)
        except InvalidRequestError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError  # the last draw returns or raises


def _drawn(labels: LabelMap, request: AugmentLabelsRequest, rng: np.random.Generator) -> LabelMap:
    if request.add is None:
        return augment_tumours(labels, rng, strength=1.0 if request.strength is None else request.strength)
    return plant(
        labels,
        request.add,
        rng,
        diameter_mm=request.diameter,
        volume_ml=request.volume,
        number=request.number,
        at_mm=request.at,
    )


def picture_of(variant: LabelMap, request: AugmentLabelsRequest, index: int) -> Image.Image:
    """Three planes through the middle of the tumours that were varied or planted."""
    vocabulary = load_vocabulary()
    what, ids = "tumours varied", vocabulary.group("tumours")
    if request.add is not None:
        what = tumour_named(request.add, vocabulary).name
        ids = (vocabulary.id(what),)
    title = f"{request.labels.name} · {what} · seed {request.seed} · sample {index}"
    return preview(flat_volume(variant, vocabulary), variant, title, middle_of(variant, ids))


def flat_volume(labels: LabelMap, vocabulary: Vocabulary) -> Volume:
    """Every structure at its mean HU, air where there is none."""
    table = np.full(1 + int(labels.array.max(initial=0)), _NO_HU, np.float32)
    for structure in vocabulary.structures:
        if structure.hu is not None and structure.id < len(table):
            table[structure.id] = structure.hu[0]
    return Volume(table[labels.array], labels.grid)
