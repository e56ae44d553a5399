"""Sets of volumes compared from files, in parts and in resamplings."""

from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from maisi.errors import InvalidRequestError
from maisi.evaluation import stored
from maisi.evaluation.comparison import Comparison
from maisi.evaluation.distances import frechet, frechet_of, kernel_distance, spread
from maisi.evaluation.features import PLANES, PlaneProtocol
from maisi.evaluation.images import ImageProtocol, MeasuredSet, compare_images
from maisi.evaluation.sets import NamedImage
from maisi.evaluation.stored import Scaling, StoredPlanes, write_features


def planes_in(folder: Path, count: int, centre: float = 0.0, scale: float = 1.0, seed: int = 0) -> StoredPlanes:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(count):
        features = {name: rng.normal(centre, scale, (20 + k, 4)) for name in PLANES}
        write_features(folder / f"{k}.npz", features, np.array([1.0, 1.0, 2.0, 8, 8, 4]))
    return StoredPlanes([folder / f"{k}.npz" for k in range(count)])


def joined(planes: StoredPlanes, name: str, weights: np.ndarray) -> np.ndarray:
    return np.concatenate([planes[k][name] for k, times in enumerate(weights) for _ in range(times)])


def test_the_distance_of_any_resampling_is_that_of_the_planes_joined(tmp_path: Path) -> None:
    a, b = planes_in(tmp_path / "a", 3), planes_in(tmp_path / "b", 4, centre=0.5, seed=1)
    sets, weights = Comparison(a, b, np.random.default_rng(0)), (np.array([2, 0, 1]), np.array([1, 3, 0, 0]))
    found = sets.frechet(*weights)
    for name in PLANES:
        expected = frechet(joined(a, name, weights[0]), joined(b, name, weights[1]))
        assert found[name] == pytest.approx(expected, rel=1e-9)
    kernels = [kernel_distance(joined(a, name, weights[0]), joined(b, name, weights[1])) for name in PLANES]
    assert sets.kernel(*weights) == pytest.approx(float(np.mean(kernels)), rel=1e-9)


def test_the_covariance_grows_part_by_part_without_losing_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maisi.evaluation.distances.MOST_ROWS", 10)
    rng = np.random.default_rng(0)
    parts = [1e6 + rng.normal(size=(7, 3)) @ rng.normal(size=(3, 3)) for _ in range(9)]
    whole, found = np.concatenate(parts), spread(parts)
    assert found.factor.shape == (3, 3)
    np.testing.assert_allclose(found.factor.T @ found.factor, np.cov(whole, rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)


def test_fewer_features_than_their_length_have_the_distance_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 12)), rng.normal(size=(6, 12)) + 1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(linalg.sqrtm(first).real @ second @ linalg.sqrtm(first).real).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_of(spread([a]), spread([b])) == pytest.approx(float(expected), rel=1e-6)


def test_precision_and_recall_tell_what_is_missing_from_what_is_wrong(tmp_path: Path) -> None:
    wide, narrow = planes_in(tmp_path / "wide", 8), planes_in(tmp_path / "narrow", 8, scale=0.2, seed=1)
    far = planes_in(tmp_path / "far", 8, centre=50, seed=2)
    for made, precision, recall in ((narrow, (0.95, 1.0), (0.0, 0.2)), (far, (0.0, 0.0), (0.0, 0.0))):
        sets = Comparison(wide, made, np.random.default_rng(0))
        for side, of, (low, high) in (("precision", 1, precision), ("recall", 0, recall)):
            share = sets.hits(side, *sets.everything).share(sets.everything[of])
            assert low <= share <= high


def test_a_part_of_a_set_is_a_manifold_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    rng = np.random.default_rng(0)
    for k, centre in enumerate((0.0, 0.0, 30.0, 30.0)):
        features = {name: rng.normal(centre, 1, (40, 3)) for name in PLANES}
        write_features(tmp_path / "both" / f"{k}.npz", features, np.ones(6))
    planes = StoredPlanes([tmp_path / "both" / f"{k}.npz" for k in range(4)])
    sets = Comparison(planes, planes, rng)
    near, far = np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])
    assert sets.hits("precision", near, far).share(far) == 0.0
    assert sets.hits("precision", near, near).share(near) == 1.0


def test_memory_holds_no_more_than_its_share_however_many_volumes_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = planes_in(tmp_path / "a", 12)
    one = planes[0]["axial"].nbytes
    monkeypatch.setattr(stored, "KEPT_BYTES", 3 * one)
    again = StoredPlanes(planes.paths)
    total = sum(len(again[k][name]) for k in range(12) for name in PLANES)
    assert total == 3 * sum(20 + k for k in range(12))
    assert sum(each.nbytes for each in again._kept.values()) <= 3 * one


def test_features_that_never_change_over_real_planes_are_left_out(tmp_path: Path) -> None:
    features = {name: np.random.default_rng(k).normal(size=(9, 3)) for k, name in enumerate(PLANES)}
    for each in features.values():
        each[:, 1] = 0.25
    write_features(tmp_path / "0.npz", features, np.ones(6))
    planes = StoredPlanes([tmp_path / "0.npz"])
    scaling = Scaling.of(planes)
    assert scaling.varies.tolist() == [True, False, True]
    found = np.concatenate([planes.scaled(scaling)[0][name] for name in PLANES])
    np.testing.assert_allclose(found.std(0), 1.0, rtol=1e-9)
    for each in features.values():
        each[:] = 2.0
    write_features(tmp_path / "1.npz", features, np.ones(6))
    with pytest.raises(InvalidRequestError, match="all 3 features are the same for every real plane"):
        Scaling.of(StoredPlanes([tmp_path / "1.npz"]))


def test_where_synthetic_volumes_are_few_halves_are_as_small_and_it_is_said(tmp_path: Path) -> None:
    folders = {"real": (12, 0.0), "made": (3, 0.0)}
    sets = {}
    for seed, (name, (count, centre)) in enumerate(folders.items()):
        images = [NamedImage(f"{name}{k}", f"{name}{k}", tmp_path / name / f"{k}", Path) for k in range(count)]
        sets[name] = MeasuredSet(images, planes_in(tmp_path / name, count, centre, seed=seed))
    protocol = ImageProtocol("own", "own", PlaneProtocol(), draws=1)
    report = compare_images(sets["real"], sets["made"], protocol)
    assert "3 synthetic volumes are fewer than a half of the real ones" in " ".join(report.notes)
    assert not [note for note in report.notes if "in both sets" in note]
    same = compare_images(sets["real"], sets["real"], protocol)
    assert "12 volumes are the same files in both sets" in same.notes
    low, high = (getattr(report.halves.frechet_mean, end) for end in ("low", "high"))
    assert low <= report.matched.frechet_mean.value <= high  # of one distribution, and as many of each
