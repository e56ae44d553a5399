"""The catalogue of the paper's data: what each network was trained on, where it is, and what its labels become here."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, model_validator

from maisi.anatomy.numberings import WITHOUT_PLACE, Numbering, find_numbering, meanings
from maisi.anatomy.vocabulary import BACKGROUND, load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen, Modality

Network = Literal["autoencoder", "diffusion", "controlnet"]
NETWORKS: tuple[Network, ...] = get_args(Network)


class Counts(Frozen):
    """Numbers of volumes, where the paper divides them for training and validation, else in all."""

    training: int | None = None
    validation: int | None = None
    volumes: int | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Counts":
        divided = (self.training is not None, self.validation is not None)
        if any(divided) == (self.volumes is not None) or any(divided) != all(divided):
            raise ValueError("counts are either training and validation, or volumes")
        return self

    @property
    def all(self) -> int:
        """Volumes in all."""
        return (self.training or 0) + (self.validation or 0) if self.volumes is None else self.volumes

    @property
    def words(self) -> str:
        """The counts as they are printed: 104 + 0, or 88."""
        return str(self.volumes) if self.volumes is not None else f"{self.training} + {self.validation}"


class Row(Counts):
    """A row of one of the paper's tables, with the name that stands there."""

    printed: str
    is_copy: bool = False  # the same scans as another row, skull-stripped
    testing_only: bool = False


class Dataset(Frozen):
    """A data set: how much of it went into each network, where it is, and how it is read."""

    title: str
    shows: str
    rows: dict[Network, tuple[Row, ...]]
    modality: Modality = "ct"
    licence: str | None = None
    where: str | None = None
    doi: str | None = None
    layout: str | None = None  # of `maisi prepare --layout`
    as_downloaded: bool = False  # whether that layout finds scans and labels without a datalist
    numbering: str | None = None
    labels: tuple[str, ...] = ()  # names, where no numbering has them
    notes: tuple[str, ...] = ()


class Table(Frozen):
    """What the paper prints below a table, and says of it in its text."""

    table: str
    printed: dict[Modality, Counts]
    datasets: int | None = None
    split: Counts | None = None


class Catalogue(Frozen):
    """All data sets of the paper, and what it says of its tables."""

    source: str
    networks: dict[Network, Table]
    datasets: dict[str, Dataset] = Field(min_length=1)

    def dataset(self, name: str) -> Dataset:
        """The data set of that name, or of one that a table prints; raises InvalidRequestError."""
        names = {key.lower(): key for key in self.datasets}
        for key, dataset in self.datasets.items():
            names |= {row.printed.lower(): key for rows in dataset.rows.values() for row in rows}
        if name.lower() in names:
            return self.datasets[names[name.lower()]]
        close = get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {names[close[0]]}? " if close else ""
        raise InvalidRequestError(f"no data set {name!r}; {hint}accepted: {', '.join(self.datasets)}")

    def rows(self, network: Network, modality: Modality | None = None) -> tuple[Row, ...]:
        """The rows of a network's table, of one modality where it is said."""
        kept = (each for each in self.datasets.values() if modality in (None, each.modality))
        return tuple(row for each in kept for row in each.rows.get(network, ()))

    def remarks(self, network: Network) -> tuple[str, ...]:
        """Sentences about a table, from its rows: whether they add up to what is printed, and what that hides."""
        table = self.networks[network]
        said = []
        for modality, printed in table.printed.items():
            found, name = total(self.rows(network, modality)), modality.upper()
            agrees = found == printed
            verb = "add up to the printed total" if agrees else f"add up to {found.words}, and the printed total is"
            said.append(f"{table.table}: the rows of {name} {verb}{',' if agrees else ''} {printed.words}")
            copies = [row for row in self.rows(network, modality) if row.is_copy]
            if copies:
                own = total(row for row in self.rows(network, modality) if not row.is_copy)
                said.append(
                    f"{table.table}: {total(copies).words} of {name} are skull-stripped copies of other rows; "
                    f"{own.words} are different scans"
                )
        testing = [row for row in self.rows(network) if row.testing_only]
        if testing:
            rest = total(self.rows(network)).all - total(testing).all
            said.append(
                f"{table.table}: {', '.join(row.printed for row in testing)} counts {total(testing).all} of the total; "
                f"{rest} volumes are left to train on"
            )
        return (*said, *self._against_diffusion(network))

    def _against_diffusion(self, network: Network) -> tuple[str, ...]:
        """Data sets of which the ControlNet saw more volumes than the diffusion model that it steers."""
        if network != "controlnet":
            return ()
        more = []
        for name, dataset in self.datasets.items():
            steered, base = (total(dataset.rows.get(each, ())).all for each in ("controlnet", "diffusion"))
            if steered > base:
                more.append(f"{name} ({steered}, {base})")
        return (f"{self.networks[network].table}: more volumes than in S2 of {', '.join(more)}",) if more else ()


def total(rows: Iterable[Counts]) -> Counts:
    """The sum of counts, divided for training and validation where all of them are."""
    rows = tuple(rows)
    if rows and all(row.volumes is None for row in rows):
        return Counts(
            training=sum(row.training or 0 for row in rows), validation=sum(row.validation or 0 for row in rows)
        )
    return Counts(volumes=sum(row.all for row in rows))


def becomes(dataset: Dataset) -> tuple[tuple[int | None, str, str], ...]:
    """Id (where it is known), name and what it becomes here of each label of a data set."""
    vocabulary = load_vocabulary()
    if dataset.numbering is not None:
        numbering = find_numbering(dataset.numbering, vocabulary)
    else:
        numbering = Numbering(name="", title=dataset.title, names=dict(enumerate(dataset.labels, start=1)))
    found = []
    for id, ours in meanings(numbering, vocabulary).items():
        if ours is None or ours == BACKGROUND:
            words = "unknown" if ours is None else "left out"
        else:
            words = "no place" if ours == WITHOUT_PLACE else vocabulary.name(ours)
        found.append((id if dataset.numbering is not None else None, numbering.names[id], words))
    return tuple(found)


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """The catalogue that ships with the package."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.data").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.model_validate(yaml.load(text, Loader=loader))
