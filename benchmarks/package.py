"""The networks that ship beside ct-small, made of a training and what was measured of it.

    python benchmarks/segmenter.py MANIFEST --bundle RUN/bundle
    python benchmarks/package.py ct-segmenter RUN --manifest MANIFEST

    python benchmarks/label_generator.py RUN --half
    python benchmarks/package.py ct-labels RUN --manifest MANIFEST

RUN is the folder of `maisi train segmenter ct-segmenter` or of `maisi train labels ct-labels`, MANIFEST what it learned
from. Weights become float16 in `src/maisi/bundle/packaged`; the card has the numbers of benchmarks/results.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.bundle.places import PACKAGED
from maisi.data.manifest import Case, read_manifest
from maisi.pipelines.label_codec import channels_of
from maisi.pipelines.label_generator import generator_info
from maisi.pipelines.segment import segmenter_of
from maisi.recipes.card import attribution
from maisi.runs.record import read_record
from maisi.shapes import in_words
from maisi.storage.folders import RUN_RECORD

HERE = Path(__file__).parent
USE = "**Not for diagnosis, treatment or any other clinical use.** Nobody may use it to identify anybody."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CARDS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.run / "bundle")
    info = bundle.info.model_copy(update={"name": arguments.name})
    card = CARDS[arguments.name](bundle, arguments.run, read_manifest(arguments.manifest))
    whole = dataclasses.replace(bundle, info=info, model_card=card)
    print(save_bundle(whole, PACKAGED / arguments.name, dtype=torch.float16, overwrite=True))


def measured(name: str) -> dict[str, Any]:
    """What a benchmark has written."""
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def segmenter_card(bundle: Bundle, run: Path, cases: Sequence[Case]) -> str:
    """The card of the segmenter: what of the validation CTs it finds."""
    training = [case for case in cases if case.split == "training"]
    found, num_classes = measured("segmenter"), len(segmenter_of(bundle).config.classes)
    rows = [
        f"| {name} | {each['cases']} | {each['mean']:.2f} ({each['low']:.2f} to {each['high']:.2f}) | "
        f"{_or_none(each['surface_dice'], '.2f')} | {_or_none(each['hd95_mm'], '.0f')} |"
        for name, each in found["classes"].items()
    ]
    tissues = ", ".join(f"{name} {each['mean']:.2f}" for name, each in found["tissues"].items())
    return f"""# ct-segmenter

Tells {num_classes} structures of a CT at 4 mm. It is there to judge what was generated, trained on a CPU in
about an hour from few labels; for work on patients' scans take TotalSegmentator. {USE}

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
{len(training)} training CTs. Licence of the weights: CC BY-SA 4.0, for the VerSe scans.

{attribution(training)}
"""


def labels_card(bundle: Bundle, run: Path, cases: Sequence[Case]) -> str:
    """The card of the label generator: what it draws, and how far that is from what it learned from."""
    shown = {path.name.split("__")[0] for path in (run / "maps").glob("*__*__*.nii.gz")}
    learned = [case for case in cases if case.stem in shown]
    told, found = generator_info(bundle), measured("label_generator")
    names = [load_vocabulary().name(id) for id in channels_of(bundle) if id]
    minutes = read_record(run / RUN_RECORD).seconds / 60
    regions = [
        f"| {region} | {each['maps']} | {each['passed']} | {each['structures']} |"
        for region, each in found["by_region"].items()
    ]
    obedience = ", ".join(f"{name} {each['correlation']:.2f}" for name, each in found["obedience"].items())
    to_nearest, people = found["to_nearest_training_map"], found["between_training_maps_of_two_people"]
    return f"""# ct-labels

Draws label maps of {len(names)} structures, {in_words(told.size)} voxels of {in_words(told.spacing_mm)} mm, by the
design of MAISI (arXiv 2409.11169, section 3.3): an autoencoder over the bits of the ids and a diffusion U-Net that is
told sizes of organs. It is there for teaching and tests: trained on two cores in {minutes:.0f} minutes, from
{len(learned)} people and phantoms. {USE}

## Measured
`python benchmarks/label_generator.py RUN --half`. A map passes by the checks of `maisi labels check`, on the
voxels that `maisi labels generate` writes, which draws again what does not pass.

| region | maps | passed at the first try | structures in a map, median |
|---|---|---|---|
{chr(10).join(regions)}

Sizes asked for and obtained, before `--anatomy` puts them right, correlate by: {obedience}.

A distance is one less the mean Dice of the structures, shift and scale of each axis taken out. From a generated map to
the nearest training map it is {_spread(to_nearest)}, from a training map to the nearest one of another person
{_spread(people)} (median, least to greatest). Few people were learned from: take the maps for exercises.

## Structures
{", ".join(names)}

## How it was made
`maisi train labels ct-labels --manifest MANIFEST`, MANIFEST by `benchmarks/label_generator_manifest.py`.

## Data
Licence of the weights: CC BY 4.0.

{attribution(learned)}
"""


CARDS: dict[str, Callable[[Bundle, Path, Sequence[Case]], str]] = {
    "ct-segmenter": segmenter_card,
    "ct-labels": labels_card,
}


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['least']:.2f} to {values['greatest']:.2f})"


if __name__ == "__main__":
    main()
