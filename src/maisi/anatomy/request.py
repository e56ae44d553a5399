"""What anatomy is asked for: structures with their sizes, without their number, or not at all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import pi

from maisi.anatomy.lesions import healthy_ids, lesion_ids
from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.sizes import has_scale, is_fixed, size_rules, volume_of_size
from maisi.anatomy.tumours import tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.anatomy.wish import Wish
from maisi.errors import InvalidAnatomyError, InvalidRequestError


@dataclass(frozen=True)
class AnatomyRequest:
    """What a label map is to show: volumes (ml) of some structures, others of any size, others absent. Ids."""

    sized: Mapping[int, float]
    present: frozenset[int]
    absent: frozenset[int]
    vocabulary: Vocabulary

    @classmethod
    def parse(cls, wishes: Iterable[str], vocabulary: Vocabulary | None = None) -> "AnatomyRequest":
        """The request of texts such as `liver=0.6`; names are those of any vocabulary, see `Vocabulary.find`.

        Raises `InvalidLabelsError` for an unknown name (with the nearest), `InvalidAnatomyError` for a size that is
        none, two names for one structure, and what no body has.
        """
        vocabulary = vocabulary or load_vocabulary()
        named: dict[int, Wish] = {}
        for wish in map(Wish.parse, wishes):
            id = _named(wish.name, vocabulary)
            if id in named:
                names = " and ".join(dict.fromkeys((named[id].name, wish.name)))
                raise InvalidAnatomyError(f"{names} say the size of {vocabulary.name(id)} twice; accepted: once")
            named[id] = wish
        ml = {id: _volume(id, wish, vocabulary) for id, wish in named.items()}
        request = cls(
            sized={id: each for id, each in ml.items() if each is not None},
            present=frozenset(id for id, wish in named.items() if wish.is_present),
            absent=frozenset(id for id, wish in named.items() if wish.is_present is False),
            vocabulary=vocabulary,
        )
        _check_bodies(request)
        return request

    @cached_property
    def lesions(self) -> frozenset[int]:
        """The lesions that are to be there."""
        return self.wanted & frozenset(lesion_ids(self.vocabulary))

    @property
    def wanted(self) -> frozenset[int]:
        """All that is to be there."""
        return self.present | frozenset(self.sized)

    @property
    def organs(self) -> dict[int, float]:
        """Volumes (ml) of what is no lesion."""
        return {id: ml for id, ml in self.sized.items() if id not in self.lesions}

    def __bool__(self) -> bool:
        return bool(self.wanted or self.absent)


def _named(name: str, vocabulary: Vocabulary) -> int:
    """The id of a structure by any of its names, those of `tumours.yaml` among them."""
    if vocabulary.knows(name):
        return vocabulary.find(name)
    try:
        return vocabulary.id(tumour_named(name, vocabulary).name)
    except InvalidRequestError:
        if any(word in name.lower() for word in ("tumor", "tumour", "cancer", "lesion")):
            raise
        return vocabulary.find(name)  # which tells the nearest names


def _volume(id: int, wish: Wish, vocabulary: Vocabulary) -> float | None:
    """The volume (ml) of a wish, None where it says none; refuses what cannot be asked of the structure."""
    structure = vocabulary.structure(id)
    if structure.is_dummy:
        raise InvalidAnatomyError(
            f"{wish.name} is {structure.name}, a number without a structure; accepted: a structure"
        )
    if structure.name == "body" and wish.is_present is False:
        raise InvalidAnatomyError("there is no label map without body; accepted: structures inside of it")
    if wish.is_present is not None:
        return None
    if is_fixed(id, vocabulary):
        raise InvalidAnatomyError(
            f"{structure.name} has the size that its body gives it; accepted: {wish.name}=any or none"
        )
    is_lesion = id in lesion_ids(vocabulary)
    if wish.across_mm is not None and not is_lesion:
        raise InvalidAnatomyError(
            f"{structure.name} is no tumour, and has no diameter; accepted: a size from 0 to 1, or ml"
        )
    if wish.size is not None:
        if not has_scale(id, vocabulary):
            raise InvalidAnatomyError(
                f"the usual volume of {structure.name} is not known; accepted: a volume such as 50ml"
            )
        return volume_of_size(id, wish.size, vocabulary)
    ml = wish.ml if wish.ml is not None else pi / 6 * (wish.across_mm or 0.0) ** 3 / 1000
    place = vocabulary.places_by_id.get(id)
    if place is not None and ml > place.ml[1]:
        raise InvalidAnatomyError(
            f"{structure.name} of {ml:g} ml is larger than any; accepted: up to {place.ml[1]:g} ml"
        )
    return ml


def _check_bodies(request: AnatomyRequest) -> None:
    """Nothing, or the refusal of lesions without what they grow in, or too large for it."""
    vocabulary, rules = request.vocabulary, size_rules()
    room: dict[tuple[int, ...], float] = {}
    for id in sorted(request.lesions):
        name, hosts = vocabulary.name(id), healthy_ids(vocabulary, id)
        if set(hosts) <= request.absent:
            host = vocabulary.structure(id).host
            raise InvalidAnatomyError(f"{name} grows in {host}, which is to be absent; accepted: both, or neither")
        capacity = sum(_largest(host, request) for host in hosts)
        room[hosts] = room.get(hosts, 0.0) + request.sized.get(id, 0.0)
        if room[hosts] > rules.lesion_share * capacity:
            host = vocabulary.structure(id).host
            raise InvalidAnatomyError(
                f"{name}: lesions of {room[hosts]:.3g} ml do not fit into {host} of {capacity:.3g} ml; "
                f"accepted: up to {100 * rules.lesion_share:.0f} % of it"
            )


def _largest(id: int, request: AnatomyRequest) -> float:
    """The most (ml) that a structure can hold: what was asked, else the largest believable, else no bound."""
    if id in request.absent:
        return 0.0
    place = request.vocabulary.places_by_id.get(id)
    return request.sized.get(id, place.ml[1] if place is not None else float("inf"))


def check_region(request: AnatomyRequest, span: RegionSpan) -> None:
    """Nothing, or the refusal of structures that lie outside of what a span of regions shows.

    A structure lies in a region whose extent, between the far ends of its markers, its middle can be in.
    """
    vocabulary = request.vocabulary
    shown = [_extent(region.name.lower(), vocabulary) for region in span.regions]
    for id in sorted(request.wanted):
        structure, place = vocabulary.structure(id), vocabulary.places_by_id.get(id)
        if structure.region == "any" or structure.region in {r.name.lower() for r in span.regions}:
            continue
        if place is None or not any(place.z[0] < high and place.z[1] > low for low, high in shown):
            where = " to ".join(dict.fromkeys(region.name.lower() for region in (span.top, span.bottom)))
            raise InvalidAnatomyError(
                f"{structure.name} lies in the region {structure.region}, outside of {where}; "
                f"accepted: --region {structure.region}, or structures of {where}"
            )


def _extent(region: str, vocabulary: Vocabulary) -> tuple[float, float]:
    """From where to where (mm above the first lumbar vertebra) the markers of a region reach."""
    ids = (vocabulary.id(name) for name in vocabulary.regions[region].markers)
    places = [vocabulary.places_by_id[id] for id in ids if id in vocabulary.places_by_id]
    return min(p.z[0] - p.half[2] for p in places), max(p.z[1] + p.half[2] for p in places)


def check_view(request: AnatomyRequest, fov_mm: tuple[float, float, float]) -> None:
    """Nothing, or the refusal of organs that together do not fit into a field of view (mm)."""
    view_ml = fov_mm[0] * fov_mm[1] * fov_mm[2] / 1000
    total, most = sum(request.organs.values()), size_rules().view_share * view_ml
    if total > most:
        raise InvalidAnatomyError(
            f"the organs asked for have {total:.0f} ml together, the field of view {view_ml:.0f} ml; accepted: up to "
            f"{most:.0f} ml, or a larger --size or --spacing"
        )
