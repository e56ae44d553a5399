"""Lesions put into real CTs and taken out of them, beside real tumours.

    python benchmarks/inpaint.py MANIFEST [--bundle ct-small] [--pictures DIR]

For each lesion: whether every voxel away from it kept its bits, the HU of its core, how uneven it is (deviation after
smoothing by 3 mm), how steep its border is in HU a mm, and the steps at the border of what was changed. Writes
benchmarks/results/inpaint.json and inpaint.md.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest
from maisi.pipelines.inpaint import RIM_MM, carry_in, scene_of, validate_scene, with_bundle
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.preview import lesion_preview, write_png
from maisi.space.volume import Volume

PUT_IN = (
    ("totalseg_example_ct", "hepatic tumor", 30.0, 1),
    ("totalseg_example_ct", "kidney tumor", 25.0, 1),
    ("lidc0001_totalseg", "lung tumor", 22.0, 2),
    ("lidc0001_totalseg", "bone lesion", 14.0, 1),
    ("totalseg_example_ct", "pancreatic tumor", 16.0, 3),
    ("totalseg_s0009", "colon cancer primaries", 25.0, 1),
    ("pancreas_cb_001", "lung tumor", 15.0, 4),
    ("totalseg_aorta_crop", "bone lesion", 12.0, 5),
)
TAKEN_OUT = ("pyradiomics_lung1", "sts_014", "sts_008", "sts_025")
REAL = ("pyradiomics_lung1", *(f"sts_{n:03d}" for n in (1, 2, 4, 6, 8, 10, 12, 14, 18, 23, 24, 28, 31, 32, 34, 38)))


def look(volume: Volume, mask: np.ndarray) -> dict[str, float]:
    """What is measured of a lesion in a CT, real or not."""
    spacing = volume.grid.spacing
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    box = tuple(slice(max(0, part.start - 10), part.stop + 10) for part in box)
    hu, inside = volume.array[box], mask[box]
    core = morphology.erode(inside, 1.01 * max(spacing), spacing)
    core = core if core.sum() > 20 else inside
    ring = morphology.dilate(inside, 9.0, spacing) & ~morphology.dilate(inside, 3.0, spacing)
    border = morphology.dilate(inside, 1.01 * max(spacing), spacing) & ~core
    steep = np.sqrt(sum(np.square(each) for each in np.gradient(hu, *spacing)))
    smooth = ndimage.gaussian_filter(hu, [3.0 / s for s in spacing])
    return {
        "ml": round(float(inside.sum() * np.prod(spacing)) / 1000, 2),
        "hu": round(float(np.median(hu[core])), 1),
        "around_hu": round(float(np.median(hu[ring])), 1),
        "uneven_hu": round(1.4826 * float(np.median(np.abs(smooth[core] - np.median(smooth[core])))), 1),
        "noise_hu": round(float(hu[core].std()), 1),
        "border_hu_mm": round(float(steep[border].mean()), 1),
        "inside_hu_mm": round(float(steep[core].mean()), 1),
    }


def done(case: Case, bundle: str, pictures: Path | None, **asked: Any) -> dict[str, Any]:
    """A lesion put in or taken out, and all that is measured of it."""
    volume, labels = case_volume(case), own_labels(case)
    request = InpaintRequest(source=case.image, bundle=bundle, **asked)
    request, loaded = with_bundle(request, None)
    start = time.perf_counter()
    valid = validate_scene(request, loaded, scene_of(volume, labels, case.id), 0)
    found = time.perf_counter()
    result = carry_in(valid, lambda stage, done, total: None)
    drawn = time.perf_counter()
    mask = result.mask.array > 0
    rim = max(RIM_MM, 1.01 * max(volume.grid.spacing)) if asked.get("remove") else 0.0
    away = ~ndimage.binary_dilation(morphology.dilate(mask, rim, volume.grid.spacing), np.ones((3, 3, 3)), 2)
    if pictures is not None:
        name = f"{case.id}_{asked.get('tumor', 'removed').replace(' ', '_')}"
        write_png(lesion_preview(volume, result.volume, result.mask, name), pictures / f"{name}.png")
    return {
        "case": case.id,
        "what": asked.get("tumor", "removed"),
        "away_bit_identical": bool(np.array_equal(result.volume.array[away], volume.array[away])),
        "seconds": {"find": round(found - start, 1), "draw": round(drawn - found, 1)},
        "before": look(volume, mask),
        "after": look(result.volume, mask),
        "lesions": [lesion.model_dump() for lesion in result.lesions],
    }


def real_tumours(cases: dict[str, Case]) -> Iterator[dict[str, Any]]:
    """The same of tumours that are there."""
    tumours = load_vocabulary().group("tumours")
    for name in REAL:
        if name in cases:
            labels = own_labels(cases[name])
            assert labels is not None
            yield {"case": name, "after": look(case_volume(cases[name]), np.isin(labels.array, tumours))}


def table(rows: list[dict[str, Any]], real: list[dict[str, Any]]) -> str:
    """Both as Markdown."""
    lines = [
        "| CT | lesion | ml | HU around | HU | whose | expected | uneven, HU | border, HU/mm "
        "| step at the changed border (before) | inside, outside | away bit-identical | s to find, draw |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        after, lesion, took = row["after"], row["lesions"][0], row["seconds"]
        seam, contrast = lesion["seam"], lesion["contrast"]
        lines.append(
            f"| {row['case']} | {row['what']} | {after['ml']} | {after['around_hu']} | {after['hu']} | "
            f"{contrast['made_by']} | {contrast['expected_hu']} | {after['uneven_hu']} | {after['border_hu_mm']} | "
            f"{seam['border']} ({seam['border_before']}) | {seam['inside']}, {seam['outside']} | "
            f"{'yes' if row['away_bit_identical'] else 'NO'} | {took['find']}, {took['draw']} |"
        )
    lines += ["", "| real tumour | ml | HU around | HU | uneven, HU | border, HU/mm |", "|" + "---|" * 6]
    for row in real:
        found = row["after"]
        lines.append(
            f"| {row['case']} | {found['ml']} | {found['around_hu']} | {found['hu']} | {found['uneven_hu']} | "
            f"{found['border_hu_mm']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--pictures", type=Path, default=None)
    arguments = parser.parse_args()
    cases = {case.id: case for case in read_manifest(arguments.manifest)}
    for folder in sorted((arguments.manifest.parent / "label_maps").glob("*/ct.nii.gz")):
        name, labels = folder.parent.name, folder.parent / "labels_maisi.nii.gz"
        cases[name] = Case(id=name, image=folder, labels_maisi=labels)
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, tumour, diameter, seed in PUT_IN:
        asked: dict[str, Any] = {"tumor": tumour, "random": 1, "diameter": diameter, "seed": seed}
        rows.append(done(cases[name], arguments.bundle, arguments.pictures, **asked))
        print(json.dumps(rows[-1]), flush=True)
    for name in TAKEN_OUT:
        rows.append(done(cases[name], arguments.bundle, arguments.pictures, remove=True, labels=cases[name].labels))
        print(json.dumps(rows[-1]), flush=True)
    real = list(real_tumours(cases))
    results = Path(__file__).parent / "results"
    (results / "inpaint.json").write_text(json.dumps({"made": rows, "real": real}, indent=1) + "\n", encoding="utf-8")
    (results / "inpaint.md").write_text(table(rows, real), encoding="utf-8")
    print(table(rows, real))


if __name__ == "__main__":
    main()
