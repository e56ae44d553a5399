"""`torchrun -m maisi ...`: several processes make one volume together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from command_line import Maisi, Patient

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from processes import maisi_on_ranks

SMALL = ("--region", "chest", "--size", 24, 20, 16, "--spacing", 14, 18, 20, "--steps", 2, "--seed", 4)
EXACT = ("--precision", "float32")  # ranks agree to its rounding; to bfloat16's where that is the default
LONG = ("--size", 48, 48, 48, "--spacing", 8, 8, 8, "--steps", 1000)  # a minute or more
HU_OF_ROUNDING = 1  # volumes are whole HU: a difference of rounding can tip one over


def torchrun(num_ranks: int, *arguments: object) -> list[str]:
    options = ["--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "maisi", *map(str, arguments)]


def run(num_ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = torchrun(num_ranks, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).astype(int)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_generate_what_one_process_generates(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path, num_ranks: int
) -> None:
    assert maisi("generate", *SMALL, *EXACT, "-b", tiny_bundle, "--threads", 1, "-o", tmp_path / "one").code == 0
    start = run if num_ranks == 2 else maisi_on_ranks
    done = start(num_ranks, "generate", *SMALL, *EXACT, "-b", tiny_bundle, "-o", tmp_path / "many")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    one, many = (voxels(tmp_path / folder / "sample_000_ct.nii.gz") for folder in ("one", "many"))
    assert np.abs(one - many).max() <= HU_OF_ROUNDING
    assert one.std() > 10  # there is something to compare
    record = json.loads((tmp_path / "many" / "run.json").read_text())
    assert record["ranks"] == num_ranks
    assert done.stdout.count("sample_000_ct.nii.gz") == 1  # one rank tells


def test_ranks_encode_and_decode_within_a_budget(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent, ct = tmp_path / "ct.safetensors", tmp_path / "ct.nii.gz"
    done = maisi_on_ranks(2, "encode", patient.ct, *EXACT, "-b", tiny_bundle, "-o", latent)
    assert done.returncode == 0, done.stderr
    done = maisi_on_ranks(2, "decode", latent, *EXACT, "-b", tiny_bundle, "--memory", "480MB", "-o", ct)
    assert done.returncode == 0, done.stderr
    assert maisi("encode", patient.ct, *EXACT, "-b", tiny_bundle, "-o", tmp_path / "alone.safetensors").code == 0
    decode = ("decode", tmp_path / "alone.safetensors", *EXACT, "-b", tiny_bundle)
    assert maisi(*decode, "-o", tmp_path / "alone.nii.gz").code == 0
    assert np.abs(voxels(ct) - voxels(tmp_path / "alone.nii.gz")).max() <= HU_OF_ROUNDING


def test_a_request_that_is_refused_is_refused_once_and_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    done = run(2, "generate", *SMALL, "-b", tiny_bundle, "-o", tmp_path / "out")
    assert done.returncode != 0
    assert done.stderr.count("is not empty") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_command_that_is_not_split_says_which_are(patient: Patient, tmp_path: Path) -> None:
    done = maisi_on_ranks(2, "reconstruct", patient.ct, "-o", tmp_path / "out")
    assert done.returncode != 0
    assert (
        "torchrun splits generate, encode, decode, reproduce, train, evaluate; start `maisi reconstruct` without it"
        in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_a_killed_rank_ends_the_run_within_seconds_and_leaves_nothing_half(tiny_bundle: Path, tmp_path: Path) -> None:
    command = torchrun(2, "generate", *LONG, "-b", tiny_bundle, "-o", tmp_path / "out")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        workers = wait_for_ranks(process.pid, 2)
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (tmp_path / "out").exists()  # they have begun
        os.kill(workers[-1], signal.SIGKILL)
        started = time.monotonic()
        assert process.wait(timeout=60) != 0
        assert time.monotonic() - started < 30
        process.stderr.close()
    left = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert all(path.name.startswith(".partial-") for path in left)


def wait_for_ranks(launcher: int, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [child.pid for child in psutil.Process(launcher).children()]
        if len(found) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


def test_ranks_train_what_one_process_trains_and_either_goes_on_with_it(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    case = {
        "id": "p1",
        "group": "chest",
        "image": str(patient.ct),
        "region": "chest",
        "licence": "own",
        "split": "training",
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [case]}))
    part = {
        "network": {"channels": [8, 8], "num_res_blocks": [1, 1], "norm_groups": 2},
        "loop": {"num_steps": 4, "save_every": 2},
        "optimization": {"accumulate": 2, "precision": "float32", "warmup": 1, "sharded": True},
        "batch_size": 1,
        "patch": [16, 16, 16],
    }
    recipe = {"name": "tiny", "description": "x", "licence": "own", "groups": {"chest": 1.0}, "autoencoder": part}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    given = ("train", "autoencoder", tmp_path / "recipe.yaml", "--manifest", tmp_path / "manifest.json", "--threads", 1)
    done = maisi_on_ranks(2, *given, "-o", tmp_path / "many")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "many" / "bundle")  # one rank tells
    (tmp_path / "many" / "run.json").unlink()  # as if it was killed before its end
    (tmp_path / "one").mkdir()
    for folder in ("one", "many"):
        alone = maisi(*given, "-o", tmp_path / folder)
        assert alone.code == 0, alone.err
    lines = [
        (tmp_path / folder / "autoencoder" / "metrics.jsonl").read_text().splitlines() for folder in ("one", "many")
    ]
    losses = [[json.loads(line)["loss"] for line in of] for of in lines]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # of float32 and Adam
    done = maisi_on_ranks(2, *given, "-s", "autoencoder.optimization.accumulate=3", "-o", tmp_path / "odd")
    assert "2 processes cannot share 3 batches a step evenly" in done.stderr
