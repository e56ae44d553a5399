"""Lesions that networks draw badly, and noise that is no anatomy."""

import numpy as np
import torch
from scipy import ndimage

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.pipelines.blend import Drawn, deviation, grain
from maisi.pipelines.lesion_contrast import finding_of, lesions_to_tone, with_reference_contrast
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
LOBE, TUMOUR, AORTA = (VOCABULARY.id(name) for name in ("right lung lower lobe", "lung tumor", "aorta"))
GRID = Grid.centered((32, 32, 32), (2.0, 2.0, 2.0))
SPACING = GRID.spacing


def ball(radius: int) -> np.ndarray:
    away = np.indices(GRID.shape) - 15.5
    return np.asarray((away**2).sum(0) < radius**2)


def chest(mottle: float) -> tuple[Volume, LabelMap]:
    """A lung with a tumour, of 40 HU and so much mottle."""
    draws = np.random.default_rng(0).normal(size=GRID.shape)
    hu = np.where(ball(7), 40 + mottle * draws, -850.0)
    return Volume(hu.astype(np.float32), GRID), LabelMap(np.where(ball(7), TUMOUR, LOBE).astype(np.uint8), GRID)


def test_a_mottled_lesion_gets_the_level_and_the_texture_of_one() -> None:
    volume, labels = chest(mottle=300)
    toned, told = with_reference_contrast(volume, labels, (TUMOUR,), VOCABULARY)
    level, spread = VOCABULARY.structure(TUMOUR).hu or (0, 0)
    inside = toned.array[ball(5)]
    assert told[TUMOUR].made_by == "reference"
    assert told[TUMOUR].network_sd > 200
    assert abs(np.median(inside) - level) < spread
    assert deviation(inside) < spread
    away = ~ndimage.binary_dilation(ball(7), iterations=3)
    np.testing.assert_array_equal(toned.array[away], volume.array[away])
    assert "by the table" in finding_of("lung tumor", told[TUMOUR]).words


def test_a_lesion_that_is_drawn_well_keeps_its_bits() -> None:
    volume, labels = chest(mottle=5)
    toned, told = with_reference_contrast(volume, labels, (TUMOUR,), VOCABULARY)
    assert told[TUMOUR].made_by == "network"
    np.testing.assert_array_equal(toned.array, volume.array)


def test_only_lesions_that_the_bundle_does_not_claim_are_changed() -> None:
    _, labels = chest(mottle=5)
    assert lesions_to_tone(labels, VOCABULARY, ()) == (TUMOUR,)
    assert lesions_to_tone(labels, VOCABULARY, ("lung tumor",)) == ()
    organ = LabelMap(np.full(GRID.shape, AORTA, np.uint8), GRID)
    assert lesions_to_tone(organ, VOCABULARY, ()) == ()


def test_vessels_of_the_lung_are_no_noise_of_a_lesion() -> None:
    rng = np.random.default_rng(0)
    wall = np.indices(GRID.shape)[0] < 8
    vessels = ~wall & (rng.random(GRID.shape) < 0.05)
    ct = np.where(wall, 40.0, np.where(vessels, 0.0, -850.0)) + rng.normal(0, 10, GRID.shape)
    drawn = Drawn(ct, ndimage.gaussian_filter(ct, 1.5), resolution_mm=4.0)
    noise = grain(ct.astype(np.float32), drawn, SPACING, (-20.0, 100.0), torch.Generator().manual_seed(0))
    in_lung = ~ndimage.binary_dilation(wall, iterations=3)
    assert 5 < noise[in_lung].std() < 15
    assert abs(noise[vessels & in_lung].mean()) < 5
