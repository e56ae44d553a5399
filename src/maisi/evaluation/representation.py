"""Whether the groups of what was generated are as large as was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import stats

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

LEVEL = 0.05
DRAWS = 9999

Verdict = Literal["differ", "no difference found", "too few to say"]


class GroupShare(Frozen):
    """A group in what was generated, and what was asked for."""

    patients: int
    share: float
    low: float = Field(description="Lower end of the 95 % interval of the share (Wilson).")
    high: float
    asked: float


class Representation(Frozen):
    """Shares of groups against those asked for; `p` is how often chance alone is as far off.

    It is by chi-square, of 9,999 random draws by the shares that were asked for (Monte Carlo).
    """

    asked_by: str
    groups: dict[str, GroupShare]
    p: float
    verdict: Verdict


@dataclass(frozen=True)
class Asked:
    """Shares of groups, and who asked for them."""

    by: str
    shares: Mapping[str, float]

    @classmethod
    def of_words(cls, words: Sequence[str], groups: Sequence[str]) -> "Asked":
        """Shares written as NAME=SHARE, which are divided by their sum.

        Raises `InvalidRequestError` for what is no share, for a group named twice, and for one group alone, unless its
        share is 1.
        """
        shares: dict[str, float] = {}
        for word in words:
            name, equals, value = word.rpartition("=")
            if name in shares:
                raise InvalidRequestError(f"group {name!r} is asked for twice; accepted: one share of each group")
            try:
                shares[name] = float(value)
            except ValueError:
                equals = ""
            if not equals or not 0 <= shares.get(name, -1) < np.inf:
                raise InvalidRequestError(f"{word!r} is no share of a group; accepted: NAME=SHARE, such as F=0.5")
        alike = {group.casefold(): group for group in groups}
        for name in (name for name in shares if name not in groups):
            close = get_close_matches(name.casefold(), alike, n=1)
            if close:
                raise InvalidRequestError(f"there is no group {name!r}; did you mean {alike[close[0]]!r}?")
        normed = _normed(shares)
        if len(shares) == 1 and normed != shares:
            raise InvalidRequestError(
                f"{words[0]} alone would ask for {name} and nobody else; accepted: a share of every group, or {name}=1"
            )
        return cls("shares given", normed)

    @classmethod
    def of_cases(cls, by: str, groups: Mapping[str, str], patients: Mapping[str, str]) -> "Asked":
        """The shares among the patients of cases, by the group of each."""
        return cls(by, _normed(counted(groups, patients)))


def _normed(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    if total <= 0:
        raise InvalidRequestError("no group was asked for; accepted: shares of which one at least is above 0")
    return {name: value / total for name, value in shares.items()}


def counted(groups: Mapping[str, str], patients: Mapping[str, str]) -> dict[str, float]:
    """How many patients each group has."""
    found: dict[str, set[str]] = {}
    for id, group in groups.items():
        found.setdefault(group, set()).add(patients[id])
    return {group: float(len(each)) for group, each in sorted(found.items())}


def representation(counts: Mapping[str, float], asked: Asked, least: int, rng: np.random.Generator) -> Representation:
    """The shares of groups among generated patients against those asked for.

    Where a group that was asked for should have had fewer than `least` patients, that nothing differs is not said.
    """
    names = list(dict.fromkeys([*counts, *asked.shares]))
    found = np.array([counts.get(name, 0.0) for name in names])
    shares, total = np.array([asked.shares.get(name, 0.0) for name in names]), int(found.sum())
    if not total:
        raise InvalidRequestError(
            f"no generated case is of a group by {asked.by}; accepted: a manifest whose cases have it among their "
            "attributes"
        )
    p = _p(found, shares, rng)
    verdict: Verdict = "no difference found"
    if p < LEVEL:
        verdict = "differ"
    elif (shares[shares > 0] * total).min() < least:
        verdict = "too few to say"
    return Representation(
        asked_by=asked.by,
        groups={
            name: GroupShare(patients=int(n), share=n / total, asked=share, **_wilson(n, total))
            for name, n, share in zip(names, found.tolist(), shares.tolist(), strict=True)
        },
        p=p,
        verdict=verdict,
    )


def _p(found: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> float:
    """How often as many patients drawn by the shares are as far from them as the ones found, by chi-square."""
    total = int(found.sum())

    def far(counts: np.ndarray) -> np.ndarray:
        expected = np.maximum(shares * total, 1e-9)  # what nobody asked for is far, however little of it there is
        return np.asarray((np.square(counts - expected) / expected).sum(-1))

    drawn = far(rng.multinomial(total, shares / shares.sum(), DRAWS))
    return float((1 + (drawn >= far(found) - 1e-9).sum()) / (1 + DRAWS))


def _wilson(count: float, total: int) -> dict[str, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    z = float(stats.norm.ppf(0.975))
    share, spread = count / total, z * z / total
    middle, reach = share + spread / 2, z * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    return {"low": float((middle - reach) / (1 + spread)), "high": float((middle + reach) / (1 + spread))}
