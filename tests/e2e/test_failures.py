"""Samples that fail their check are kept apart, told of, and made once; label maps are checked in files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from command_line import Maisi, Patient, files_in

from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.pipelines.quality.report import QualityReport
from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap, Volume
from maisi.storage.sums import sha256

SMALL = ("--size", 16, 16, 16, "--spacing", 16, 16, 16, "--steps", 1, "--precision", "float32")
KINDS = ("ct.nii.gz", "labels.nii.gz", "preview.png", "quality.json")


@pytest.fixture(scope="module")
def strict_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that are held to the anatomy that they do not draw."""
    loose = load_bundle(tiny_bundle)
    limits = loose.limits.model_copy(update={"held_to": None})
    networks = {name: loose.network(name) for name in loose.names}
    strict = Bundle.of(loose.info.model_copy(update={"limits": limits}), networks)
    return save_bundle(strict, tmp_path_factory.mktemp("bundles") / "strict")


def sums(folder: Path) -> dict[str, str]:
    return {
        name: sha256(folder / name) for name in files_in(folder) if (folder / name).is_file() and name != "run.json"
    }


def test_every_sample_has_a_report(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    assert maisi("generate", "-b", tiny_bundle, *SMALL, "-o", tmp_path / "out").code == 0
    report = QualityReport.model_validate_json((tmp_path / "out" / "sample_000_quality.json").read_text())
    assert report.passed
    assert report.held_to == ()
    assert {"liver", "body"} & {row.name for row in report.structures}


def test_samples_that_fail_are_kept_apart_and_the_exit_code_says_so(
    maisi: Maisi, strict_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi("generate", "-b", strict_bundle, *SMALL, "-n", 2, "--max-tries", 2, "-o", out)
    assert answer.code == 1
    assert "2 failed the check" in answer.err
    assert "sample_000, sample_001" in answer.err
    apart = [f"failed/sample_00{k}_{kind}" for k in (0, 1) for kind in KINDS]
    assert files_in(out) == ["failed", *apart, "run.json", "run.yaml"]
    record = json.loads((out / "run.json").read_text())
    assert record["failed"] == ["sample_000", "sample_001"]
    assert sorted(record["outputs"]) == [*apart, "run.yaml"]
    assert answer.out.splitlines().count(str(out / apart[0])) == 1
    assert json.loads((out / "failed" / "sample_000_quality.json").read_text())["tries"] == 2


@pytest.mark.parametrize("missing", ["failed/sample_001", "failed/sample_001_quality"])
def test_a_run_goes_on_after_samples_that_failed(
    maisi: Maisi, strict_bundle: Path, tmp_path: Path, missing: str
) -> None:
    ask = ("generate", "-b", strict_bundle, *SMALL, "-n", 2, "--max-tries", 1, "-o")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert maisi(*ask, whole).code == 1
    (out / "failed").mkdir(parents=True)
    for name in sums(whole):
        if not name.startswith(missing):
            (out / name).write_bytes((whole / name).read_bytes())
    first = (out / "failed" / "sample_000_ct.nii.gz").stat().st_mtime_ns
    answer = maisi(*ask, out)
    assert answer.code == 1
    assert sums(out) == sums(whole)
    assert (out / "failed" / "sample_000_ct.nii.gz").stat().st_mtime_ns == first
    assert json.loads((out / "run.json").read_text())["failed"] == ["sample_000", "sample_001"]


def test_what_is_kept_lies_in_its_place_marked_and_counts_as_done(
    maisi: Maisi, strict_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi("generate", "-b", strict_bundle, *SMALL, "--on-failure", "keep", "-o", out)
    assert answer.code == 0
    assert not json.loads((out / "sample_000_quality.json").read_text())["passed"]
    assert json.loads((out / "run.json").read_text())["warnings"]
    told = "warning: 1 failed the check, kept among the others, see their *_quality.json: sample_000"
    assert answer.err.splitlines()[-1] == told
    (out / "run.json").unlink()  # as of a run that was killed
    again = maisi("generate", "-b", strict_bundle, *SMALL, "--on-failure", "keep", "-o", out)
    assert again.err.splitlines()[-2].startswith("0 in ")
    assert again.err.splitlines()[-1] == told
    good = maisi("generate", "-b", tiny_bundle, *SMALL, "--on-failure", "keep", "-o", tmp_path / "good")
    assert "failed the check" not in good.err
    marked, plain = (folder / "sample_000_preview.png" for folder in (out, tmp_path / "good"))
    kept, good = (nib.load(folder / "sample_000_ct.nii.gz") for folder in (out, tmp_path / "good"))
    assert np.array_equal(kept.dataobj, good.dataobj)
    assert sha256(marked) != sha256(plain)


def test_an_overwritten_run_leaves_no_failures_behind(
    maisi: Maisi, strict_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    maisi("generate", "-b", strict_bundle, *SMALL, "--max-tries", 1, "-o", out)
    assert maisi("generate", "-b", tiny_bundle, *SMALL, "--overwrite", "-o", out).code == 0
    assert files_in(out) == ["run.json", "run.yaml", *(f"sample_000_{kind}" for kind in KINDS)]


def test_a_segmenter_that_needs_places_is_refused_before_anything_is_loaded(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    answer = maisi("generate", "-b", tiny_bundle, *SMALL, "--segmenter", "tool {image}", "-o", tmp_path / "out")
    assert answer.code == 2
    assert "{image} and {labels}" in answer.err
    assert not (tmp_path / "out").exists()


# Label maps in files --------------------------------------------------------------------------------------------------


def test_labels_check_prints_a_table_and_passes_a_phantom(maisi: Maisi, patient: Patient) -> None:
    answer = maisi("labels", "check", patient.labels)
    assert answer.code == 0, answer.out
    header, *rows = answer.out.splitlines()
    assert header.split() == ["structure", "ml", "verdict"]
    assert any(row.startswith("liver") and row.endswith("ok") for row in rows)
    assert "1 of 1 passed" in answer.err


def test_labels_check_with_a_ct_tells_hounsfield_units_and_fails_a_dark_liver(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    volume, labels = read_volume(patient.ct), read_labels(patient.labels)
    dark = volume.array.copy()
    dark[labels.array == 1] = -800.0
    write_volume(Volume(dark, volume.grid), tmp_path / "dark.nii.gz")
    answer = maisi("labels", "check", patient.labels, "--ct", tmp_path / "dark.nii.gz", "--json")
    assert answer.code == 1
    (report,) = answer.json.values()
    liver = next(row for row in report["structures"] if row["name"] == "liver")
    assert not liver["passed"]
    assert liver["hu"]["median"] == -800.0


def test_labels_check_of_a_folder_names_each_map_and_fails_when_one_does(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    labels = read_labels(patient.labels)
    write_labels(labels, tmp_path / "good.nii.gz")
    ids = np.where(labels.array == 1, np.uint8(0), labels.array)
    ids[2:4, 2:4, 2:4] = 26  # a tumour of a liver that is far away
    ids[13:15, 10:12, 9:11] = 1
    write_labels(LabelMap(ids, labels.grid), tmp_path / "odd.nii.gz")
    answer = maisi("labels", "check", tmp_path)
    assert answer.code == 1
    assert f"{tmp_path / 'good.nii.gz'}: passed" in answer.out
    assert f"{tmp_path / 'odd.nii.gz'}: FAILED" in answer.out
    assert "does not touch its host, liver" in answer.out


def test_one_ct_is_not_checked_against_several_maps(maisi: Maisi, patient: Patient) -> None:
    answer = maisi("labels", "check", patient.labels, patient.labels, "--ct", patient.ct)
    assert answer.code == 2
    assert "accepted: --ct with one label map" in answer.err


def test_settings_of_quality_are_in_the_run_file(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    maisi("generate", "-b", tiny_bundle, *SMALL, "--on-failure", "repair", "-o", tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert settings["quality"]["on_failure"] == "repair"
