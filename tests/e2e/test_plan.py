"""`maisi plan` and `--memory`: the same result within a bound."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, Patient, files_in

from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.space.resample import with_spacing

SIZE = ("--size", 88, 80, 64)
NAMES = {"autoencoder.encode", "autoencoder.decode", "controlnet.embed_condition", "controlnet", "unet"}
EXACT = ("--precision", "float32")  # a bound changes the last bits: of bfloat16 where that is the default


def least_memory(maisi: Maisi, *ask: object) -> int:
    """The least memory (bytes) that a plan is accepted with, as its refusal names it."""
    refused = maisi("plan", *ask, "--memory", "1MB")
    assert refused.code == 2
    found = re.search(r"accepted: --memory (\d+)MB or more", refused.err)
    assert found, refused.err
    return int(found[1]) * 10**6


def test_a_plan_cuts_what_does_not_fit_and_leaves_whole_what_does(maisi: Maisi, tiny_bundle: Path) -> None:
    wide = maisi("plan", *SIZE, "--memory", "2GB", "-b", tiny_bundle, "--json").json["plans"]
    least = least_memory(maisi, *SIZE, "-b", tiny_bundle)
    tight = maisi("plan", *SIZE, "--memory", least, "-b", tiny_bundle, "--json").json
    assert wide.keys() == NAMES
    assert {plan["parts"] for plan in wide.values()} == {1}
    assert tight["plans"]["autoencoder.decode"]["parts"] > 1
    assert all(tight["fixed_bytes"] + plan["peak_bytes"] < least for plan in tight["plans"].values())


def test_a_plan_for_bfloat16_takes_less(maisi: Maisi) -> None:
    ask = ("plan", *SIZE, "--memory", "2GB", "--json")
    full, half = (maisi(*ask, "--precision", p).json for p in ("float32", "bfloat16"))
    assert (full["precision"], half["precision"]) == ("float32", "bfloat16")
    assert half["plans"]["autoencoder.decode"]["peak_bytes"] < 0.8 * full["plans"]["autoencoder.decode"]["peak_bytes"]


def test_bfloat16_within_a_bound_gives_a_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    half = ("--size", 32, 32, 32, "--precision", "bfloat16", "-b", tiny_bundle)
    least = least_memory(maisi, *half)
    ask = ("generate", *half, "--spacing", 5, 5, 5, "--force", "--steps", 1)
    answer = maisi(*ask, "--memory", least, "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert (tmp_path / "out" / "sample_000_ct.nii.gz").exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_least_memory_that_a_refusal_names_is_accepted_and_less_is_not(
    maisi: Maisi, tiny_bundle: Path, precision: str
) -> None:
    ask = (*SIZE, "-b", tiny_bundle, "--precision", precision)
    least = least_memory(maisi, *ask)
    assert maisi("plan", *ask, "--memory", least).code == 0
    assert maisi("plan", *ask, "--memory", least - 10**6).code == 2


@pytest.fixture
def codec_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The autoencoder of the tiny bundle alone: what it stores between passes decides how much memory it needs."""
    whole = load_bundle(tiny_bundle)
    info = whole.info.model_copy(update={"name": "codec", "scheduler": None})
    return save_bundle(Bundle.of(info, {"autoencoder": whole.autoencoder}), tmp_path / "codec")


def bound_that_moves(maisi: Maisi, place: str, *ask: object) -> int:
    """A memory (bytes) between the least one and that of plans that keep all in memory, for which some tensor moves."""
    least, wide = least_memory(maisi, *ask), maisi("plan", *ask, "--memory", "4GB", "--json").json
    most = wide["fixed_bytes"] + max(plan["peak_bytes"] for plan in wide["plans"].values())
    for share in (0.8, 0.6, 0.4, 0.2, 0.1, 0.05):
        bound = round(least + share * (most - least))
        told = maisi("plan", *ask, "--memory", bound, "--json").json["plans"].values()
        if any(tensor["place"] == place for plan in told for tensor in plan["tensors"]):
            return bound
    raise AssertionError(f"no plan between {least} and {most} bytes keeps a tensor in {place}")


