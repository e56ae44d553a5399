"""`maisi plan` and `--memory`: the same result within a bound."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, Patient, files_in

SIZE = ("--size", 88, 80, 64)


def test_a_plan_cuts_what_does_not_fit_and_leaves_whole_what_does(maisi: Maisi, tiny_bundle: Path) -> None:
    wide = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle, "--json").json["plans"]
    tight = maisi("plan", *SIZE, "--memory", "470MB", "-b", tiny_bundle, "--json").json
    assert wide.keys() == {"encode", "decode", "denoise", "embed labels"}
    assert {plan["parts"] for plan in wide.values()} == {1}
    assert tight["plans"]["decode"]["parts"] > 1
    assert all(tight["fixed_bytes"] + plan["peak_bytes"] < 470e6 for plan in tight["plans"].values())


def test_a_plan_is_told_as_a_table(maisi: Maisi, tiny_bundle: Path) -> None:
    told = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle).out
    assert "extra work" in told
    assert "decode" in told


@pytest.mark.parametrize("memory", ["300MB", "403MB"])
def test_a_bound_that_cannot_be_met_is_refused_with_what_is_needed(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, memory: str
) -> None:
    ask = ("generate", *SIZE, "--spacing", 5, 5, 5, "--force", "-b", tiny_bundle)
    answer = maisi(*ask, "--memory", memory, "-o", tmp_path / "out")
    assert answer.code == 2
    assert f"within {memory.replace('MB', ' MB')}" in answer.err
    assert "the networks and the input" in answer.err
    assert files_in(tmp_path) == []


def test_a_bound_on_memory_does_not_change_the_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", *SIZE, "--spacing", 5, 5, 5, "--force", "--steps", 1, "-b", tiny_bundle)
    assert maisi(*ask, "-o", tmp_path / "whole").code == 0
    assert maisi(*ask, "-o", tmp_path / "cut", "--memory", "470MB").code == 0
    whole, cut = (np.asarray(nib.load(tmp_path / n / "sample_000_ct.nii.gz").dataobj, int) for n in ("whole", "cut"))
    assert np.abs(whole - cut).max() <= 1  # rounding to int16
    assert (whole != cut).mean() < 0.01


def test_encoding_and_decoding_stay_within_a_bound_too(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    ask = ("reconstruct", patient.ct, "--spacing", 4, 4, 4, "-b", tiny_bundle, "--json")
    whole = maisi(*ask, "-o", tmp_path / "whole").json
    cut = maisi(*ask, "-o", tmp_path / "cut", "--memory", "470MB").json
    assert cut["reconstruction"]["psnr_db"] == pytest.approx(whole["reconstruction"]["psnr_db"], abs=1e-3)
