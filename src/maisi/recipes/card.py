"""What a bundle can do, measured, and the model card that says so."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from maisi.anatomy.regions import BodyRegion
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.data.cases import case_volume
from maisi.data.manifest import Case
from maisi.evaluation.adherence import BODY_HU, CONTRAST, Adherence, adherence
from maisi.evaluation.fidelity import Fidelity
from maisi.evaluation.reconstruction import measure, reconstruct
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import rehearse_both
from maisi.pipelines.generate import generate, sample_generators
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import label_sources
from maisi.recipes.realism import Realism, realism_tables
from maisi.shapes import Frozen, in_words
from maisi.space.label_files import read_labels

WHOLE_MAP = 20  # structures from which a label map is taken to name all that it shows
OnCase = Callable[[str], None]


class CaseQuality(Frozen):
    """One validation case through the autoencoder, and the same case box-blurred."""

    id: str
    group: str
    spacing_mm: tuple[float, float, float]
    reconstruction: Fidelity
    yardstick: Fidelity


class SampleQuality(Frozen):
    """One generated volume against the labels asked for."""

    region: str
    seed: int
    adherence: Adherence


class ReferenceQuality(Frozen):
    """One real scan against its own label map: what adherence by HU thresholds can reach."""

    id: str
    adherence: Adherence


class BundleQuality(Frozen):
    """All that is measured of a bundle."""

    cases: tuple[CaseQuality, ...]
    samples: tuple[SampleQuality, ...]
    rendered: tuple[SampleQuality, ...] = ()
    references: tuple[ReferenceQuality, ...] = ()
    realism: Realism | None = None


def measure_bundle(
    bundle: Bundle,
    cases: Sequence[Case],
    labelled: Sequence[Case] = (),
    num_samples: int = 10,
    steps: int = 10,
    on_case: OnCase | None = None,
) -> BundleQuality:
    """Reconstruction of the cases given (the validation split), and adherence of generated samples, regions in turn.

    For comparison also the adherence of a rendered phantom of each region after encoding and decoding, and of those
    `labelled` scans whose own label map names a body and most of its parts.
    """
    told = on_case or (lambda line: None)
    reconstructed = []
    for case in cases:
        volume = case_volume(case)
        codec = fit(bundle, Compute(), partial(rehearse_both, volume.grid.shape))
        found = measure(volume, reconstruct(codec, volume))
        told(f"{case.id}: {found.reconstruction.psnr_db:.2f} dB, box blur {found.yardstick.psnr_db:.2f} dB")
        reconstructed.append(CaseQuality(id=case.id, group=case.group, spacing_mm=volume.grid.spacing, **dict(found)))
    samples = list(_samples(bundle, num_samples, steps, told))
    return BundleQuality(
        cases=tuple(reconstructed),
        samples=tuple(samples),
        rendered=tuple(_rendered(bundle, told)) if num_samples else (),
        references=tuple(_references(labelled, told)),
    )


def _references(cases: Sequence[Case], told: OnCase) -> Iterator[ReferenceQuality]:
    body = load_vocabulary().id("body")
    for case in cases:
        labels = None if case.image is None or case.labels_maisi is None else read_labels(case.labels_maisi)
        if case.image is None or labels is None:
            continue
        present = np.unique(labels.array)
        if body in present and len(present) >= WHOLE_MAP:
            found = adherence(case_volume(case), labels)
            told(f"{case.id}, scan against its own labels: {_scores(found, ', ')}")
            yield ReferenceQuality(id=case.id, adherence=found)


def _samples(bundle: Bundle, count: int, steps: int, told: OnCase) -> Iterator[SampleQuality]:
    for seed in range(count):
        region = list(BodyRegion)[(seed + 1) % len(BodyRegion)].name.lower()
        request = GenerateRequest(region=region, seed=seed, steps=steps, phantom=True)
        (sample,) = generate(request, bundle)
        assert sample.labels is not None
        found = adherence(sample.volume, sample.labels)
        told(f"{region}, seed {seed}: {_scores(found, ', ')}")
        yield SampleQuality(region=region, seed=seed, adherence=found)


def _rendered(bundle: Bundle, told: OnCase) -> Iterator[SampleQuality]:
    for region in (each.name.lower() for each in BodyRegion):
        request = GenerateRequest(region=region, seed=0, phantom=True)
        rng, of_labels, _ = sample_generators(request.seed, 0)
        (source,) = label_sources(request, bundle)
        labels = source.draw(rng, of_labels).labels
        assert labels is not None
        codec = fit(bundle, request.compute, partial(rehearse_both, labels.grid.shape))
        found = adherence(reconstruct(codec, render_phantom(labels, rng)), labels)
        told(f"{region}, rendered phantom after encoding and decoding: {_scores(found, ', ')}")
        yield SampleQuality(region=region, seed=request.seed, adherence=found)


def quality_tables(quality: BundleQuality) -> str:
    """Markdown: reconstruction per group, and adherence per sample."""
    lines = [
        "| validation group | cases | PSNR, dB | SSIM | MAE, HU | box blur 3^3: PSNR, dB | SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in sorted({case.group for case in quality.cases}):
        lines.append(_row(group, [case for case in quality.cases if case.group == group]))
    lines += [_row("all", list(quality.cases))] if quality.cases else ["| none was held out | 0 | | | | | |"]
    lines += [
        "",
        "| generated sample | Dice body | bones | skeleton | lungs and inner air | outside |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {s.region}, seed {s.seed} | {_scores(s.adherence)} |" for s in quality.samples]
    lines += [f"| ({c.region}, rendered phantom) | {_scores(c.adherence)} |" for c in quality.rendered]
    lines += [f"| (real scan {r.id}) | {_scores(r.adherence)} |" for r in quality.references]
    return "\n".join(lines)


def _scores(found: Adherence, joint: str = "") -> str:
    """The scores as cells of a row, or named and joined by `joint`."""
    scores = found.model_dump()
    if joint:
        return joint.join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)
    return " | ".join("" if value is None else f"{value:.3f}" for value in scores.values())


def _row(name: str, cases: Sequence[CaseQuality]) -> str:
    def median(values: list[float]) -> float:
        return float(np.median(values))

    found, blur = [case.reconstruction for case in cases], [case.yardstick for case in cases]
    return (
        f"| {name} | {len(cases)} | {median([f.psnr_db for f in found]):.2f} | {median([f.ssim for f in found]):.3f} "
        f"| {median([f.mae_hu for f in found]):.1f} | {median([f.psnr_db for f in blur]):.2f} "
        f"| {median([f.ssim for f in blur]):.3f} |"
    )


def model_card(bundle: Bundle, quality: BundleQuality, training: Sequence[Case], expectations: str = "") -> str:
    """The model card: purpose, limits, measured quality, expectations in words, data with licences and attribution."""
    limits = bundle.limits
    low, high = limits.min_spacing_mm[0], limits.max_spacing_mm[0]
    bone_hu = load_vocabulary().tissues["bone"][0]
    fov = [in_words(ends) for ends in (limits.min_fov_mm, limits.max_fov_mm) if ends]
    parameters = ", ".join(
        f"{kind} {about['num_parameters']:,}" for kind, about in bundle.describe()["networks"].items()
    )
    return f"""# {bundle.name}

