"""The label generator that ships with the package, made of a training and what was measured of it.

    python benchmarks/label_generator.py RUN --count 60
    python benchmarks/label_generator_package.py RUN --manifest MANIFEST

RUN is the folder of `maisi train labels ct-labels`, MANIFEST what it learned from. Weights become float16 in
`src/maisi/bundle/packaged/ct-labels`; the card has the numbers of benchmarks/results/label_generator.json.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import load_bundle, save_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.pipelines.label_codec import channels_of
from maisi.pipelines.label_generator import generator_info
from maisi.recipes.card import attribution
from maisi.shapes import in_words

HERE = Path(__file__).parent
NAME = "ct-labels"
PACKAGED = HERE.parent / "src/maisi/bundle/packaged" / NAME
USE = "**Not for diagnosis, treatment or any other clinical use.** Nobody may use it to identify anybody."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    arguments = parser.parse_args()
    measured = json.loads((HERE / "results/label_generator.json").read_text(encoding="utf-8"))
    shown = {path.name.split("__")[0] for path in (arguments.run / "maps").glob("*__*__*.nii.gz")}
    cases = [case for case in read_manifest(arguments.manifest) if case.stem in shown]
    bundle = load_bundle(arguments.run / "bundle")
    told = generator_info(bundle)
    names = [load_vocabulary().name(id) for id in channels_of(bundle) if id]
    card = generator_card(measured, cases, names, (in_words(told.size), in_words(told.spacing_mm)))
    print(save_bundle(dataclasses.replace(bundle, model_card=card), PACKAGED, dtype=torch.float16, overwrite=True))


def generator_card(measured: dict[str, Any], cases: list[Case], names: list[str], grid: tuple[str, str]) -> str:
    """The card of the generator: what it draws, and how far that is from what it learned from."""
    regions = [
        f"| {region} | {each['maps']} | {each['passed']} | {each['structures']} |"
        for region, each in measured["by_region"].items()
    ]
    to_nearest = _spread(measured["to_nearest_training_map"])
    people = _spread(measured["between_training_maps_of_two_people"])
    return f"""# {NAME}

Draws label maps of {len(names)} structures, {grid[0]} voxels of {grid[1]} mm, by the design of MAISI (arXiv 2409.11169,
section 3.3): an autoencoder over the bits of the ids and a diffusion U-Net that is told sizes of organs. It is there
for teaching and tests: trained on a CPU in an hour and a half, from {len(cases)} people and phantoms. {USE}

## Measured
`python benchmarks/label_generator.py RUN`. A map passes by the checks of `maisi labels check`; `maisi labels generate`
draws again what does not.

| region | maps | passed at the first try | structures in a map, median |
|---|---|---|---|
{chr(10).join(regions)}

A distance is one less the mean Dice of the structures, shift and scale of each axis taken out. From a generated map to
the nearest training map it is {to_nearest}, from a training map to the nearest one of another person {people} (median,
least to greatest). Few people were learned from: take the maps for exercises.

## Structures
{", ".join(names)}

## How it was made
`maisi train labels {NAME} --manifest MANIFEST`, MANIFEST by `benchmarks/label_generator_manifest.py`.

## Data
Licence of the weights: CC BY 4.0.

{attribution(cases)}
"""


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['least']:.2f} to {values['greatest']:.2f})"


if __name__ == "__main__":
    main()
