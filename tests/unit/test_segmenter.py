"""The segmenter: its network, partial labels, training that resumes, windows, and the command."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maisi.anatomy.segmented import admissible, class_map, segmented_classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, load_bundle, save_bundle
from maisi.cli import main
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.compute.machine import fill_defaults
from maisi.data.labelled import LabelledArrays, LabelledSource, NamedLabelled, labelled_arrays, labelled_source
from maisi.errors import (
    InvalidBundleError,
    InvalidConfigError,
    InvalidGridError,
    InvalidRequestError,
    InvalidVolumeError,
)
from maisi.networks.segmenter import SegmentationUNet, SegmenterConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.prepare.segmenter import segmented
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.pipelines.segment import NetworkSegmenter, most_likely, probabilities, segmenter_of
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.resample import resample
from maisi.space.volume import LabelMap, Volume
from maisi.training.augment import Deformation, deformed
from maisi.training.loop import LoopConfig
from maisi.training.optimization import Optimization
from maisi.training.segmenter import SegmenterTraining, segmentation_losses, train_segmenter

VOCABULARY = load_vocabulary()
CLASSES = {
    "body": ("body", "fat", "air"),
    "liver": (),
    "left lung": ("left lung upper lobe", "left lung lower lobe"),
    "right lung": ("right lung upper lobe", "right lung middle lobe", "right lung lower lobe"),
    "vertebrae": ("vertebrae",),
    "skeleton": ("bones",),
}
BODY, LIVER, LEFT_LUNG, RIGHT_LUNG, VERTEBRAE, SKELETON = range(1, 7)
STILL = Deformation(probability=0.0)


def classes() -> tuple:
    return segmented_classes(CLASSES, VOCABULARY)


def admitted(structure: str, looked_for: tuple[str, ...]) -> set[int]:
    table = admissible(classes(), [VOCABULARY.id(name) for name in looked_for], VOCABULARY)
    return set(np.flatnonzero(table[VOCABULARY.id(structure)]).tolist())


def recipe(steps: int = 4, **more: object) -> SegmenterTraining:
    return SegmenterTraining.model_validate(
        {
            "classes": CLASSES,
            "channels": (4, 8),
            "num_res_blocks": (1, 1),
            "patch": (16, 16, 16),
            "loop": LoopConfig(num_steps=steps, save_every=2, validate_every=2),
            "optimization": Optimization(learning_rate=5e-3, warmup=0, precision="float32", average_decay=0.9),
            **more,
        }
    )


def scan(seed: int, shape: tuple[int, int, int] = (20, 20, 20)) -> tuple[Volume, LabelMap]:
    """A block of soft tissue with a bright liver in it, at 4 mm."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.uint8)
    ids[2:-2, 2:-2, :] = VOCABULARY.id("body")
    x, y, z = rng.integers(4, 8, 3)
    ids[x : x + 8, y : y + 8, z : z + 8] = VOCABULARY.id("liver")
    hu = np.select([ids == 0, ids == VOCABULARY.id("body")], [-1000.0, 30.0], 160.0).astype(np.float32)
    grid = Grid.centered(shape, (4.0, 4.0, 4.0))
    return Volume(hu + rng.normal(0, 10, shape).astype(np.float32), grid), LabelMap(ids, grid)


def arrays(seed: int) -> LabelledArrays:
    volume, labels = scan(seed)
    return labelled_arrays(volume, labels, classes(), 4.0, [VOCABULARY.id("liver")], VOCABULARY)


def source(count: int = 3) -> LabelledSource:
    return labelled_source([(1.0, [NamedLabelled(f"case {k}", partial(arrays, k)) for k in range(count)])])


# A start --------------------------------------------------------------------------------------------------------------


def test_a_segmenter_goes_on_from_another_on_larger_patches(tmp_path: Path) -> None:
    first = train_segmenter(recipe(2), source(), tmp_path / "first")
    hardly = Optimization(learning_rate=1e-9, warmup=0, precision="float32")
    on = recipe(1, patch=(24, 24, 24), optimization=hardly)
    again = train_segmenter(on, source(), tmp_path / "on", start=first)
    assert again.config.window == (24, 24, 24)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=1e-6)


def test_a_start_of_other_channels_or_classes_is_refused(tmp_path: Path) -> None:
    first = train_segmenter(recipe(1), source(), tmp_path / "first")
    with pytest.raises(InvalidRequestError, match="other channels than the recipe"):
        train_segmenter(recipe(1, channels=(8, 8)), source(), tmp_path / "on", start=first)


# Partial labels -------------------------------------------------------------------------------------------------------


def test_a_class_that_nobody_looked_for_is_no_background() -> None:
    assert admitted("body", ("liver",)) == {BODY, VERTEBRAE, SKELETON}
    assert admitted("body", ("liver", "vertebrae L1", "sternum")) == {BODY}
    assert admitted("liver", ("liver",)) == {LIVER}


