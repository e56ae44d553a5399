"""The segmenter that ships with the package, made of a training and what was measured of it.

    python benchmarks/segmenter.py MANIFEST --bundle RUN/bundle
    python benchmarks/segmenter_package.py RUN --manifest MANIFEST

RUN is the folder of `maisi train segmenter ct-segmenter`, MANIFEST what it learned from. Weights become float16 in
`src/maisi/bundle/packaged/ct-segmenter`; the card has the numbers of benchmarks/results/segmenter.json.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from maisi.bundle.bundle import load_bundle, save_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.pipelines.segment import segmenter_of
from maisi.recipes.card import attribution

HERE = Path(__file__).parent
NAME = "ct-segmenter"
PACKAGED = HERE.parent / "src/maisi/bundle/packaged" / NAME
USE = "**Not for diagnosis, treatment or any other clinical use.** Nobody may use it to identify anybody."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    arguments = parser.parse_args()
    measured = json.loads((HERE / "results/segmenter.json").read_text(encoding="utf-8"))
    cases = [case for case in read_manifest(arguments.manifest) if case.split == "training"]
    bundle = load_bundle(arguments.run / "bundle")
    info = bundle.info.model_copy(update={"name": NAME})
    card = segmenter_card(measured, cases, len(segmenter_of(bundle).config.classes))
    print(
        save_bundle(
            dataclasses.replace(bundle, info=info, model_card=card), PACKAGED, dtype=torch.float16, overwrite=True
        )
    )


def segmenter_card(measured: dict[str, Any], cases: list[Case], num_classes: int) -> str:
    """The card of the segmenter: what of the validation CTs it finds."""
    rows = [
        f"| {name} | {each['cases']} | {each['mean']:.2f} ({each['low']:.2f} to {each['high']:.2f}) | "
        f"{_or_none(each['surface_dice'], '.2f')} | {_or_none(each['hd95_mm'], '.0f')} |"
        for name, each in measured["classes"].items()
    ]
    tissues = ", ".join(f"{name} {each['mean']:.2f}" for name, each in measured["tissues"].items())
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
{len(cases)} training CTs. Licence of the weights: CC BY-SA 4.0, for the VerSe scans.

{attribution(cases)}
"""


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
