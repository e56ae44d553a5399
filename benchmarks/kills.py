"""Work killed at random moments again and again, against runs that nobody disturbed.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--kinds prepare autoencoder encode diffusion controlnet many]

Makes phantoms as scans, and for each kind of work lets it run once whole, then kills it (SIGKILL) at random moments of
that time until the count is reached, starts it again each time, and compares what is left whenever it came to its end:
all files of prepared cases, latents and samples, the weights of every bundle. Moments are drawn from the time of a
whole run; for `many`, which runs whole at the same time, they are when some more samples were begun, and a random
moment later. Prints a line a kind and writes it to benchmarks/results/kills.json at once. `encode` and what follows it
need what goes before, which runs without kills where --kinds lacks it; `many` needs nothing.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

SHORT = (
    "autoencoder.loop.num_steps=30",
    "autoencoder.loop.validate_every=10",
    "autoencoder.loop.save_every=1",
    "autoencoder.patch=[16, 16, 16]",
    "diffusion.loop.num_steps=30",
    "diffusion.loop.validate_every=0",
    "diffusion.loop.save_every=1",
    "diffusion.sizes=[[8, 8, 8]]",
    "controlnet.loop.num_steps=30",
    "controlnet.loop.validate_every=0",
    "controlnet.loop.save_every=1",
    "controlnet.sizes=[[8, 8, 8]]",
    "latents.num_phantoms=0",
    "latents.max_size=[32, 32, 32]",
)

KINDS = ("prepare", "autoencoder", "encode", "diffusion", "controlnet", "many")
REQUESTS = """
count: {count}
size: 32
spacing: {{uniform: [4.5, 5]}}
steps: 2
region: {{choice: [chest, abdomen]}}
quality: {{on_failure: keep}}
compute: {{threads: 1}}
"""


def make_scans(folder: Path, count: int = 6) -> None:
    for k in range(count):
        rng = np.random.default_rng(k)
        grid = Grid.centered((48, 40, 40), (8.0, 8.0, 8.0))
        labels = draw_phantom(("chest", "abdomen")[k % 2], grid, rng)
        folder.mkdir(exist_ok=True)
        write_volume(render_phantom(labels, rng), folder / f"p{k}.nii.gz")
        write_labels(LabelMap(labels.array.astype(np.uint8), grid), folder / f"p{k}_labels_maisi.nii.gz")


def maisi(*words: object) -> list[str]:
    return [sys.executable, "-m", "maisi", *map(str, words)]


def works(root: Path, run: str) -> dict[str, tuple[list[str], Path]]:
    """The command of each kind of work, and where its results are; what goes before is that of the whole run."""
    store, bundle = root / "whole" / "prepare", lambda kind: root / "whole" / kind / "bundle"
    short = [word for setting in SHORT for word in ("--set", setting)]
    out = {kind: root / run / kind for kind in KINDS}
    given = ("--manifest", store, *short)
    return {
        "prepare": (maisi("prepare", root / "scans", "--multiple", 16, "--out", out["prepare"]), out["prepare"]),
        "autoencoder": (
            maisi("train", "autoencoder", "tiny", *given, "--out", out["autoencoder"]),
            out["autoencoder"] / "bundle",
        ),
        "encode": (
            maisi("encode", "--manifest", store, "--bundle", bundle("autoencoder"), "--out", out["encode"]),
            out["encode"],
        ),
        "diffusion": (
            maisi("train", "diffusion", "tiny", *given, "--bundle", bundle("autoencoder"), "--out", out["diffusion"]),
            out["diffusion"] / "bundle",
        ),
        "controlnet": (
            maisi("train", "controlnet", "tiny", *given, "--bundle", bundle("diffusion"), "--out", out["controlnet"]),
            out["controlnet"] / "bundle",
        ),
        "many": (maisi("generate", "--requests", root / "requests.yaml", "--out", out["many"]), out["many"]),
    }


class Beside:
    """A command that runs undisturbed while something else is done."""

    def __init__(self, command: list[str]) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def seconds(self) -> float:
        """How long it took, when it has ended; raises `SystemExit` where it failed."""
        if self.process.wait():
            raise SystemExit(f"{self.process.args} ended with {self.process.returncode}")
        return time.perf_counter() - self.started


def killed(command: list[str], seconds: float, count: int, draws: random.Random) -> int:
    """Start the command and kill it at a random moment, `count` times at most; how often it was alive to be killed.

    A process that is killed after its record was written, which comes last, has done its work.
    """
    kills, record = 0, Path(command[-1]) / "run.json"
    while kills < count and not record.is_file():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, told = process.communicate(timeout=draws.uniform(0.5, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed after a kill: {told}")
        break
    return kills


def killed_on_the_way(command: list[str], samples: int, count: int, draws: random.Random) -> int:
    """Start the command and kill it whenever a few more files are there, `count` times at most; how often it was."""
    folder, kills, most = Path(command[-1]), 0, int(1.6 * FILES * samples / count)
    while kills < count:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        enough = files_in(folder) + draws.randint(0, most)
        while process.poll() is None and files_in(folder) < enough:
            time.sleep(0.02)
        time.sleep(draws.uniform(0, 1))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    return kills


FILES = 5  # of a sample


def files_in(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))  # which passes over a folder that just goes away


def same(ours: Path, theirs: Path) -> list[str]:
    """Names of files that differ: tensors by their values, all else but records byte by byte."""
    names = {p.relative_to(each).as_posix() for each in (ours, theirs) for p in each.rglob("*") if p.is_file()}
    return sorted(name for name in names if "run." not in name and not _equal(ours / name, theirs / name))


def _equal(a: Path, b: Path) -> bool:
    if not (a.is_file() and b.is_file()):
        return False
    if a.suffix != ".safetensors":
        return a.name == "checksums.json" or a.read_bytes() == b.read_bytes()
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--samples", type=int, default=100, help="of many")
    arguments = parser.parse_args()
    path = Path(__file__).parent / "results" / "kills.json"
    draws, found = random.Random(arguments.seed), json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_scans(root / "scans")
        (root / "requests.yaml").write_text(REQUESTS.format(count=arguments.samples), encoding="utf-8")
        for run in ("whole", "parts"):
            (root / run).mkdir()
        for kind, (command, result) in works(root, "whole").items():
            again, parts = works(root, "parts")[kind]
            if kind not in arguments.kinds:
                if any(KINDS.index(kind) < KINDS.index(asked) for asked in arguments.kinds if asked != "many"):
                    Beside(command).seconds()
                    Beside(again).seconds()
                continue
            whole = Beside(command)
            seconds = 0.0 if kind == "many" else whole.seconds()  # kills of `many` do not depend on it
            kills, ended, differ = 0, 0, list[str]()
            while kills < arguments.kills:
                left = arguments.kills - kills
                if kind == "many":
                    kills += killed_on_the_way(again, arguments.samples, left, draws)
                else:
                    kills += killed(again, seconds, left, draws)
                if not (Path(again[-1]) / "run.json").is_file():
                    Beside(again).seconds()
                seconds = seconds or whole.seconds()
                ended, differ = ended + 1, differ + same(result, parts)
                if kills < arguments.kills:
                    shutil.rmtree(root / "parts" / kind)
            found[kind] = {"seconds": round(seconds, 1), "kills": kills, "runs to the end": ended}
            found[kind]["files that differ"] = sorted(set(differ))
            if kind == "many":
                found[kind]["samples"] = arguments.samples
            print(f"{kind}: {found[kind]}", flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
