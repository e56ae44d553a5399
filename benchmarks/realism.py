"""How much the volumes of a bundle are like real ones, by the held-out cases of a manifest.

    python benchmarks/realism.py MANIFEST [--bundle ct-small] [--steps 10] [--no-sweep]

Prints the tables of the model card and writes benchmarks/results/realism.json.
"""

import argparse
from pathlib import Path

from maisi.bundle.bundle import load_bundle
from maisi.data.manifest import read_manifest
from maisi.recipes.realism import STEPS, measure_realism, realism_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--no-sweep", action="store_true", help="leave out the other numbers of steps")
    arguments = parser.parse_args()
    cases = [case for case in read_manifest(arguments.manifest) if case.image is not None and case.modality == "ct"]
    held_out, training = ([c for c in cases if c.split == split] for split in ("validation", "training"))
    sweep = () if arguments.no_sweep else STEPS
    bundle = load_bundle(arguments.bundle)
    found = measure_realism(
        bundle, held_out, training, arguments.steps, sweep, on_case=lambda line: print(line, flush=True)
    )
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "realism.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print(realism_tables(found))


if __name__ == "__main__":
    main()