def test_coarse_tissues_may_be_any_of_their_parts() -> None:
    assert admitted("skeleton", ("liver",)) == {VERTEBRAE, SKELETON}
    assert admitted("skeleton", ("vertebrae L1", "sternum")) == {SKELETON}
    assert admitted("lungs", ("liver",)) == {LEFT_LUNG, RIGHT_LUNG}
    assert admitted("fat", ()) == {BODY}


@given(st.sets(st.sampled_from(VOCABULARY.ids)))
def test_whatever_was_looked_for_every_id_may_be_some_class_and_named_ones_are_theirs(sought: set[int]) -> None:
    table = admissible(classes(), sought, VOCABULARY)
    assert table[[0, *VOCABULARY.ids]].any(axis=1).all()
    for channel, each in enumerate(classes(), start=1):
        assert table[list(each.ids), channel].all()
    assert not table[1:, 0].any()


def test_structures_of_no_class_are_the_rest_and_lesions_what_they_grow_in() -> None:
    assert admitted("spleen", ("liver",)) == {BODY}
    assert admitted("sternum", ("liver",)) == {SKELETON}
    assert admitted("hepatic tumor", ("liver",)) == {LIVER}
    assert admitted("target volume PTV70", ("liver",)) == set(range(1, 7))


def test_classes_are_written_as_what_they_are_or_are_part_of() -> None:
    written = {each.name: VOCABULARY.name(each.written_as) for each in classes()}
    assert written["left lung"] == "lungs"
    assert written["vertebrae"] == "skeleton"
    assert written["liver"] == "liver"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"liver": ()}, "rest of the body"),
        ({"body": (), "livr": ()}, "did you mean"),
        ({"body": (), "liver": (), "again": ("liver",)}, "no structure that no other class has"),
    ],
)
def test_impossible_classes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises((InvalidConfigError, ValueError), match=message):
        segmented_classes(wrong, VOCABULARY)


def test_the_loss_does_not_punish_what_may_be_there() -> None:
    """In a map of the liver alone, a vertebra found in soft tissue costs nothing, one found in the liver does."""
    table = torch.from_numpy(admissible(classes(), [VOCABULARY.id("liver")], VOCABULARY))[None]
    ids = torch.full((1, 4, 4, 4), VOCABULARY.id("body"))
    ids[0, :2] = VOCABULARY.id("liver")

    def loss(in_liver: int, in_body: int) -> float:
        scores = torch.zeros((1, 7, 4, 4, 4))
        scores[0, in_liver, :2] = scores[0, in_body, 2:] = 12.0
        return float(segmentation_losses(scores, ids, table)["loss"])

    assert loss(LIVER, BODY) < 0.01
    assert loss(LIVER, VERTEBRAE) < 0.01
    assert loss(LIVER, LIVER) > 1.0
    assert loss(VERTEBRAE, BODY) > 1.0


# The network and its training -----------------------------------------------------------------------------------------


def test_the_network_scores_every_voxel_and_refuses_uneven_sizes() -> None:
    network = SegmentationUNet(recipe().network(VOCABULARY))
    assert network(torch.zeros((2, 1, 8, 12, 16))).shape == (2, 7, 8, 12, 16)
    with pytest.raises(InvalidGridError, match="multiple of 2"):
        network(torch.zeros((1, 1, 8, 9, 16)))


def test_what_lies_outside_the_windows_does_not_matter() -> None:
    network = SegmentationUNet(recipe().network(VOCABULARY))
    hu = torch.full((1, 1, 8, 8, 8), -1000.0)
    assert torch.equal(network(hu), network(hu - 2000))


def test_a_patch_that_is_not_changed_is_cut_out_as_it_is() -> None:
    case = arrays(0)
    hu, ids = deformed(case, (20, 20, 20), STILL, np.random.default_rng(0))
    assert np.array_equal(hu, case.hu)
    assert np.array_equal(ids, case.ids)
    larger, _ = deformed(case, (24, 20, 20), STILL, np.random.default_rng(0))
    assert (larger[:2] == -1024).all()


def test_labels_are_moved_with_their_volume() -> None:
    case = arrays(0)
    settings = Deformation(probability=1.0, stretch=0, shift_hu=0, noise_hu=0, blur_voxels=0)
    hu, ids = deformed(case, (16, 16, 16), settings, np.random.default_rng(3))
    again = deformed(case, (16, 16, 16), settings, np.random.default_rng(3))
    assert np.array_equal(hu, again[0])
    assert hu[ids == VOCABULARY.id("liver")].mean() > 120
    assert abs(hu[ids == VOCABULARY.id("body")].mean()) < 80


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = train_segmenter(recipe(), source(), tmp_path / "whole", validation=source(1))
    train_segmenter(recipe(), source(), tmp_path / "parts", until=2, validation=source(1))
    parts = train_segmenter(recipe(), source(), tmp_path / "parts", validation=source(1))
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("split") == "validation"] == [2, 4]
    assert list((tmp_path / "whole" / "pictures").glob("*.png"))