{bundle.info.description}

**Not for diagnosis, treatment or any other clinical use.** Volumes that it generates are synthetic. It is no substitute
for the released foundation weights, which `maisi convert` takes.

| | |
|---|---|
| voxel spacing | {low:g} to {high:g} mm |
| largest size | {in_words(limits.max_size)} voxels |
| field of view | {" to ".join(fov) or "any"} mm |
| regions | {", ".join(limits.regions)} |
| parameters | {parameters} |
| vocabulary | version {bundle.info.vocabulary_version} |
| ControlNet scale | {bundle.info.controlnet_scale:g} |
| shown to the ControlNet as one structure | {", ".join(bundle.info.shown_as) or "none"} |
| licence of the weights | {bundle.info.licence} |

## Measured quality
Medians over the validation split, which was not trained on; PSNR with a data range of 2000 HU. Samples: default grid
of the region, 10 steps, labels from the phantom, Dice between what Hounsfield units show and the labels asked for: body
and air by {BODY_HU:g} HU, bones by {bone_hu:g} HU except where the map names {_or(CONTRAST)}, since contrast medium is
as bright. The skeleton is bone found without the map, as what is not as even as contrast medium, with marrow and dim
bone beside it. Below the samples, for comparison: rendered phantoms after encoding and decoding, and real scans, both
with dark marrow, against label maps of their own.
Made by `python benchmarks/bundle.py MANIFEST --bundle {bundle.name}`.

{quality_tables(quality)}
{_realism(quality.realism)}
## What to expect
{expectations or "Nothing is promised beyond these numbers."}

## Data
{len(training)} CT volumes of {len({case.patient or case.id for case in training})} patients and procedural phantoms.
Labels: public segmentations where there are some, coarse tissues by HU elsewhere. Some scans show heads; nobody may use
the bundle to identify anybody.

{attribution(training)}
"""


def _realism(found: Realism | None) -> str:
    if found is None:
        return ""
    return (
        f"\n## Likeness to real volumes\n{realism_tables(found)}\n\nMade by `python benchmarks/realism.py MANIFEST`.\n"
    )


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def attribution(cases: Sequence[Case]) -> str:
    """A table of licences and sources; sources that differ by a number at their end are one."""
    lines = ["| cases | licence | source |", "|---|---|---|"]
    seen: dict[tuple[str, str], int] = {}
    for case in cases:
        source = re.sub(r"[_-]*\d+$", "", case.source)
        seen[(case.licence, source)] = seen.get((case.licence, source), 0) + 1
    lines += [f"| {count} | {licence} | {source} |" for (licence, source), count in seen.items()]
    return "\n".join(lines)


def write_quality(quality: BundleQuality, path: Path) -> None:
    """Write the measurements as JSON."""
    path.write_text(quality.model_dump_json(indent=1) + "\n", encoding="utf-8")
