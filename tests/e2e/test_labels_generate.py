"""`maisi train labels` and `maisi labels generate`, small."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Maisi, files_in

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import load_bundle
from maisi.pipelines.quality.report import QualityReport
from maisi.space.label_files import read_labels

SHORT = (
    "labels.maps.size=[16, 16, 16]",
    "labels.maps.spacing_mm=[20, 20, 20]",
    "labels.maps.num_phantoms=4",
    "labels.autoencoder.loop.num_steps=60",
    "labels.autoencoder.patch=[16, 16, 16]",
    "labels.autoencoder.optimization.learning_rate=0.01",
    "labels.diffusion.loop.num_steps=3",
)

KINDS = ("labels.nii.gz", "preview.png", "quality.json", "volumes.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a short training on phantoms."""
    from maisi.cli import main

    run = tmp_path_factory.mktemp("labels") / "run"
    settings = [part for setting in SHORT for part in ("--set", setting)]
    assert main(["train", "labels", "tiny", "--out", str(run), "--threads", "1", *settings]) == 0
    return run / "bundle"


def test_a_trained_label_generator_draws_maps_and_goes_on_where_it_stopped(
    maisi: Maisi, trained: Path, tmp_path: Path
) -> None:
    few = ("labels", "generate", "--bundle", trained, "--region", "abdomen", "--steps", "2", "--seed", "5")
    given = (*few, "--on-failure", "keep")
    done = maisi(*given, "--count", "2", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    assert files_in(tmp_path / "two") == [
        "run.json",
        "run.yaml",
        *(f"sample_{i:03d}_{kind}" for i in range(2) for kind in KINDS),
    ]
    maps = [read_labels(tmp_path / "two" / f"sample_{i:03d}_labels.nii.gz") for i in range(2)]
    assert (maps[0].grid.shape, maps[0].grid.spacing) == ((64, 64, 64), (5, 5, 5))  # 16 of 20 mm
    assert not np.array_equal(maps[0].array, maps[1].array)
    told = json.loads((tmp_path / "two" / "sample_000_volumes.json").read_text())
    body = (maps[0].array == load_vocabulary().id("body")).sum() * 0.125
    assert told["body"]["obtained_ml"] == pytest.approx(body, abs=0.006)

    assert maisi(*given, "--out", tmp_path / "one").code == 0
    assert np.array_equal(read_labels(tmp_path / "one" / "sample_000_labels.nii.gz").array, maps[0].array)
    assert maisi("reproduce", tmp_path / "one" / "run.yaml", "--out", tmp_path / "again").code == 0
    assert np.array_equal(read_labels(tmp_path / "again" / "sample_000_labels.nii.gz").array, maps[0].array)


def test_maps_that_fail_their_check_are_drawn_again_and_then_set_apart(
    maisi: Maisi, trained: Path, tmp_path: Path
) -> None:
    """What a network draws after three steps of training is no anatomy."""
    given = ("labels", "generate", "--bundle", trained, "--region", "abdomen", "--steps", "2", "--max-tries", "2")
    answer = maisi(*given, "--out", tmp_path / "out")
    assert answer.code == 1
    assert "1 failed the check, see" in answer.err
    assert [f"try {k} of 2: " in answer.err for k in (1, 2, 3)] == [True, True, False]
    failed = ["failed", *(f"failed/sample_000_{kind}" for kind in KINDS)]
    assert files_in(tmp_path / "out") == [*failed, "run.json", "run.yaml"]
    report = QualityReport.model_validate_json((tmp_path / "out/failed/sample_000_quality.json").read_text())
    assert not report.passed
    assert json.loads((tmp_path / "out/run.json").read_text())["failed"] == ["sample_000"]
    before = (tmp_path / "out/failed/sample_000_labels.nii.gz").stat().st_mtime_ns
    (tmp_path / "out/run.json").unlink()  # as after a kill: what failed is not drawn again
    assert maisi(*given, "--out", tmp_path / "out").code == 1
    assert (tmp_path / "out/failed/sample_000_labels.nii.gz").stat().st_mtime_ns == before


def test_the_networks_can_be_added_to_a_bundle_and_encode_maps(trained: Path) -> None:
    bundle = load_bundle(trained)
    assert set(bundle.names) == {"label_autoencoder", "label_unet"}
    assert bundle.info.label_generator is not None
    assert bundle.info.label_generator.open_sizes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--bundle", "ct-small"), "'ct-small' draws no label maps"),
        (("--region", "chset"), "did you mean 'chest'"),
        (("--anatomy", "livver=0.5"), "did you mean 'liver'"),
        (("--anatomy", "brain=0.5"), "outside of abdomen"),
        (("--size", "65", "64", "64"), "is larger than the 320 x 320 x 320 mm"),
        (("--spacing", "90", "90", "900"), "not between 0 and 100 mm"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    maisi: Maisi, trained: Path, tmp_path: Path, asked: tuple[str, ...], message: str
) -> None:
    bundle = () if "--bundle" in asked else ("--bundle", trained)
    region = () if "--region" in asked else ("--region", "abdomen")
    refused = maisi("labels", "generate", *bundle, *region, *asked, "--out", tmp_path / "out")
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "out").exists()


def test_a_training_of_a_generator_that_does_not_fit_the_memory_is_refused(maisi: Maisi, tmp_path: Path) -> None:
    refused = maisi("train", "labels", "tiny", "--out", tmp_path / "run", "--memory", "10MB")
    assert refused.code == 2
    assert "a step of the label diffusion needs" in refused.err
    assert re.search(r"accepted: .* or --memory \d+MB or more", refused.err)
    assert not (tmp_path / "run").exists()


def test_labels_come_from_one_place(maisi: Maisi, trained: Path, tmp_path: Path) -> None:
    refused = maisi("generate", "--label-bundle", trained, "--unlabelled", "--out", tmp_path / "out")
    assert refused.code == 2
    assert "labels come from one place" in refused.err


def test_the_packaged_generator_draws_what_is_asked_for_where_it_belongs(maisi: Maisi, tmp_path: Path) -> None:
    asked = ("--anatomy", "liver=1400ml", "hepatic tumor=30mm", "--seed", "2", "--steps", "10")
    done = maisi("labels", "generate", "--region", "abdomen", *asked, "--out", tmp_path)
    assert done.code == 0, done.err
    vocabulary = load_vocabulary()
    labels = read_labels(tmp_path / "sample_000_labels.nii.gz")
    assert labels.grid.spacing == (4, 4, 4)
    told = json.loads((tmp_path / "sample_000_volumes.json").read_text())
    assert told["liver"]["obtained_ml"] == pytest.approx(1400, rel=0.05)
    assert told["hepatic tumor"]["obtained_ml"] == pytest.approx(told["hepatic tumor"]["asked_ml"], rel=0.25)
    places = [np.argwhere(labels.array == vocabulary.id(name)).mean(0) for name in ("liver", "spleen")]
    right, left = (np.append(place, 1) @ labels.grid.affine.T for place in places)
    assert right[0] > left[0] + 50  # in RAS x grows to the right
