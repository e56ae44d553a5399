"""Laws of space: what goes out comes back, and nothing appears that was not there."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.intensity import from_unit, to_unit
from maisi.space.label_files import read_labels
from maisi.space.resample import crop, fit, pad, resample, with_spacing
from maisi.space.volume import LabelMap, Volume

laws = settings(deadline=None, max_examples=40)

ORIENTATIONS = [
    nib.orientations.axcodes2ornt(codes)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*order)
]
sizes = st.tuples(*[st.integers(2, 9)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6.0, allow_nan=False)] * 3)
origins = st.tuples(*[st.floats(-500, 500, allow_nan=False)] * 3)


@st.composite
def volumes(draw) -> Volume:
    shape = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = rng.integers(-1024, 3072, shape).astype(np.float32)
    array[0, 0, 0], array[-1, -1, -1] = -1000, 60  # a CT holds air and tissue
    return Volume(array, Grid.axis_aligned(shape, draw(spacings), draw(origins)))


@st.composite
def label_maps(draw) -> LabelMap:
    shape = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = draw(st.sampled_from([1, 200, 255, 256, 65535]))
    array = rng.integers(0, top + 1, shape)
    array[0, 0, 0] = top
    dtype = np.uint8 if top < 256 else np.uint16
    return LabelMap(array.astype(dtype), Grid.axis_aligned(shape, draw(spacings), draw(origins)))


def assert_same(found, expected) -> None:
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.array.dtype == expected.array.dtype
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, rtol=1e-6, atol=1e-4)  # headers are float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("laws")


@laws
@given(volume=volumes(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_a_volume_written_reads_back_the_same(folder, volume, suffix):
    write_volume(volume, folder / f"ct{suffix}")
    assert_same(read_volume(folder / f"ct{suffix}"), volume)


@laws
@given(labels=label_maps(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_a_label_map_written_reads_back_the_same(folder, labels, suffix):
    write_labels(labels, folder / f"labels{suffix}")
    assert_same(read_labels(folder / f"labels{suffix}"), labels)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
@settings(deadline=None, max_examples=3)
@given(volume=volumes(), kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
def test_a_file_of_any_axis_order_and_direction_reads_as_the_same_ras_volume(folder, orientation, volume, kind):
    image = kind(volume.array.astype(np.int16), volume.grid.affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.io_orientation(np.eye(4)), orientation)
    )
    assert nib.aff2axcodes(turned.affine) == nib.orientations.ornt2axcodes(orientation)
    turned.to_filename(folder / "turned.nii")
    assert_same(read_volume(folder / "turned.nii"), volume)
    labels = kind(np.abs(np.asarray(turned.dataobj)).astype(np.uint16), turned.affine)
    labels.to_filename(folder / "turned_labels.nii.gz")
    expected = np.abs(volume.array).astype(np.uint16)
    assert_same(read_labels(folder / "turned_labels.nii.gz"), LabelMap(expected, volume.grid))


@laws
@given(
    x=st.one_of(volumes(), label_maps()),
    before=st.tuples(*[st.integers(0, 5)] * 3),
    after=st.tuples(*[st.integers(0, 5)] * 3),
)
def test_a_crop_undoes_a_pad(x, before, after):
    padded = pad(x, before, after)
    assert padded.array.shape == tuple(n + a + b for n, a, b in zip(x.array.shape, before, after, strict=True))
    assert_same(crop(padded, before, [b + n for b, n in zip(before, x.array.shape, strict=True)]), x)


@laws
@given(x=st.one_of(volumes(), label_maps()), shape=sizes)
def test_a_fit_has_the_size_asked_for_and_keeps_every_voxel_where_it_was(x, shape):
    fitted = fit(x, shape)
    assert fitted.grid.shape == shape
    assert_same(resample(x, fitted.grid), fitted)


@laws
@given(x=st.one_of(volumes(), label_maps()))
def test_resampling_onto_its_own_grid_changes_nothing(x):
    assert_same(resample(x, x.grid), x)
    nudged = Grid.axis_aligned(x.grid.shape, x.grid.spacing, np.array(x.grid.origin) + 1e-7)
    assert_same(resample(x, nudged), x)


@laws
@given(volume=volumes(), spacing=spacings, value=st.floats(-1024, 3071))
def test_resampling_keeps_a_constant_within_the_field_of_view(volume, spacing, value):
    constant = Volume(np.full(volume.grid.shape, value, np.float32), volume.grid)
    grid = with_spacing(volume.grid, spacing)
    inner = fit(constant, volume.grid.shape).grid  # same field of view: only rounding of the size may reach outside
    found = resample(constant, grid).array
    index = inner.index(grid.world(np.stack(np.indices(grid.shape), -1)))
    inside = ((index > -0.499) & (index < np.array(inner.shape) - 0.501)).all(-1)
    np.testing.assert_allclose(found[inside], value, rtol=1e-5, atol=1e-3)


@laws
@given(volume=volumes(), spacing=spacings)
def test_resampling_makes_no_value_beyond_those_that_were_there(volume, spacing):
    found = resample(volume, with_spacing(volume.grid, spacing)).array
    assert found.min() >= min(volume.array.min(), -1024) - 1e-2
    assert found.max() <= volume.array.max() + 1e-2


@laws
@given(labels=label_maps(), spacing=spacings)
def test_resampling_makes_no_new_label_id(labels, spacing):
    found = resample(labels, with_spacing(labels.grid, spacing))
    assert found.array.dtype == labels.array.dtype
    assert set(np.unique(found.array)) <= set(np.unique(labels.array)) | {0}


@laws
@given(volume=volumes())
def test_unit_intensities_come_back_inside_the_window(volume):
    inside = np.clip(volume.array, -1000, 1000)
    np.testing.assert_allclose(from_unit(to_unit(volume.array)), inside, atol=1e-3)