def test_it_learns_a_bright_block(tmp_path: Path) -> None:
    network = train_segmenter(recipe(50, deformation=STILL), source(), tmp_path)
    volume, labels = scan(9)
    segmenter = NetworkSegmenter(network.eval())
    found, truth = segmenter(volume).array == VOCABULARY.id("liver"), labels.array == VOCABULARY.id("liver")
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7


# Windows --------------------------------------------------------------------------------------------------------------


def network() -> SegmentationUNet:
    torch.manual_seed(0)
    return SegmentationUNet(recipe().network(VOCABULARY)).eval()


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 40, 17), (30, 5, 16)])
def test_any_size_is_covered_by_windows(shape: tuple[int, int, int]) -> None:
    found = probabilities(network(), np.random.default_rng(0).normal(0, 300, shape))
    assert found.shape == (7, *shape)
    assert torch.allclose(found.sum(0), torch.ones(shape), atol=1e-5)


def test_a_finer_volume_is_told_on_its_own_grid_as_the_coarser_one() -> None:
    segmenter, (volume, _) = NetworkSegmenter(network()), scan(0)
    fine = resample(volume, Grid.centered((40, 40, 40), (2.0, 2.0, 2.0)))
    coarse, found = segmenter.classes(volume), segmenter.classes(fine)
    assert found.grid == fine.grid
    assert (resample(coarse, fine.grid).array == found.array).mean() > 0.7


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (1.5, 2.0, 5.0)])
def test_probabilities_are_interpolated_linearly_to_another_grid(spacing: tuple[float, float, float]) -> None:
    source, target = Grid.centered((7, 6, 9), (4.0, 4.0, 4.0)), Grid.centered((17, 11, 7), spacing)
    found = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(5), (7, 6, 9)).astype(np.float32)).movedim(
        -1, 0
    )
    index = source.index(target.world(np.indices(target.shape).reshape(3, -1).T)).T
    expected = [ndimage.map_coordinates(channel, index, order=1, mode="nearest") for channel in found.numpy()]
    assert np.array_equal(most_likely(found, source, target).ravel(), np.argmax(expected, axis=0))


def test_an_mr_and_a_bundle_without_a_segmenter_are_refused() -> None:
    volume, _ = scan(0)
    with pytest.raises(InvalidVolumeError, match="takes a CT"):
        NetworkSegmenter(network())(Volume(volume.array, volume.grid, "mr"))
    with pytest.raises(InvalidBundleError, match="maisi train segmenter"):
        segmenter_of(load_bundle("ct-small"))


def test_class_maps_hold_the_rest_of_the_body() -> None:
    livers = LabelMap(np.full((2, 2, 2), VOCABULARY.id("liver"), np.uint8), Grid.centered((2, 2, 2), (4, 4, 4)))
    assert (NetworkSegmenter(network()).classes_of(livers).array == LIVER).all()
    ids = np.array([0, VOCABULARY.id("liver"), VOCABULARY.id("spleen"), VOCABULARY.id("vertebrae L3")], np.uint8)
    assert class_map(ids, classes(), VOCABULARY).tolist() == [0, LIVER, BODY, VERTEBRAE]


# On disk and by command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    info = BundleInfo(name="segmenting", licence="none", vocabulary_version=VOCABULARY.version)
    return save_bundle(Bundle.of(info, {"segmenter": network()}), tmp_path_factory.mktemp("bundle") / "bundle")


