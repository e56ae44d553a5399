"""Whether values look like HU, judged by where most of them lie and not by the smallest and the largest.

A CT in HU has air near -1000, lung around -850, fat near -100, soft tissue around 40 and bone from 200 up; a few voxels
of metal or of anything else say nothing. Values that are no HU have their peaks elsewhere: 1024 higher where a rescale
was left out, none below 0 in an MR or in a window stretched to 0..255.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Band(NamedTuple):
    """A range of HU, from `low` up to but without `high`."""

    low: float
    high: float


# Where tissues lie. The scale is defined by air = -1000 and water = 0; fat -120 to -60, muscle, blood and organs 0 to
# 100 (Kalender, Computed Tomography, 3rd ed., ch. 1), blood with contrast agent to about 250 in the venous phase.
AIR = Band(-1060, -900)  # with the noise of thin slices
TISSUE = Band(-200, 250)
DENSE = Band(250, 800)  # contrast agent, metal's streaks and most bone
RAW_TISSUE = Band(824, 1224)  # fat and soft tissue, 1000 or 1024 too high; in HU cortical bone, rarer than DENSE
SHIFTED_TISSUE = Band(-1224, -824)  # fat and soft tissue, 1024 too low; in HU air and inflated lung
FAT_AND_LESS = -60.0  # fat, lung and air lie below: 18 % or more of what was measured in each of 121 real scans
TISSUE_AND_MORE = -500.0  # what is denser than lung lies above
EMPTY_LUNG = -970.0  # no lung is as empty in its median, emphysema (below -950 in part) included
LIGHTEST_AIR = -870.0  # the lowest HU of a scan with air lie below, noise or none
BELOW_AIR = -1200.0  # nothing measured lies below: air at -1000 with the noise of thin slices ends above
ABOVE_METAL = 4000.0  # 12-bit scanners end at 3071; above are metal on an extended scale and what is no HU
ABOVE_BONE = 3100.0  # 12-bit scanners end at 3071; few voxels of metal alone lie above
OFFSETS = (8192, 32768, -8192, -32768)  # of scanners that count from 0, beside 1024 and 1000

_SAMPLE = 200_000  # voxels that are looked at, at most
_BLOCK = 64  # edge of the block whose neighbours are compared
_FEWEST = 800  # measured voxels from which a refusal can be sure
_ENDS = 0.001  # share of the voxels at either end that says nothing
_PILE = 0.005  # share of the voxels at one lowest value from which it was clamped or masked, not measured


@dataclass(frozen=True)
class Verdict:
    """Why values are no HU, or may be none: what they look like, and what would be taken."""

    looks_like: str
    remedy: str
    is_sure: bool = True  # to be refused; else to be warned of


class Values:
    """The voxels of an image in order, and what is asked of them."""

    def __init__(self, array: np.ndarray, padding: np.ndarray | None = None) -> None:
        step = max(1, int(np.ceil((array.size / _SAMPLE) ** (1 / 3))))
        sample = array[::step, ::step, ::step]
        scanned = sample.ravel() if padding is None else sample[~padding[::step, ::step, ::step]]
        self.ordered = np.sort(scanned)
        self.padded = 1 - scanned.size / sample.size  # share
        ends = int(scanned.size * _ENDS)
        self.low = float(self.ordered[ends]) if scanned.size else 0.0
        self.high = float(self.ordered[scanned.size - 1 - ends]) if scanned.size else 0.0
        middle = [n // 2 for n in array.shape]
        self._block = array[tuple(slice(max(0, m - _BLOCK // 2), m + _BLOCK // 2) for m in middle)]

    @cached_property
    def at_low(self) -> float:
        """Share of the voxels that hold the very lowest value."""
        return self._within(self.ordered, Band(self.low, np.nextafter(np.float32(self.low), np.float32(np.inf))))

    @cached_property
    def at_high(self) -> float:
        """Share of the voxels that hold the very highest value."""
        return self._within(self.ordered, Band(self.high, np.nextafter(np.float32(self.high), np.float32(np.inf))))

    @cached_property
    def measured(self) -> np.ndarray:
        """The voxels without those at one lowest value, which a scanner clamped or a tool masked."""
        first = int(np.searchsorted(self.ordered, self.low, "right")) if self.at_low >= _PILE else 0
        return self.ordered[first:]

    def share(self, low: float = -np.inf, high: float = np.inf) -> float:
        """Share of what was measured from `low` up to but without `high`."""
        return self._within(self.measured, Band(low, high))

    @cached_property
    def near_floor(self) -> float:
        """Share of the voxels in the lowest 3 % of the range: the dark background of an MR or a window."""
        top = float(self.ordered[int(0.995 * (self.ordered.size - 1))])
        return self._within(self.ordered, Band(-np.inf, self.low + 0.03 * (top - self.low) + 1e-6))

    @cached_property
    def near_zero(self) -> float:
        """Share of the voxels darker than brain is in HU: background, and not brain beside bright bone."""
        return self._within(self.ordered, Band(-np.inf, max(15.0, 0.005 * self.high)))

    @cached_property
    def darkest(self) -> float:
        """Share of the voxels in the lowest 6 % of the range: where air is, if it is there."""
        return self._within(self.ordered, Band(-np.inf, self.low + 0.06 * (self.high - self.low) + 1e-6))

    def peak(self, low: float, high: float) -> int:
        """The middle of the fullest 8 HU within a range, over all voxels."""
        counts, edges = np.histogram(self.ordered, np.arange(low, high + 8, 8))
        return round(float(edges[counts.argmax()])) + 4

    @cached_property
    def is_of_ids(self) -> bool:
        """Whether these are whole numbers from 0 that stay the same from voxel to voxel, as in a label map."""
        block = self._block
        if self.low < 0 or self.high > 65535 or not np.array_equal(block, np.rint(block)):
            return False
        here, beside = block[:-1], block[1:]
        apart = np.abs(here - beside)
        same = float((apart == 0)[here > self.low].mean()) if (here > self.low).any() else 0.0
        steps = apart[(here > self.low) & (beside > self.low) & (apart > 0)]
        is_stepwise = steps.size > 0 and float((steps <= 2).mean()) > 0.5  # measured values go up and down by little
        return same > 0.75 or (same > 0.4 and not is_stepwise)

    @staticmethod
    def _within(ordered: np.ndarray, place: Band) -> float:
        first, last = np.searchsorted(ordered, place)
        return float(last - first) / max(1, ordered.size)


def judge(array: np.ndarray, padding: np.ndarray | None = None) -> Verdict | None:
    """None where finite values `[x y z]` look like HU, else why not; `padding` marks voxels that were not scanned."""
    values = Values(array, padding)
    if not values.ordered.size:
        return Verdict("nothing but what was not scanned", "an image with content")
    if not values.measured.size:
        return Verdict("one value in every voxel that was scanned", "an image with content", is_sure=False)
    verdict = next((found for rule in _RULES if (found := rule(values)) is not None), None)
    if verdict is not None and values.measured.size < _FEWEST:
        return replace(verdict, is_sure=False)
    return verdict


def looks_like_hu(array: np.ndarray) -> bool:
    """Whether values have the peaks of a CT in HU, air and tissue, beyond doubt: as no MR has them."""
    values = Values(array)
    air = values.share(*AIR) + (values.at_low if AIR.low <= values.low < AIR.high else 0)
    return air > 0.05 and values.share(*TISSUE) > 0.1 and judge(array) is None


def _is_raised(values: Values) -> Verdict | None:
    tissue = values.share(*RAW_TISSUE)
    if values.share(high=FAT_AND_LESS) > 0.02 or tissue < 0.05:
        return None
    if tissue < 1.5 * values.share(*DENSE) or tissue < 0.6 * values.share(700):
        return None
    air = values.peak(-200, 600)
    return _shifted(values, _offset(values, air, 1), air, values.peak(*RAW_TISSUE))


def _is_lowered(values: Values) -> Verdict | None:
    dark = values.share(high=BELOW_AIR) + values.padded + (values.at_low if values.low < BELOW_AIR else 0)
    tissue, shifted, bone = (values.share(*TISSUE), values.share(*SHIFTED_TISSUE), values.share(SHIFTED_TISSUE.high))
    if dark < 0.02 or shifted < 0.02 or (tissue > 0.03 and tissue > min(0.5 * bone, 0.12 * shifted)):
        return None
    if values.share(high=2 * BELOW_AIR) > 0.02:
        return None  # darker than air could be after one offset
    air = values.peak(-2300, -1700)
    return _shifted(values, _offset(values, air, -1), air, values.peak(*SHIFTED_TISSUE))


def _is_far_off(values: Values) -> Verdict | None:
    for offset in OFFSETS:
        tissue = Band(offset + TISSUE.low, offset + TISSUE.high)
        if values.share(offset + BELOW_AIR, offset + ABOVE_METAL) > 0.98 and values.share(*tissue) > 0.1:
            return _shifted(values, offset, values.peak(offset - 1100, offset - 500), values.peak(*tissue))
    return None


def _offset(values: Values, air: int, sign: int) -> int:
    """1024, or 1000 where air lies by it as it should, or the -1024 that scanners clamp at; with a sign."""
    is_piled = values.at_low >= _PILE
    is_1000 = sign > 0 and round(values.low) == -24 if is_piled else abs(air - sign * 1000 + 1000) <= 10
    return sign * (1000 if is_1000 else 1024)


def _shifted(values: Values, offset: int, air: int, tissue: int) -> Verdict:
    name = "HU with the rescale left out" if offset > 0 else "HU that were rescaled twice"
    places = f"their peaks lie at {air} and {tissue}, where air is -1000 and tissue from -100 to 100"
    return Verdict(f"HU {'+' if offset > 0 else '-'} {abs(offset)} ({name}): {places}", f"--hu-offset {-offset}")


def _is_inverted(values: Values) -> Verdict | None:
    air, tissue, dark = values.share(*RAW_TISSUE), values.share(TISSUE.low, -20), values.share(*AIR)
    if air < 0.1 or air < 1.5 * values.share(*DENSE) or tissue < 0.05 or dark > 0.1 * air:
        return None
    if values.at_low >= _PILE and values.low < TISSUE_AND_MORE:
        return None
    return Verdict("HU turned upside down: what should be air is bright", "the values multiplied by -1")


def _is_wrapped(values: Values) -> Verdict | None:
    if values.share(61000, 65536) < 0.05 or values.share(4500, 61000) > 0.01:
        return None
    looks = "signed values read as unsigned: what is below 0 lies 65536 too high"
    return Verdict(looks, "the file written again with signed 16-bit values")


def _is_wrapped_in_8_bits(values: Values) -> Verdict | None:
    if (values.ordered[0], values.ordered[-1]) != (-128, 127):
        return None
    return Verdict("HU cut down to 8 bits, -128 to 127", "the file written again with signed 16-bit values")


def _is_normalised(values: Values) -> Verdict | None:
    if not -50 < values.low <= values.high < 50 or values.high - values.low > 10:
        return None
    return Verdict("values that were normalised", "--hu-window LOW HIGH, the HU of the lowest and the highest value")


def _is_label_map(values: Values) -> Verdict | None:
    if not values.is_of_ids:
        return None
    return Verdict("a label map: whole numbers, the same from voxel to voxel", "label maps where labels are asked for")


def _is_byte_window(values: Values) -> Verdict | None:
    bottom, top = float(values.ordered[0]), float(values.ordered[-1])
    has_floor = values.low <= 5 and values.near_floor >= 0.05
    if bottom < 0 or top > 255.5 or not (has_floor or (bottom, top) == (0, 255)):
        return None
    looks = "a window of HU stretched to 0..255, an MR, or organs cut out with 0 around them"
    remedy = "--hu-window LOW HIGH, the HU of 0 and of 255; --modality mr for an MR"
    return Verdict(looks, remedy)


def _is_without_negatives(values: Values) -> Verdict | None:
    if values.low < 0:
        return None
    bright = values.share(DENSE.low)
    has_floor = values.low <= 20 and min(values.near_floor, values.near_zero) >= 0.1 and bright > 0.05
    if has_floor or (values.low <= 50 and bright > 0.6):
        windowed = values.at_high > 0.003
        looks = "an MR, or a window of HU that was stretched" if not windowed else "a window of HU that was stretched"
        remedy = "--modality mr for an MR; --hu-window LOW HIGH, the HU of the lowest and the highest value, for a CT"
        return Verdict(f"{looks}: nothing below 0, where air and fat are", remedy)
    return None


def _is_out_of_range(values: Values) -> Verdict | None:
    below, above = values.share(high=BELOW_AIR), values.share(ABOVE_BONE)
    if below + above < 0.2 and above < 0.05:
        return None
    looks = f"another scale than HU: {below + above:.0%} of the voxels lie below {BELOW_AIR:g} or above {ABOVE_BONE:g}"
    return Verdict(looks, "--hu-window LOW HIGH, the HU of the lowest and the highest value")


def _is_clipped_below(values: Values) -> Verdict | None:
    if not AIR.high < values.low < 0 or values.at_low < 0.02:
        return None
    looks = f"HU clipped at {values.low:g}, which {values.at_low:.0%} of the voxels hold: air and lung are lost"
    remedy = "HU that go down to air, near -1000; --hu-window LOW HIGH where they were stretched"
    return Verdict(looks, remedy, is_sure=values.at_low >= 0.1)


def _is_air_elsewhere(values: Values) -> Verdict | None:
    """The darkest values hang together as air does, and lie where no air is."""
    if not LIGHTEST_AIR < values.low < 0 or values.darkest < 0.25:
        return None
    looks = f"HU that were stretched or shifted, or an MR: {values.darkest:.0%} of the voxels lie near {values.low:g}, "
    looks += "as air does near -1000, and none are darker"
    remedy = "--hu-window LOW HIGH, the HU of the lowest and the highest value; --hu-offset; --modality mr for an MR"
    is_lung = values.low < -700  # a crop inside a lung is as even
    return Verdict(looks, remedy, is_sure=values.darkest >= (0.4 if is_lung else 0.32))


def _is_only_air(values: Values) -> Verdict | None:
    if values.share(TISSUE_AND_MORE) > 0.001:
        return None
    looks = f"air or lung alone, with nothing above {TISSUE_AND_MORE:g}, or HU - 1024"
    is_air = float(np.median(values.ordered)) < EMPTY_LUNG
    return Verdict(looks, "an image with some tissue; --hu-offset 1024 for HU - 1024", is_sure=is_air)


def _is_without_air_and_fat(values: Values) -> Verdict | None:
    if values.share(high=FAT_AND_LESS) > 0.005 or (values.at_low >= _PILE and values.low < AIR.high):
        return None
    looks = "a part of a CT without air and fat, or something that is no CT"
    return Verdict(looks, "--hu-offset, --hu-window or --modality mr where these are no HU", is_sure=False)


def _is_without_tissue(values: Values) -> Verdict | None:
    if values.share(*TISSUE) > 0.1 * values.share(TISSUE_AND_MORE):
        return None
    looks = "a CT whose HU are shifted or stretched: hardly a voxel is fat or soft tissue"
    return Verdict(looks, "--hu-offset or --hu-window where these are no HU", is_sure=False)


def _is_clipped_above(values: Values) -> Verdict | None:
    least = max(0.003, 2 * values.share(values.high - 4, values.high), 10 / values.ordered.size)
    if values.high < values.ordered[-1] or values.high > 1500 or values.at_high < least:
        return None
    looks = f"HU clipped at {values.high:g}, which {values.at_high:.1%} of the voxels hold: what is denser is lost"
    return Verdict(looks, "HU that go up to bone and metal", is_sure=False)


_RULES: tuple[Callable[[Values], Verdict | None], ...] = (
    _is_raised,
    _is_lowered,
    _is_inverted,
    _is_wrapped,
    _is_wrapped_in_8_bits,
    _is_far_off,
    _is_label_map,
    _is_normalised,
    _is_byte_window,
    _is_without_negatives,
    _is_out_of_range,
    _is_clipped_below,
    _is_air_elsewhere,
    _is_only_air,
    _is_without_air_and_fat,
    _is_without_tissue,
    _is_clipped_above,
)
