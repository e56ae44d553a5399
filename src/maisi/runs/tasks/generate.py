"""`maisi generate`: volumes with their labels, a report and a preview each; what fails its check is kept apart."""

from collections.abc import Mapping
from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.bundle.places import find_bundle
from maisi.data.library import INDEX
from maisi.pipelines.clinical import ClinicalCase, names_in, write_pair
from maisi.pipelines.generate import Sample, draw_one, fit_to
from maisi.pipelines.labels import LabelFile, LabelSource
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.quality.report import QualityReport
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import ValidRequest, bundle_vocabulary, validate_generate
from maisi.runs.record import identity, installed_version, known_sums
from maisi.runs.task import Checked, Run, Task
from maisi.storage.folders import FAILED
from maisi.storage.provenance import Provenance, lasting


def check(request: GenerateRequest) -> Checked[GenerateRequest]:
    """The request with its bundle and label sources."""
    valid = validate_generate(request)
    return Checked(valid.request, valid, valid.bundle, valid.reports)


def inputs(request: GenerateRequest) -> tuple[Path, ...]:
    """The label map or folder of them, the index of a library (with sums of its maps), the bundle of a generator."""
    index = None if request.library is None else request.library / INDEX
    generator = None if request.label_bundle is None else find_bundle(request.label_bundle)
    return tuple(path for path in (request.labels, index, generator) if path is not None)


def work(checked: Checked[GenerateRequest], run: Run) -> None:
    """Draw and write sample after sample; those that an earlier part of the run has written stay."""
    valid: ValidRequest = checked.subject
    request, bundle = valid.request, valid.bundle
    for name in bundle.names:
        bundle.network(name)  # loads it
    bundles = [fit_to(valid, source, run.ranks) for source in valid.sources]
    run.on_stage("load", 1, 1)
    for source, each in zip(valid.sources, bundles, strict=True):
        for index in request.indices:
            stem, names = stem_of(request, source, index), file_names(request, source, index)
            if run.has(names.values()):
                run.kept += [] if has_passed(run.folder / names["quality"]) else [stem]
                continue
            if run.has(set_apart(names).values()):
                run.failed.append(stem)
                continue
            sample = draw_one(request, each, source, index, run.on_stage)
            run.num_made += 1
            run.warnings += [f"{stem}: {problem}" for problem in sample.problems]
            if is_set_apart(sample, request):
                run.failed.append(stem)
                names = set_apart(names)
            elif not sample.quality.passed:
                run.kept.append(stem)
            if run.writes:
                files = {kind: run.partial / name for kind, name in names.items()}
                write_sample(sample, request, bundle, files, made_by(request, bundle, source, index))
                run.publish()


def is_set_apart(sample: Sample, request: GenerateRequest) -> bool:
    """Whether a sample is not to lie among the good ones."""
    return not sample.quality.passed and request.quality.sets_apart


def has_passed(report: Path) -> bool:
    """Whether the sample passed its check whose report is in a file."""
    return QualityReport.model_validate_json(report.read_text(encoding="utf-8")).passed


def set_apart(names: Mapping[str, str]) -> dict[str, str]:
    """The names of the files of a sample that failed."""
    return {kind: f"{FAILED}/{name}" for kind, name in names.items()}


def stem_of(request: GenerateRequest, source: LabelSource, index: int) -> str:
    """What a sample is called: sample_000, or after the label map that it follows."""
    if not source.name:
        return f"sample_{index:03d}"
    return source.name if (request.first, request.count) == (0, 1) else f"{source.name}_{index:03d}"


def made_by(request: GenerateRequest, bundle: Bundle, source: LabelSource, index: int) -> Provenance:
    """What the files of a sample say of their making: the request of that sample alone, whatever others were made."""
    own = request.model_copy(update={"first": index, "count": 1})
    if isinstance(source, LabelFile):
        place = {"size": source.grid.shape, "spacing": request.spacing or source.grid.spacing}
        own = own.model_copy(update={"labels": source.path.resolve(), **place})
    return Provenance(
        maisi=installed_version("maisi"),
        command=GENERATE.name,
        request=lasting(own.model_dump(mode="json")),
        seed=request.seed,
        bundle=identity(bundle),
        inputs=known_sums(inputs(own)),
    )


def file_names(request: GenerateRequest, source: LabelSource, index: int) -> dict[str, str]:
    """The files of a sample by what they hold, such as sample_000_ct.nii.gz for its volume."""
    stem, modality = stem_of(request, source, index), request.modality.partition(" ")[0]
    names = names_in(request.format, stem, "mr" if modality == "mr" else "ct")
    if request.unlabelled:
        del names["labels"]
    return {**names, "preview": f"{stem}_preview.png", "quality": f"{stem}_quality.json"}


def write_sample(
    sample: Sample, request: GenerateRequest, bundle: Bundle, files: dict[str, Path], provenance: Provenance
) -> None:
    """Write the volume, its labels if it follows any, its report and a picture, which says so where it fails."""
    for folder in {path.parent for path in files.values()}:
        folder.mkdir(exist_ok=True)
    own = names_in(request.format, f"sample_{sample.index:03d}", sample.volume.modality)
    made = {kind: provenance.of(name) for kind, name in own.items()}
    vocabulary = bundle_vocabulary(bundle)
    case = ClinicalCase(
        f"sample_{sample.index:03d}",
        sample.volume,
        sample.labels,
        vocabulary,
        made["volume"],
        made["labels"],
        sample.span,
    )
    write_pair(case, request.format, files["volume"], files.get("labels"))
    ends = dict.fromkeys(region.name.lower() for region in (sample.span.top, sample.span.bottom))
    title = f"{bundle.name} · {' to '.join(ends)} · seed {request.seed} · sample {sample.index}"
    mark = "" if sample.quality.passed else f"FAILED: {'; '.join(sample.problems)}"
    picture = preview(sample.volume, sample.labels, title, vocabulary=vocabulary, mark=mark)
    write_png(picture, files["preview"])
    files["quality"].write_text(sample.quality.model_dump_json(indent=1) + "\n", encoding="utf-8")


GENERATE = Task("generate", GenerateRequest, check, work, inputs, on_ranks=True)
