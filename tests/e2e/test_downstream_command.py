"""`maisi downstream run`: from an experiment to its table, and on after a kill."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import Maisi

from made_limbs import save_limbs

TRAINING = {"steps": 2, "patch": [8, 8, 8], "channels": [4, 8], "flips": True}


@pytest.fixture
def experiment(tmp_path: Path, tiny_bundle: Path) -> Path:
    """Two folds, real only and as many synthetic, one seed, by a bundle of random weights."""
    manifest = save_limbs(tmp_path / "data", training=2, validation=2)
    file = tmp_path / "limbs.yaml"
    settings = {
        "name": "limbs",
        "manifest": str(manifest.relative_to(tmp_path)),
        "structures": {"sarcoma": "soft-tissue sarcoma"},
        "spacing_mm": 8,
        "split": {"test": "manifest", "folds": 2},
        "regimes": [{"ratios": [0, 1], "seeds": [0]}],
        "synthetic": {"bundle": str(tiny_bundle), "steps": 1},
        "training": TRAINING,
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def test_an_experiment_leaves_its_table_and_goes_on_after_a_kill(
    maisi: Maisi, experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = maisi("downstream", "run", experiment, "--out", out)
    assert done.code == 0, done.err
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == [
        "report.html",
        "report.json",
        "run.json",
        "run.yaml",
        "split.json",
    ]
    report = json.loads((out / "report.json").read_text())
    assert [len(cell["synthetic"]) for cell in report["cells"]] == [0, 1, 0, 1]
    for cell in report["cells"]:
        real = cell["real"]
        assert all(made.startswith(f"{real[0]}_") for made in cell["synthetic"])
        assert {each["patient"] for each in cell["tested"]} == set(report["split"]["test"]) == {"p2", "p3"}
    assert report["rows"][1]["change"]["patients"] == 2
    assert "1.5" not in done.out
    assert "fold 1" in done.out

    (out / "run.json").unlink()  # as a kill leaves it: one training, and one case, are not there
    (out / "cells" / "fold_1_real_all_ratio_1_seed_0.json").unlink()
    (out / "cases" / "limb0_synthetic_0.json").unlink()
    kept = (out / "cells" / "fold_0_real_all_ratio_0_seed_0.json").stat().st_mtime_ns
    again = maisi("downstream", "run", experiment, "--out", out, "--workers", 2)  # nor does it count who goes on
    assert again.code == 0, again.err
    assert (out / "cells" / "fold_0_real_all_ratio_0_seed_0.json").stat().st_mtime_ns == kept
    assert json.loads((out / "report.json").read_text())["rows"] == report["rows"]


def test_a_run_repeats_to_the_same_files(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    settings = ("-s", "regimes=[{ratios: [0, 1], seeds: [0]}]", "-s", "split.folds=2")
    assert maisi("downstream", "run", experiment, "--out", tmp_path / "one", *settings).code == 0
    again = maisi("reproduce", tmp_path / "one" / "run.yaml", "--out", tmp_path / "two")
    assert again.code == 0, again.err
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_an_unfinished_run_of_other_settings_is_refused(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert maisi("downstream", "run", experiment, "--out", out, "-s", "regimes=[{ratios: [0], seeds: [0]}]").code == 0
    (out / "run.json").unlink()
    other = maisi("downstream", "run", experiment, "--out", out)
    assert other.code == 2
    assert "unfinished run of other settings (experiment)" in other.err


def test_inpainted_and_given_cases_are_sources_too(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    one = "regimes=[{ratios: [0, 1], seeds: [0]}]"
    inpainted = maisi(
        "downstream", "run", experiment, "--out", tmp_path / "a", "--json", "-s", one,
        "-s", "synthetic.source=inpaint", "-s", "synthetic.tumour=soft-tissue sarcoma",
    )  # fmt: skip
    assert inpainted.code == 0, inpainted.err
    assert len(inpainted.json["cells"][1]["synthetic"]) == 1
    given = save_limbs(tmp_path / "given", training=3, validation=0, first=10)
    folder = maisi(
        "downstream", "run", experiment, "--out", tmp_path / "b", "--json", "-s", one,
        "-s", "synthetic.source=folder", "-s", f"synthetic.folder={given}",
    )  # fmt: skip
    assert folder.code == 0, folder.err
    assert folder.json["cells"][1]["synthetic"] == ["limb10_given"]


def test_a_case_that_cannot_be_read_is_left_out_and_told(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "limb3_ct.nii.gz").write_bytes(b"no scan")
    answer = maisi("downstream", "run", experiment, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    assert {case["id"] for cell in answer.json["cells"] for case in cell["tested"]} == {"limb2"}
    notes = " ".join(answer.json["notes"])
    assert "limb3 is left out" in notes
    liver = maisi("downstream", "run", experiment, "--out", tmp_path / "liver", "-s", "synthetic.source=inpaint",
                  "-s", "synthetic.tumour=hepatic tumor")  # fmt: skip
    assert (liver.code, "no synthetic case is left for the training fold_0_real_all_ratio_1" in liver.err) == (1, True)
    assert "draws places in the liver" in liver.err  # a limb has none


def test_cases_of_which_no_class_is_known_are_told_before_any_is_generated(
    maisi: Maisi, experiment: Path, tmp_path: Path
) -> None:
    other = maisi("downstream", "run", experiment, "--out", tmp_path / "out", "-s", "structures=[liver]")
    assert other.code == 1
    assert "too few cases are left to train and to test" in other.err
    assert "none of the classes liver is known in it; its labels name soft-tissue sarcoma" in other.err
    assert "synthetic" not in other.err
    assert not list((tmp_path / "out").rglob("*_synthetic_*"))


def test_trainings_that_fail_are_told_and_can_be_asked_for_again(
    maisi: Maisi, experiment: Path, tmp_path: Path
) -> None:
    for name in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"):
        command = tmp_path / "env" / "bin" / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
        command.chmod(0o755)
    backend = ("-s", "training.backend=nnunet", "-s", f"training.environment={tmp_path / 'env'}")
    answer = maisi("downstream", "run", experiment, "--out", tmp_path / "out", *backend)
    assert answer.code == 1
    assert "4 of 4 trainings failed; first: fold_0_real_all_ratio_0_seed_0" in answer.err
    assert "ended with 3: no room" in answer.err
    assert not (tmp_path / "out" / "run.json").exists()


def test_what_cannot_be_is_refused_in_a_line(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    def refused(*more: object) -> str:
        answer = maisi("downstream", "run", *more, "--out", tmp_path / "out")
        assert answer.code == 2, answer.err
        assert len(answer.err.strip().splitlines()) == 1
        return answer.err

    assert "did you mean openkbp" in refused("openkpb")
    assert "no group 'legs'; accepted: limbs" in refused(experiment, "-s", "groups=[legs]")
    assert "2 for 3 folds" in refused(experiment, "-s", "split.folds=3")
    assert "nnUNetv2_plan_and_preprocess" in refused(experiment, "-s", "training.backend=nnunet")
    assert not (tmp_path / "out").exists()


def test_a_plan_is_told_and_nothing_is_written(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    answer = maisi("downstream", "run", experiment, "--out", tmp_path / "out", "--plan", "--json")
    assert answer.code == 0, answer.err
    assert len(answer.json["cells"]) == 4
    assert sorted(answer.json["synthetic"]) == ["limb0_synthetic_0", "limb1_synthetic_0"]
    assert not (tmp_path / "out").exists()


def test_what_is_written_over_takes_nothing_of_the_run_before(maisi: Maisi, experiment: Path, tmp_path: Path) -> None:
    out, real = tmp_path / "out", ("-s", "regimes=[{ratios: [0], seeds: [0]}]")
    first = maisi("downstream", "run", experiment, "--out", out, *real)
    assert first.code == 0, first.err
    cells = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    (out / "mine.txt").write_text("kept")
    other = maisi("downstream", "run", experiment, "--out", out, "--overwrite", *real, "-s", "spacing_mm=10")
    assert other.code == 0, other.err
    again = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert again.keys() == cells.keys()
    assert all(again[name] > cells[name] for name in cells)
    assert (out / "mine.txt").read_text() == "kept"
