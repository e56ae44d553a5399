"""`maisi evaluate autoencoder`: many volumes encoded and decoded, in JSON and on a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.compute.fit import fit
from maisi.errors import InvalidRequestError, RunError, StorageError
from maisi.evaluation.autoencoder import CaseFidelity, FailedVolume, autoencoder_report, case_fidelity
from maisi.evaluation.autoencoder_page import autoencoder_page
from maisi.evaluation.perceptual import Perceptual, find_perceptual
from maisi.evaluation.requests import EvaluateAutoencoderRequest
from maisi.evaluation.sets import NamedImage, image_set
from maisi.pipelines.codec import rehearse_both
from maisi.pipelines.requests import EncodeRequest
from maisi.pipelines.validate import check_modality, check_takes_ct, compute_for, lasting_name, load_for
from maisi.runs.pieces import case_file, piece, write_report
from maisi.runs.task import Checked, Run, Task

REPORT, PAGE = "autoencoder.json", "autoencoder.html"


@dataclass(frozen=True)
class ToReconstruct:
    """The volumes, and what tells how they look."""

    images: Sequence[NamedImage]
    perceptual: Perceptual


def check(request: EvaluateAutoencoderRequest) -> Checked[EvaluateAutoencoderRequest]:
    """The request with its bundle and the volumes."""
    images = image_set(request.source, request.split, request.modality, least=1)
    compute = compute_for(request.compute, None)
    bundle = load_for(EncodeRequest(bundle=request.bundle, compute=compute))
    check_takes_ct(bundle)
    update = {"bundle": lasting_name(request.bundle, bundle), "compute": compute}
    return Checked(request.model_copy(update=update), ToReconstruct(images, find_perceptual(request.lpips)), bundle)


def inputs(request: EvaluateAutoencoderRequest) -> tuple[Path, ...]:
    """The manifest, where it is a file, and weights of LPIPS."""
    return tuple(path for path in (request.source, *request.lpips) if path.is_file())


def work(checked: Checked[EvaluateAutoencoderRequest], run: Run) -> None:
    """Reconstruct volume by volume, the figures of each in a file of its own, then write the report and its page."""
    request, given, bundle = checked.request, checked.subject, checked.bundle
    assert bundle is not None
    done: list[CaseFidelity] = []
    failures: list[FailedVolume] = []
    for k, image in enumerate(given.images, start=1):
        try:
            make = partial(_measured, image, bundle, request, given.perceptual)
            done.append(piece(run, case_file(image.name), CaseFidelity, (image.path,), make))
        except StorageError:
            raise
        except (InvalidRequestError, RunError) as error:
            failures.append(FailedVolume(id=image.name, words=str(error)))
        run.on_stage("reconstruct", k, len(given.images))
    if not done:
        raise RunError(f"no volume could be reconstructed; {failures[0].id}: {failures[0].words}")
    report = autoencoder_report(bundle.name, given.perceptual, done, failures, request.seed)
    write_report(run, {REPORT: report, PAGE: autoencoder_page(report)})
    run.warnings += [f"{each.id} is left out: {each.words}" for each in failures]
    run.warnings += report.notes
    run.publish()


def _measured(
    image: NamedImage, bundle: Bundle, request: EvaluateAutoencoderRequest, perceptual: Perceptual
) -> CaseFidelity:
    volume = image.read()
    check_modality(bundle, volume.modality, request.force)
    fitted = fit(bundle, request.compute, partial(rehearse_both, volume.grid.shape))
    return case_fidelity(image, volume, fitted, perceptual)


EVALUATE_AUTOENCODER = Task("evaluate autoencoder", EvaluateAutoencoderRequest, check, work, inputs)