def test_a_bundle_keeps_its_segmenter(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    assert bundle.kinds == {"segmenter": "segmenter"}
    assert isinstance(bundle.configs["segmenter"], SegmenterConfig)
    assert segmenter_of(bundle).config.names == tuple(CLASSES)
    volume, _ = scan(1)
    assert np.array_equal(segmenter_of(bundle)(volume).array, NetworkSegmenter(network())(volume).array)


def test_a_segmenter_keeps_float32_in_a_bundle_of_half_precision(bundle_path: Path) -> None:
    volume, _ = scan(1)
    half = load_bundle(bundle_path, dtype=torch.bfloat16, narrow_in_float32=True)
    assert np.array_equal(segmenter_of(half)(volume).array, NetworkSegmenter(network())(volume).array)
    fitted = fit(load_bundle(bundle_path), fill_defaults(Compute(precision="float32")), lambda bundle: None)
    assert np.array_equal(segmenter_of(fitted)(volume).array, NetworkSegmenter(network())(volume).array)


def test_the_command_writes_labels_on_the_grid_of_the_scan(bundle_path: Path, tmp_path: Path) -> None:
    volume, _ = scan(2)
    write_volume(volume, tmp_path / "ct.nii.gz")
    asked = ["segment", str(tmp_path / "ct.nii.gz"), "--bundle", str(bundle_path), "--out"]
    assert main([*asked, str(tmp_path / "out")]) == 0
    assert {"labels.nii.gz", "preview.png", "structures.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    labels = read_labels(tmp_path / "out" / "labels.nii.gz")
    assert labels.grid.is_close(volume.grid)
    VOCABULARY.check_ids(labels.array)
    assert main([*asked, str(tmp_path / "labels.nii.gz")]) == 0
    assert np.array_equal(read_labels(tmp_path / "labels.nii.gz").array, labels.array)


@pytest.mark.parametrize("name", ["labels.nii", "labels.nrrd", "labels.seg.nrrd", "labels.mha"])
def test_the_command_writes_a_file_of_any_ending_of_label_maps(bundle_path: Path, tmp_path: Path, name: str) -> None:
    volume, _ = scan(9, (24, 20, 28))
    write_volume(volume, tmp_path / "ct.nii.gz")
    asked = ["segment", str(tmp_path / "ct.nii.gz"), "--bundle", str(bundle_path), "--out"]
    assert main([*asked, str(tmp_path / name)]) == 0
    assert main([*asked, str(tmp_path / "out")]) == 0
    written, folder = read_labels(tmp_path / name), read_labels(tmp_path / "out" / "labels.nii.gz")
    np.testing.assert_array_equal(written.array, folder.array)
    assert written.grid.is_close(folder.grid)


def test_the_command_refuses_a_file_that_is_not_written(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_volume(scan(9)[0], tmp_path / "ct.nii.gz")
    asked = ["segment", str(tmp_path / "ct.nii.gz"), "--bundle", str(bundle_path), "--out"]
    assert main([*asked, str(tmp_path / "labels.mhd")]) == 2
    assert "ends in .mhd; accepted: .nii or .nii.gz or .nrrd or .mha or .seg.nrrd" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]


def test_prepare_takes_the_command_as_its_segmenter(bundle_path: Path) -> None:
    volume, _ = scan(2)
    command = f"{sys.executable} -m maisi segment {{image}} --bundle {bundle_path} --out {{labels}}"
    labels = segmented(volume, PrepareSettings(segmenter=command))
    assert labels.grid == volume.grid
    assert labels.array.any()


def test_the_command_says_what_it_needs(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume, _ = scan(2)
    write_volume(volume, tmp_path / "ct.nii.gz")
    assert main(["segment", str(tmp_path / "ct.nii.gz"), "--bundle", "ct-small", "--out", str(tmp_path / "out")]) == 2
    assert "has no segmenter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_packaged_segmenter_finds_the_lungs_of_a_phantom(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    labels = draw_phantom("chest", Grid.centered((64, 56, 48), (6.0, 6.0, 6.0)), rng)
    write_volume(render_phantom(labels, rng), tmp_path / "ct.nii.gz")
    assert main(["segment", str(tmp_path / "ct.nii.gz"), "--out", str(tmp_path / "labels.nii.gz")]) == 0
    lungs = np.isin(labels.array, VOCABULARY.group("lungs"))
    found = read_labels(tmp_path / "labels.nii.gz")
    told = np.isin(found.array, VOCABULARY.group("lungs"))
    assert 2 * (lungs & told).sum() / (lungs.sum() + told.sum()) > 0.8


def test_the_command_trains_and_adds_to_a_bundle(tmp_path: Path) -> None:
    volume, labels = scan(3)
    write_volume(volume, tmp_path / "ct.nii.gz")
    write_labels(labels, tmp_path / "labels.nii.gz")
    case = {"id": "a", "image": "ct.nii.gz", "labels_maisi": "labels.nii.gz"}
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [case, case | {"id": "b", "split": "validation"}]}))
    given = {"channels": "[4, 8]", "num_res_blocks": "[1, 1]", "patch": "[16, 16, 16]"}
    given["loop"] = "{num_steps: 2, save_every: 2, validate_every: 2}"
    settings = [f"segmenter.{name}={value}" for name, value in given.items()] + ["latents.num_phantoms=0"]
    asked = ["train", "segmenter", "tiny", "--manifest", str(tmp_path / "manifest.json"), "--bundle", "ct-small"]
    more = [part for each in settings for part in ("-s", each)]
    assert main([*asked, *more, "--out", str(tmp_path / "run")]) == 0
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert {"autoencoder", "unet", "controlnet", "segmenter"} <= set(bundle.names)
