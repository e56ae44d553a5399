"""`maisi plan` and `--memory`: the same result within a bound."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, Patient, files_in

SIZE = ("--size", 88, 80, 64)
NAMES = {"autoencoder.encode", "autoencoder.decode", "controlnet.embed_condition", "controlnet", "unet"}
EXACT = ("--precision", "float32")  # a bound changes the last bits: of bfloat16 where that is the default


def test_a_plan_cuts_what_does_not_fit_and_leaves_whole_what_does(maisi: Maisi, tiny_bundle: Path) -> None:
    wide = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle, "--json").json["plans"]
    tight = maisi("plan", *SIZE, "--memory", "470MB", "-b", tiny_bundle, "--json").json
    assert wide.keys() == NAMES
    assert {plan["parts"] for plan in wide.values()} == {1}
    assert tight["plans"]["autoencoder.decode"]["parts"] > 1
    assert all(tight["fixed_bytes"] + plan["peak_bytes"] < 470e6 for plan in tight["plans"].values())


def test_a_plan_for_bfloat16_takes_less(maisi: Maisi) -> None:
    ask = ("plan", *SIZE, "--memory", "2GB", "--json")
    full, half = (maisi(*ask, "--precision", p).json for p in ("float32", "bfloat16"))
    assert (full["precision"], half["precision"]) == ("float32", "bfloat16")
    assert half["plans"]["autoencoder.decode"]["peak_bytes"] < 0.8 * full["plans"]["autoencoder.decode"]["peak_bytes"]


def test_bfloat16_within_a_bound_gives_a_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", "--size", 32, 32, 32, "--spacing", 5, 5, 5, "--force", "--steps", 1, "-b", tiny_bundle)
    answer = maisi(*ask, "--precision", "bfloat16", "--memory", "470MB", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert (tmp_path / "out" / "sample_000_ct.nii.gz").exists()


def test_a_scratch_folder_takes_tensors_and_is_left_empty(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    refused = maisi("plan", *SIZE, "--memory", "430MB", "-b", tiny_bundle)
    assert refused.code == 2
    assert "(--scratch)" in refused.err
    bound = ("--memory", "455MB", "--scratch", scratch)
    told = maisi("plan", *SIZE, *bound, "-b", tiny_bundle, "--json").json["plans"]["autoencoder.decode"]
    assert any(tensor["place"] == "disk" for tensor in told["tensors"])

    ask = ("generate", *SIZE, *EXACT, "--spacing", 5, 5, 5, "--force", "--steps", 1, "-b", tiny_bundle)
    assert maisi(*ask, "-o", tmp_path / "whole").code == 0
    assert maisi(*ask, "-o", tmp_path / "cut", *bound).code == 0
    whole, cut = (np.asarray(nib.load(tmp_path / n / "sample_000_ct.nii.gz").dataobj, int) for n in ("whole", "cut"))
    assert np.abs(whole - cut).max() <= 1  # rounding to int16
    assert files_in(scratch) == []


def test_a_plan_for_a_gpu_leaves_tensors_to_the_host(maisi: Maisi, tiny_bundle: Path) -> None:
    ask = ("plan", *SIZE, "--memory", "455MB", "-b", tiny_bundle, "--device", "cuda", "--host-memory", "1GB")
    told = maisi(*ask, "--json").json["plans"]["autoencoder.decode"]
    assert "host" in {tensor["place"] for tensor in told["tensors"]}
    assert told["host_bytes"] > 0
    assert "memory, host, disk, recomputed" in maisi(*ask).out


def test_a_bound_on_a_gpu_that_cannot_be_met_names_what_would_help(maisi: Maisi, tiny_bundle: Path) -> None:
    answer = maisi("plan", *SIZE, "--memory", "430MB", "-b", tiny_bundle, "--device", "cuda")
    assert answer.code == 2
    assert "(--scratch, --host-memory)" in answer.err


@pytest.mark.parametrize(
    ("bound", "said"),
    [(("--memory", "2GB"), "host_memory is for what leaves a GPU"), (("--device", "cuda"), "host_memory needs memory")],
)
def test_host_memory_without_a_gpu_or_a_bound_is_refused(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, bound: tuple[str, str], said: str
) -> None:
    answer = maisi("generate", "-b", tiny_bundle, "-o", tmp_path / "out", "--host-memory", "8GB", *bound)
    assert answer.code == 2
    assert said in answer.err
    assert files_in(tmp_path) == []


def test_a_scratch_folder_that_is_not_there_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    answer = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle, "--scratch", tmp_path / "none")
    assert answer.code == 2
    assert "no folder" in answer.err


def test_a_plan_is_told_as_a_table(maisi: Maisi, tiny_bundle: Path) -> None:
    told = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle).out
    assert "extra work" in told
    assert "decode" in told


@pytest.mark.parametrize("memory", ["300MB", "403MB"])
def test_a_bound_that_cannot_be_met_is_refused_with_what_is_needed(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, memory: str
) -> None:
    ask = ("generate", *SIZE, *EXACT, "--spacing", 5, 5, 5, "--force", "-b", tiny_bundle)
    answer = maisi(*ask, "--memory", memory, "-o", tmp_path / "out")
    assert answer.code == 2
    assert f"within {memory.replace('MB', '.0 MB')}" in answer.err
    assert "the networks and the input" in answer.err
    assert files_in(tmp_path) == []


def test_a_bound_on_memory_does_not_change_the_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", *SIZE, *EXACT, "--spacing", 5, 5, 5, "--force", "--steps", 1, "-b", tiny_bundle)
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
    answer = maisi(*ask, "-o", tmp_path / "cut", "--memory", "470MB")
    assert answer.code == 0, answer.err
    cut = answer.json
    assert cut["reconstruction"]["psnr_db"] == pytest.approx(whole["reconstruction"]["psnr_db"], abs=1e-3)
