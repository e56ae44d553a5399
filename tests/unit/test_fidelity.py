import numpy as np
import pytest

from maisi.errors import InvalidGridError
from maisi.evaluation.fidelity import box_blur, fidelity
from maisi.space.grid import Grid
from maisi.space.similarity import psnr, ssim
from maisi.space.volume import Volume

GRID = Grid.centered((24, 20, 18), (2.0, 2.0, 2.0))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 300.0, GRID.shape).astype(np.float32)


def test_a_volume_equals_itself() -> None:
    found = fidelity(Volume(noise(0), GRID), Volume(noise(0), GRID))
    assert found.psnr_db == float("inf")
    assert found.ssim == pytest.approx(1.0)
    assert found.mae_hu == 0.0


def test_psnr_of_a_constant_offset_follows_from_its_definition() -> None:
    assert psnr(np.zeros((4, 4, 4)), np.full((4, 4, 4), 20.0)) == pytest.approx(40.0)


def test_values_beyond_the_window_do_not_count() -> None:
    a, b = np.full(GRID.shape, 1500.0, np.float32), np.full(GRID.shape, 3000.0, np.float32)
    assert fidelity(Volume(a, GRID), Volume(b, GRID)).mae_hu == 0.0


def test_a_blurred_volume_is_further_away_than_the_volume() -> None:
    volume = Volume(noise(1), GRID)
    found = fidelity(box_blur(volume), volume)
    assert found.mae_hu > 100
    assert found.ssim < 0.5


def test_another_grid_is_refused() -> None:
    other = Grid.centered(GRID.shape, (2.0, 2.0, 3.0))
    with pytest.raises(InvalidGridError, match=r"3\.0"):
        fidelity(Volume(noise(0), GRID), Volume(noise(0), other))


def test_ssim_falls_with_noise() -> None:
    a, b = noise(2), noise(3)
    assert ssim(a, a + 0.1 * b) > ssim(a, a + b)
