"""`maisi encode`, `maisi decode` and `maisi reconstruct`: a volume to its latent and back."""

from functools import partial
from pathlib import Path

from maisi.compute.fit import fit
from maisi.data.latents import write_latent
from maisi.evaluation.reconstruction import METRICS, as_decoded, measure, reconstruct
from maisi.pipelines.codec import decode, encode, rehearse_both, rehearse_decode, rehearse_encode
from maisi.pipelines.prepare import PreparedLatent, PreparedVolume, prepare_decode, prepare_encode
from maisi.pipelines.preview import comparison, write_png
from maisi.pipelines.requests import DecodeRequest, EncodeRequest
from maisi.runs.task import Checked, Output, Run, Task
from maisi.space.files import write_volume


def check_encode(request: EncodeRequest) -> Checked[EncodeRequest]:
    """The request with its bundle and the volume to encode."""
    prepared = prepare_encode(request)
    return Checked(prepared.request, prepared, prepared.bundle, (prepared.report,))


def check_decode(request: DecodeRequest) -> Checked[DecodeRequest]:
    """The request with its bundle and the latent to decode."""
    prepared = prepare_decode(request)
    return Checked(prepared.request, prepared, prepared.bundle)


def source_of(request: EncodeRequest | DecodeRequest) -> tuple[Path, ...]:
    """The one input."""
    return (request.source,)


def encode_file(checked: Checked[EncodeRequest], run: Run) -> None:
    """Write the latent: mean, log-variance and grid."""
    given: PreparedVolume = checked.subject
    work = partial(rehearse_encode, given.volume.grid.shape)
    bundle = fit(given.bundle, given.request.compute, work, run.ranks)
    run.on_stage("load", 1, 1)
    made_from = f"{given.request.source.name}, bundle {bundle.name} {bundle.info.version}"
    latent = encode(bundle.autoencoder, given.volume, made_from=made_from)
    run.on_stage("encode", 1, 1)
    if run.writes:
        write_latent(latent, run.partial / run.name)
        run.publish()


def decode_file(checked: Checked[DecodeRequest], run: Run) -> None:
    """Write the volume of the latent's mean."""
    given: PreparedLatent = checked.subject
    work = partial(rehearse_decode, given.latent.grid.shape)
    bundle = fit(given.bundle, given.request.compute, work, run.ranks)
    run.on_stage("load", 1, 1)
    volume = decode(bundle.autoencoder, given.latent)
    run.on_stage("decode", 1, 1)
    if run.writes:
        write_volume(volume, run.partial / run.name)
        run.publish()


def reconstruct_files(checked: Checked[EncodeRequest], run: Run) -> None:
    """Write the reconstruction, a picture of the difference, and how much is lost."""
    given: PreparedVolume = checked.subject
    original, bundle = given.volume, given.bundle
    bundle = fit(bundle, given.request.compute, partial(rehearse_both, original.grid.shape))
    run.on_stage("load", 1, 1)
    again = reconstruct(bundle, original)
    run.on_stage("reconstruct", 1, 1)
    original = as_decoded(original)
    metrics = measure(original, again)
    run.on_stage("measure", 1, 1)
    write_volume(again, run.partial / "reconstruction.nii.gz")
    found = metrics.reconstruction
    title = f"{bundle.name} · PSNR {found.psnr_db:.1f} dB · SSIM {found.ssim:.3f} · MAE {found.mae_hu:.0f} HU"
    write_png(comparison(original, again, title), run.partial / "reconstruction_preview.png")
    (run.partial / METRICS).write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
    run.publish()


ENCODE = Task("encode", EncodeRequest, check_encode, encode_file, source_of, Output.FILE, (".safetensors",), True)
DECODE = Task("decode", DecodeRequest, check_decode, decode_file, source_of, Output.FILE, (".nii", ".nii.gz"), True)
RECONSTRUCT = Task("reconstruct", EncodeRequest, check_encode, reconstruct_files, source_of)