def test_a_scratch_folder_takes_tensors_and_is_left_empty(
    maisi: Maisi, codec_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    resampled = with_spacing(patient.grid, (4.0, 4.0, 4.0)).shape
    plan = ("--size", *resampled, *EXACT, "-b", codec_bundle)
    assert "(--scratch may lower that)" in maisi("plan", *plan, "--memory", "1MB").err
    bound = ("--memory", bound_that_moves(maisi, "disk", *plan, "--scratch", scratch), "--scratch", scratch)

    ask = ("reconstruct", patient.ct, "--spacing", 4, 4, 4, *EXACT, "-b", codec_bundle)
    assert maisi(*ask, "-o", tmp_path / "whole").code == 0
    assert maisi(*ask, "-o", tmp_path / "cut", *bound).code == 0
    whole, cut = (np.asarray(nib.load(tmp_path / n / "reconstruction.nii.gz").dataobj, int) for n in ("whole", "cut"))
    assert np.abs(whole - cut).max() <= 1  # rounding to int16
    assert files_in(scratch) == []


def test_a_plan_for_a_gpu_leaves_tensors_to_the_host(maisi: Maisi, codec_bundle: Path) -> None:
    gpu = (*SIZE, *EXACT, "-b", codec_bundle, "--device", "cuda", "--host-memory", "1GB")
    bound = bound_that_moves(maisi, "host", *gpu)
    told = maisi("plan", *gpu, "--memory", bound, "--json").json["plans"].values()
    assert 0 < max(each["host_bytes"] for each in told) <= 10**9
    assert "memory, host, disk, recomputed" in maisi("plan", *gpu, "--memory", bound).out


def test_a_bound_on_a_gpu_that_cannot_be_met_names_what_would_help(maisi: Maisi, tiny_bundle: Path) -> None:
    answer = maisi("plan", *SIZE, *EXACT, "--memory", "1MB", "-b", tiny_bundle, "--device", "cuda")
    assert answer.code == 2
    assert "(--scratch or --host-memory may lower that)" in answer.err


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
    assert f"does not fit into {memory.replace('MB', '.0 MB')}" in answer.err
    assert "go to the process and the networks; accepted: --memory" in answer.err
    assert files_in(tmp_path) == []


def test_a_bound_on_memory_does_not_change_the_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", *SIZE, *EXACT, "--spacing", 5, 5, 5, "--force", "--steps", 1, "-b", tiny_bundle)
    assert maisi(*ask, "-o", tmp_path / "whole").code == 0
    least = least_memory(maisi, *SIZE, *EXACT, "-b", tiny_bundle)
    assert maisi(*ask, "-o", tmp_path / "cut", "--memory", least).code == 0
    whole, cut = (np.asarray(nib.load(tmp_path / n / "sample_000_ct.nii.gz").dataobj, int) for n in ("whole", "cut"))
    assert np.abs(whole - cut).max() <= 1  # rounding to int16
    assert (whole != cut).mean() < 0.01


def test_encoding_and_decoding_stay_within_a_bound_too(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    ask = ("reconstruct", patient.ct, "--spacing", 4, 4, 4, *EXACT, "-b", tiny_bundle, "--json")
    whole = maisi(*ask, "-o", tmp_path / "whole").json
    resampled = with_spacing(patient.grid, (4.0, 4.0, 4.0)).shape
    least = least_memory(maisi, "--size", *resampled, *EXACT, "-b", tiny_bundle)
    answer = maisi(*ask, "-o", tmp_path / "cut", "--memory", least)
    assert answer.code == 0, answer.err
    cut = answer.json
    assert cut["reconstruction"]["psnr_db"] == pytest.approx(whole["reconstruction"]["psnr_db"], abs=1e-3)


def test_a_spacing_that_makes_more_voxels_than_memory_holds_is_refused_before_anything_is_resampled(
    maisi: Maisi, codec_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    fine = ("--spacing", 0.1, 0.1, 0.1, "--force", "--precision", "float32", "--bundle", codec_bundle)
    answer = maisi("encode", patient.ct, *fine, "--memory", "1GB", "--out", tmp_path / "a.safetensors")
    assert answer.code == 2
    assert "0.1 x 0.1 x 0.1 mm makes" in answer.err
    assert "accepted: a larger spacing, or --memory" in answer.err
    assert not (tmp_path / "a.safetensors").exists()


def test_a_training_is_planned_with_the_networks_of_its_bundle_for_the_largest_case(maisi: Maisi) -> None:
    ask = ("plan", "--train", "inpaint", "--size", 64, 64, 32)
    told = maisi(*ask).out
    assert "those of bundle ct-small (--bundle)" in told
    assert "controlnet: takes cases whole, the largest of 64 x 64 x 32 voxels (--size)" in told
    refused = maisi(*ask, "--bundle", "ct-segmenter")
    assert (refused.code, "has no autoencoder, which goes before; it has segmenter" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--train", "inpaint", "--size", 0, 8, 8), "size (0, 8, 8) has an axis without voxels"),
        (("--train", "tiny", "--size", 64, 64, 64), "--size is of recipes that take cases whole"),
        (("--train", "tiny", "--memory", "8GB"), "--memory is what --train tells"),
        (("--size", 8, -8, 8, "--memory", "8GB"), "size (8, -8, 8) has an axis without voxels"),
    ],
)
def test_what_no_plan_can_heed_is_refused(maisi: Maisi, asked: tuple, said: str) -> None:
    refused = maisi("plan", *asked)
    assert (refused.code, said in " ".join(refused.err.split())) == (2, True), refused.err


def test_a_step_of_a_training_is_divided_by_its_slabs(maisi: Maisi, tmp_path: Path) -> None:
    part = {
        "network": {"channels": [8, 16], "num_res_blocks": [1, 1], "norm_groups": 2},
        "loop": {"num_steps": 1},
        "patch": [64, 64, 64],
    }
    recipe = {"name": "x", "description": "x", "licence": "own", "groups": {"a": 1.0}, "autoencoder": part}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    ask = ("plan", "--train", tmp_path / "recipe.yaml", "--json", "-s", "autoencoder.optimization.precision=float32")
    whole, split = (maisi(*ask, "-s", f"autoencoder.optimization.slabs={n}").json["autoencoder"] for n in (1, 4))
    assert (whole["processes"], split["processes"]) == (1, 4)
    assert split["activations"] < 0.6 * whole["activations"]  # halos are much of small patches
    assert split["weights"] == whole["weights"]
    told = maisi(*ask[:3], *ask[4:], "-s", "autoencoder.optimization.slabs=4")
    assert "in each of the processes" in told.out
    assert maisi("plan", "-s", "autoencoder.optimization.slabs=4").code == 2
