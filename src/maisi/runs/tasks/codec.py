"""`maisi encode`, `maisi decode` and `maisi reconstruct`: a volume to its latent and back."""

from functools import partial
from pathlib import Path

from maisi.compute.fit import fit
from maisi.data.latents import write_latent
from maisi.errors import InvalidRequestError
from maisi.evaluation.reconstruction import METRICS, as_decoded, measure, reconstruct
from maisi.pipelines.codec import (
    decode,
    encode,
    rehearse_both,
    rehearse_decode,
    rehearse_decode_labels,
    rehearse_encode,
)
from maisi.pipelines.label_codec import (
    channels_of,
    decode_labels,
    encode_labels,
    label_autoencoder,
    label_autoencoder_name,
)
from maisi.pipelines.preview import comparison, write_png
from maisi.pipelines.requests import DecodeRequest, EncodeRequest
from maisi.pipelines.validate import ValidImage, ValidLatent, validate_decode, validate_encode
from maisi.runs.task import Checked, Output, Run, Task
from maisi.space.files import write_labels, write_volume
from maisi.space.volume import LabelMap, Volume

RECONSTRUCTION = "reconstruction.nii.gz"


def check_encode(request: EncodeRequest) -> Checked[EncodeRequest]:
    """The request with its bundle and the volume to encode."""
    valid = validate_encode(request)
    return Checked(valid.request, valid, valid.bundle, (valid.report,))


def check_reconstruct(request: EncodeRequest) -> Checked[EncodeRequest]:
    """The request with its bundle and the volume to encode and decode; `InvalidRequestError` for a label map."""
    if request.content == "labels":
        raise InvalidRequestError(
            "a reconstruction is measured in HU; accepted: a volume, or encode and decode for labels"
        )
    return check_encode(request.model_copy(update={"content": "volume"}))


def check_decode(request: DecodeRequest) -> Checked[DecodeRequest]:
    """The request with its bundle and the latent to decode."""
    valid = validate_decode(request)
    return Checked(valid.request, valid, valid.bundle)


def source_of(request: EncodeRequest | DecodeRequest) -> tuple[Path, ...]:
    """The one input."""
    assert request.source is not None
    return (request.source,)


def encode_file(checked: Checked[EncodeRequest], run: Run) -> None:
    """Write the latent: mean, log-variance and grid."""
    given: ValidImage = checked.subject
    image, is_map = given.image, isinstance(given.image, LabelMap)
    name = label_autoencoder_name(given.bundle) if is_map else "autoencoder"
    work = partial(rehearse_encode, image.grid.shape, name=name)
    bundle = fit(given.bundle, given.request.compute, work, run.ranks)
    run.on_stage("load", 1, 1)
    assert given.request.source is not None
    made_from = f"{given.request.source.name}, bundle {bundle.name} {bundle.info.version}"
    if isinstance(image, LabelMap):
        latent = encode_labels(label_autoencoder(bundle), image, channels=channels_of(bundle), made_from=made_from)
    else:
        latent = encode(bundle.autoencoder, image, made_from=made_from)
    run.on_stage("encode", 1, 1)
    if run.writes:
        write_latent(latent, run.partial / run.name)
        run.publish()


def decode_file(checked: Checked[DecodeRequest], run: Run) -> None:
    """Write the volume of the latent's mean, or its label map."""
    given: ValidLatent = checked.subject
    latent, is_map = given.latent, given.latent.content == "labels"
    name = label_autoencoder_name(given.bundle) if is_map else "autoencoder"
    rehearsal = rehearse_decode_labels if is_map else rehearse_decode
    work = partial(rehearsal, latent.grid.shape, name=name)
    bundle = fit(given.bundle, given.request.compute, work, run.ranks)
    run.on_stage("load", 1, 1)
    if is_map:
        decoded: LabelMap | Volume = decode_labels(label_autoencoder(bundle), latent, channels_of(bundle))
    else:
        decoded = decode(bundle.autoencoder, latent)
    run.on_stage("decode", 1, 1)
    if not run.writes:
        return
    if isinstance(decoded, LabelMap):
        write_labels(decoded, run.partial / run.name, run.made(run.name))
    else:
        write_volume(decoded, run.partial / run.name, run.made(run.name))
    run.publish()


def reconstruct_files(checked: Checked[EncodeRequest], run: Run) -> None:
    """Write the reconstruction, a picture of the difference, and how much is lost."""
    given: ValidImage = checked.subject
    original, bundle = given.image, given.bundle
    assert isinstance(original, Volume)
    bundle = fit(bundle, given.request.compute, partial(rehearse_both, original.grid.shape))
    run.on_stage("load", 1, 1)
    again = reconstruct(bundle, original)
    run.on_stage("reconstruct", 1, 1)
    original = as_decoded(original)
    metrics = measure(original, again)
    run.on_stage("measure", 1, 1)
    write_volume(again, run.partial / RECONSTRUCTION, run.made(RECONSTRUCTION))
    found = metrics.reconstruction
    title = f"{bundle.name} · PSNR {found.psnr_db:.1f} dB · SSIM {found.ssim:.3f} · MAE {found.mae_hu:.0f} HU"
    write_png(comparison(original, again, title), run.partial / "reconstruction_preview.png")
    (run.partial / METRICS).write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
    run.publish()


ENCODE = Task("encode", EncodeRequest, check_encode, encode_file, source_of, Output.FILE, (".safetensors",), True)
DECODE = Task("decode", DecodeRequest, check_decode, decode_file, source_of, Output.FILE, (".nii", ".nii.gz"), True)
RECONSTRUCT = Task("reconstruct", EncodeRequest, check_reconstruct, reconstruct_files, source_of)
