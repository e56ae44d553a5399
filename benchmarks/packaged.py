"""The small bundles beside ct-small, made of trainings and what was measured of them.

    python benchmarks/packaged.py segmenter RUN --manifest MANIFEST  # after benchmarks/segmenter.py
    python benchmarks/packaged.py labels RUN --manifest MANIFEST  # after benchmarks/label_generator.py

RUN is the folder of `maisi train segmenter ct-segmenter` or `maisi train labels ct-labels`, MANIFEST what it learned
from. Weights become float16 in `src/maisi/bundle/packaged/`; the card has the numbers of `benchmarks/results/`.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maisi.bundle.bundle import load_bundle, save_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.recipes.card import attribution

HERE = Path(__file__).parent
PACKAGED = HERE.parent / "src/maisi/bundle/packaged"
USE = "**Not for diagnosis, treatment or any other clinical use.** Nobody may use it to identify anybody."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(CARDS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    arguments = parser.parse_args()
    name, results, card = CARDS[arguments.what]
    measured = json.loads((HERE / "results" / results).read_text(encoding="utf-8"))
    cases = [case for case in read_manifest(arguments.manifest) if case.split == "training"]
    bundle = load_bundle(arguments.run / "bundle")
    info = bundle.info.model_copy(update={"name": name})
    done = dataclasses.replace(bundle, info=info, model_card=card(measured, cases))
    print(save_bundle(done, PACKAGED / name, dtype=torch.float16, overwrite=True))


def segmenter_card(measured: dict[str, Any], cases: list[Case]) -> str:
    """The card of the segmenter: what of the validation CTs it finds."""
    rows = [
        f"| {name} | {each['cases']} | {each['mean']:.2f} ({each['low']:.2f} to {each['high']:.2f}) | "
        f"{_or_none(each['surface_dice'], '.2f')} | {_or_none(each['hd95_mm'], '.0f')} |"
        for name, each in measured["classes"].items()
    ]
    tissues = ", ".join(f"{name} {each['mean']:.2f}" for name, each in measured["tissues"].items())
    return f"""# ct-segmenter

Tells 34 structures of a CT at 4 mm. It is there to judge what was generated, trained on a CPU in about an hour from few
labels; for work on patients' scans take TotalSegmentator. {USE}

## Measured on CTs that it has not learned from
`python benchmarks/segmenter.py MANIFEST --bundle ct-segmenter`; Dice with a 95 % interval by bootstrap over cases,
surface Dice within 3 mm, HD95 in mm.

| structure | cases | Dice | surface Dice | HD95 |
|---|---|---|---|---|
{chr(10).join(rows)}

Against Hounsfield units (Dice): {tissues}. A structure that is not in the table has no held-out CT with labels:
nothing is known of how well it is found.

## How it was made
`maisi train segmenter` with the recipe `ct-segmenter`, first 3625 steps on patches of 48^3 voxels, then 3000 on 64^3
(`start_from`). Phantoms, rendered, were learned from too. Labels that name few structures teach those alone.

## Data
{len(cases)} training CTs. Licence of the weights: CC BY-SA 4.0, for the VerSe scans.

{attribution(cases)}
"""


def labels_card(measured: dict[str, Any], cases: list[Case]) -> str:
    """The card of the label generator: how far from its training maps it draws, and how it heeds sizes."""
    near, apart = measured["to_nearest_training_map"], measured["between_training_maps_of_two_people"]
    rows = [
        f"| {name} | {each['there']} of {each['asked']} | {each['correlation']} | {each['bias']} |"
        for name, each in measured["obedience"].items()
    ]
    return f"""# ct-labels

Draws label maps of 64 x 56 x 56 voxels of 6 mm by an autoencoder of label bits and a rectified flow (MAISI,
arXiv 2409.11169, section 3.3), trained on a CPU in less than an hour. Real label maps, bent (what
`maisi generate` takes without a word), look better; this shows the paper's way. {USE}

## Measured
`python benchmarks/label_generator.py RUN`, {measured["maps"]} maps.
Distance: 1 - mean Dice of structures, shift and scale taken out.

| | least | median | greatest |
|---|---|---|---|
| generated to the nearest training map | {near["least"]} | {near["median"]} | {near["greatest"]} |
| training map to the nearest of another person | {apart["least"]} | {apart["median"]} | {apart["greatest"]} |

Sizes asked for (0 to 1) against drawn, before `--anatomy` corrects them:

| structure | there | correlation | bias |
|---|---|---|---|
{chr(10).join(rows)}

## Data
{len(cases)} label maps and 120 phantoms. Licence of the weights: CC BY-SA 4.0, for the VerSe maps.

{attribution(cases)}
"""


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


Card = Callable[[dict[str, Any], list[Case]], str]
CARDS: dict[str, tuple[str, str, Card]] = {
    "labels": ("ct-labels", "label_generator.json", labels_card),
    "segmenter": ("ct-segmenter", "segmenter.json", segmenter_card),
}

if __name__ == "__main__":
    main()
