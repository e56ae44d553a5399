"""Features of planes and distances between sets of them."""

import numpy as np
import pytest
import torch
from scipy import linalg

from maisi.errors import InvalidRequestError
from maisi.evaluation.distances import by_planes, frechet, kernel_distance, standardised
from maisi.evaluation.features import PLANES, PROTOCOLS, PlaneProtocol, Scattering, plane_features, volume_planes
from maisi.evaluation.fidelity import box_blur
from maisi.space.grid import Grid
from maisi.space.volume import Volume

rng = np.random.default_rng(0)


def volume(seed: int, noise_hu: float = 60.0) -> Volume:
    """A ball of soft tissue with a denser core in air."""
    grid = Grid.centered((32, 32, 32), (4, 4, 4))
    radius = np.linalg.norm(np.moveaxis(np.indices(grid.shape), 0, -1) - 15.5, axis=-1)
    hu = np.select([radius < 5, radius < 13], [400.0, 40.0], -1000.0)
    return Volume((hu + np.random.default_rng(seed).normal(0, noise_hu, grid.shape)).astype(np.float32), grid)


def test_the_frechet_distance_of_equal_covariances_is_that_of_the_means() -> None:
    a = rng.normal(size=(50, 4))
    assert frechet(a, a + np.array([3.0, 0, 4.0, 0])) == pytest.approx(25.0, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)


def test_the_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-8)


def test_one_feature_is_a_distance_of_means_and_deviations() -> None:
    a, b = rng.normal(0, 1, (500, 1)), rng.normal(2, 3, (500, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_the_kernel_distance_is_the_mean_over_pairs() -> None:
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(float(sum(within) - 2 * between), rel=1e-9)


@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((4, 2)), np.zeros(3)])
def test_sets_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    for distance in (frechet, kernel_distance):
        with pytest.raises(InvalidRequestError, match="at least two features of one length"):
            distance(np.zeros((4, 3)), other)


def test_planes_without_body_are_left_out_and_all_have_one_size() -> None:
    planes = dict(volume_planes(volume(0), PlaneProtocol(every=1, size=48)))
    assert tuple(planes) == PLANES
    for images in planes.values():
        assert images.shape[1:] == (1, 48, 48)
        assert 20 <= len(images) < 32  # the ball is 26 planes wide
        assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_the_papers_planes_are_the_middle_of_a_cube_of_air_around_the_volume_stretched_by_orientation() -> None:
    paper = PROTOCOLS["paper"]
    assert (paper.spacing_mm, paper.size, paper.centre, paper.every, paper.standardised) == (1.0, 512, 0.4, 1, False)
    hu = np.random.default_rng(0).uniform(-1500, 500, (20, 31, 80)).astype(np.float32)
    cube = np.full((64, 64, 64), -1000.0)
    cube[22:42, 16:47] = hu[:, :, 8:72]
    unit = (np.clip(cube, -1000, 1000) + 1000) / 2000
    planes = dict(volume_planes(Volume(hu, Grid.centered(hu.shape, (1, 1, 1))), paper.model_copy(update={"size": 64})))
    assert tuple(planes) == PLANES
    for axis, images in enumerate(planes.values()):
        middle = np.moveaxis(unit, axis, 0)[19:44]  # 30 % to 70 % of 64, planes without body among them
        np.testing.assert_allclose(images[:, 0], middle / middle.max(), atol=1e-6)


def test_the_papers_planes_are_of_1_mm() -> None:
    protocol = PROTOCOLS["paper"].model_copy(update={"size": 64})
    sagittal, coronal, axial = (images[:, 0] for _, images in volume_planes(volume(0, 0.0), protocol))
    assert sagittal.shape == coronal.shape == axial.shape == (25, 64, 64)
    shares = [float((images[12] > 1200 / 1400).double().mean()) for images in (sagittal, coronal, axial)]
    assert shares == pytest.approx([np.pi * 19**2 / 64**2] * 3, abs=0.02)  # the core, voxels within 20 mm


def test_constant_planes_stay_zero_when_they_are_stretched() -> None:
    protocol = PROTOCOLS["paper"].model_copy(update={"size": 16})
    air = Volume(np.full((16, 16, 16), -1000, np.float32), Grid.centered((16, 16, 16), (1, 1, 1)))
    assert all(len(images) and not images.any() for _, images in volume_planes(air, protocol))


def test_scattering_does_not_answer_to_a_constant_and_not_to_a_shift() -> None:
    flat, image = torch.full((1, 1, 48, 48), 0.5), torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    features = Scattering()
    num_waves = 3 * 4
    assert torch.all(features(flat)[:, 1 : 1 + num_waves] < np.log(2e-4))
    torch.testing.assert_close(features(torch.roll(image, (5, 9), (-2, -1))), features(image), rtol=1e-4, atol=1e-4)


def test_blur_is_further_away_than_another_draw() -> None:
    sets = [
        plane_features(volumes, Scattering())
        for volumes in ([volume(0), volume(1)], [volume(2), volume(3)], [box_blur(volume(0)), box_blur(volume(1))])
    ]
    here, again, blurred = standardised(*sets)
    assert by_planes(here, again)["mean"] < 0.1 * by_planes(here, blurred)["mean"]
    assert set(by_planes(here, again)) == {*PLANES, "mean"}
