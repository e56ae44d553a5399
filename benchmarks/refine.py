"""What zoom refinement does to small organs of generated volumes: how they look against their labels, before and after.

    python benchmarks/refine.py [--bundle ct-small] [--labels FILE ...] [--seeds 0 1 2] [--pictures DIR]

Volumes are generated at 4 mm, of an abdomen of each seed and from the label maps given; their gallbladder, duodenum
and pancreas are drawn again at the bundle's finest spacing. Writes benchmarks/results/refine.json and refine.md.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.pipelines.generate import Sample, generate
from maisi.pipelines.preview import lesion_preview, write_png
from maisi.pipelines.refine import Refined, refine
from maisi.pipelines.refine_request import RefineRequest
from maisi.pipelines.requests import GenerateRequest
from maisi.space.files import write_labels, write_volume

ORGANS = ("gallbladder", "duodenum", "pancreas")


def samples(arguments: argparse.Namespace) -> Iterator[tuple[str, Sample]]:
    """Volumes at 4 mm by name."""
    asked = {"bundle": arguments.bundle, "region": "abdomen", "spacing": (4.0, 4.0, 4.0)}
    for seed in arguments.seeds:
        yield f"seed {seed}", next(generate(GenerateRequest.model_validate({**asked, "seed": seed})))
    for path in arguments.labels:
        given = {**asked, "labels": path, "enclose": True}
        yield path.parent.name, next(generate(GenerateRequest.model_validate(given)))


def organs_of(sample: Sample) -> tuple[str, ...]:
    """The small organs that it has."""
    assert sample.labels is not None
    vocabulary, present = load_vocabulary(), np.unique(sample.labels.array)
    return tuple(name for name in ORGANS if vocabulary.id(name) in present)


def refined(sample: Sample, arguments: argparse.Namespace, folder: Path, **more: Any) -> Refined:
    """The volume with its small organs drawn again."""
    assert sample.labels is not None
    organs = organs_of(sample)
    write_volume(sample.volume, folder / "ct.nii")
    write_labels(sample.labels, folder / "labels.nii")
    fields = {"source": folder / "ct.nii", "labels": folder / "labels.nii", "structures": organs}
    return refine(RefineRequest.model_validate({**fields, "bundle": arguments.bundle, **more}))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows and their medians as Markdown."""
    lines = [
        "| labels | structure | ml | expected contrast, HU | before | after | correlation before | after |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        before, after = row["before"], row["after"]
        lines.append(
            f"| {row['labels']} | {row['structure']} | {row['ml']} | {before['expected_hu']} | "
            f"{before['contrast_hu']} | {after['contrast_hu']} | {before['correlation']} | {after['correlation']} |"
        )
    for name in ORGANS:
        own = [row for row in rows if row["structure"] == name]
        if own:
            errors, correlations = (
                [float(np.median([of(row[when]) for row in own])) for when in ("before", "after")]
                for of in (lambda a: abs(a["contrast_hu"] - a["expected_hu"]), lambda a: a["correlation"])
            )
            lines.append(
                f"| median | {name} | | error of contrast | {errors[0]:.0f} | {errors[1]:.0f} | "
                f"{correlations[0]:.2f} | {correlations[1]:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--labels", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--pictures", type=Path, default=None)
    arguments = parser.parse_args()
    rows = []
    for name, sample in samples(arguments):
        if not organs_of(sample):
            print(f"{name}: none of {', '.join(ORGANS)}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            made = refined(sample, arguments, Path(folder))
        seconds = round(time.perf_counter() - start, 1)
        rows += [{"labels": name, "seconds": seconds, **each.model_dump()} for each in made.structures]
        print(json.dumps(rows[-len(made.structures) :]), flush=True)
        if arguments.pictures is not None:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            picture = lesion_preview(made.before, made.volume, made.changed, f"{name}: {', '.join(ORGANS)}")
            write_png(picture, arguments.pictures / f"{name.replace(', ', '_').replace(' ', '_')}.png")
    results = Path(__file__).parent / "results"
    (results / "refine.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (results / "refine.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
