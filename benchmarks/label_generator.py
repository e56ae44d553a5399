"""How far maps that a label generator draws are from those it learned from, and how well it obeys sizes.

    python benchmarks/label_generator.py RUN [--count 48] [--half] [--out pictures]

RUN is the folder of `maisi train labels`: its bundle, and its training maps in `maps`, of which the structures that the
bundle draws count. `--half` rounds its weights to float16, as those that ship. Each generated map is judged on the
voxels that `maisi labels generate` writes, and compared with every training map (one less the mean Dice of its
structures, shift and scale of each axis taken out); beside that stands how far each training map is from the nearest
one of another person. Sizes are asked for at random, without the change that `--anatomy` makes afterwards: what is told
is the network's own obedience. Pictures of all maps go to `--out`, numbers to benchmarks/results/label_generator.json.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.regions import BodyRegion
from maisi.anatomy.slots import ABSENT, measured_sizes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.compute.compute import Compute
from maisi.pipelines.label_codec import channels_of
from maisi.pipelines.label_generator import GeneratedLabels, generator_info
from maisi.pipelines.preview import write_png
from maisi.pipelines.quality.judge import judge_labels
from maisi.pipelines.requests import GenerateLabelsRequest
from maisi.recipes.label_maps import in_channels
from maisi.runs.tasks.labels_generate import grid_of, labels_preview
from maisi.space.label_files import read_labels
from maisi.space.smooth_labels import resample_smoothly
from maisi.space.volume import LabelMap

ASKED = ("liver", "stomach", "pancreas", "colon", "gallbladder")
COMPUTE = Compute(precision="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("label_maps"))
    parser.add_argument("--half", action="store_true")
    arguments = parser.parse_args()
    bundle, paths = load_bundle(arguments.run / "bundle"), sorted((arguments.run / "maps").glob("*.nii.gz"))
    if arguments.half:
        with TemporaryDirectory() as folder:
            bundle = load_bundle(save_bundle(bundle, Path(folder) / "half", dtype=torch.float16))
            bundle = Bundle.of(bundle.info, {name: bundle.network(name) for name in bundle.names})
    arguments.out.mkdir(parents=True, exist_ok=True)
    channels, vocabulary = channels_of(bundle), load_vocabulary()
    learned = {
        path.name.removesuffix(".nii.gz"): Likeness.of(in_channels(read_labels(path), channels, vocabulary))
        for path in paths
    }
    drawn = [draw(bundle, index, arguments.steps, arguments.out) for index in range(arguments.count)]
    nearest = [to_nearest(Likeness.of(each.labels), learned) for each in drawn]
    between = between_people(learned)
    results = {
        "maps": len(drawn),
        "weights": "float16" if arguments.half else "as trained",
        "threads": torch.get_num_threads(),
        "seconds_a_map": round(float(np.median([each.seconds for each in drawn])), 2),
        "by_region": by_region(drawn),
        "to_nearest_training_map": spread([distance for distance, _ in nearest]),
        "nearest": [name for _, name in nearest],
        "between_training_maps_of_two_people": spread(between),
        "obedience": obedience(drawn),
    }
    print(json.dumps(results, indent=1))
    path = Path(__file__).parent / "results" / "label_generator.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Drawn:
    """A map as the network draws it, sizes that were asked for, and whether it passes its check."""

    region: str
    labels: LabelMap
    asked: dict[str, float]
    passed: bool
    seconds: float


def draw(bundle: Bundle, index: int, steps: int, out: Path) -> Drawn:
    """Map `index`, regions in turn, with sizes asked for where a trunk is shown."""
    region, rng = list(BodyRegion)[index % len(BodyRegion)].name.lower(), np.random.default_rng([7, index])
    asked = {name: float(rng.uniform(0.15, 0.85)) for name in ASKED} if region == "abdomen" else {}
    told = generator_info(bundle)
    written = grid_of(GenerateLabelsRequest(), told)
    source = GeneratedLabels(bundle, region, written, asked, steps, compute=COMPUTE)
    started = time.perf_counter()
    labels = source.draw_mended(torch.Generator().manual_seed(index))
    fine = resample_smoothly(labels, written)
    seconds = time.perf_counter() - started
    report = judge_labels(fine)
    title, mark = f"{bundle.name} · {region} · map {index}", "" if report.passed else f"FAILED: {report.in_brief}"
    write_png(labels_preview(fine, title, mark), out / f"map_{index:02d}_{region}.png")
    return Drawn(region, labels, asked, report.passed, seconds)


def by_region(drawn: Sequence[Drawn]) -> dict[str, dict[str, int]]:
    """Of each region how many maps there are, how many pass their check, and how many structures they show."""
    told = {}
    for region in dict.fromkeys(each.region for each in drawn):
        own = [each for each in drawn if each.region == region]
        told[region] = {
            "maps": len(own),
            "passed": sum(each.passed for each in own),
            "structures": int(np.median([len(np.unique(each.labels.array)) - 1 for each in own])),
        }
    return told


def to_nearest(one: Likeness, others: dict[str, Likeness]) -> tuple[float, str]:
    """The distance to the nearest map, and its name."""
    return min((one.distance(other), name) for name, other in others.items())


def between_people(learned: dict[str, Likeness], most: int = 24) -> list[float]:
    """How far some of the maps are from the nearest one of another person."""
    chosen = [list(learned)[int(i)] for i in np.linspace(0, len(learned) - 1, min(most, len(learned)))]
    return [
        to_nearest(learned[name], {k: v for k, v in learned.items() if person(k) != person(name)})[0] for name in chosen
    ]


def person(name: str) -> str:
    """Whose map it is: a case in several variations, or a phantom."""
    return name.rsplit("__", 2)[0]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {
        "least": round(min(values), 3),
        "median": round(float(np.median(values)), 3),
        "greatest": round(max(values), 3),
    }


def obedience(drawn: Sequence[Drawn]) -> dict[str, dict[str, float]]:
    """By structure: in how many maps it is, the correlation of asked and obtained sizes, and the mean difference."""
    told = {}
    for name in ASKED:
        own = [each for each in drawn if name in each.asked]
        pairs = [(each.asked[name], measured_sizes(each.labels, [name])[name]) for each in own]
        there = [(a, b) for a, b in pairs if b != ABSENT]
        if len(there) < 3:
            continue
        a, b = np.array(there).T
        told[name] = {
            "asked": len(pairs),
            "there": len(there),
            "correlation": round(float(np.corrcoef(a, b)[0, 1]), 2),
            "bias": round(float((b - a).mean()), 3),
        }
    return told


if __name__ == "__main__":
    main()
