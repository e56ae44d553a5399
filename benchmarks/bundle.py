"""What a bundle can do: reconstruction of a manifest's validation split, adherence of ten generated samples.

    python benchmarks/bundle.py MANIFEST [--bundle ct-small] [--samples 10]

Prints the tables of the model card and writes benchmarks/results/bundle.json.
"""

import argparse
from pathlib import Path

from maisi.bundle.bundle import load_bundle
from maisi.data.manifest import read_manifest
from maisi.recipes.card import measure_bundle, quality_tables, write_quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--cases", type=int, default=None, help="at most so many cases of each group")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.manifest)
    validation = [c for c in manifest if c.split == "validation" and c.image is not None]
    if arguments.cases is not None:
        groups = {c.group for c in validation}
        validation = [c for g in sorted(groups) for c in [c for c in validation if c.group == g][: arguments.cases]]
    quality = measure_bundle(load_bundle(arguments.bundle), validation, manifest, arguments.samples, on_case=print)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    write_quality(quality, results / "bundle.json")
    print(quality_tables(quality))


if __name__ == "__main__":
    main()
