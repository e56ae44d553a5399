"""What an autoencoder keeps of a volume: encode, decode, compare."""

from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.evaluation.fidelity import Fidelity, box_blur, fidelity
from maisi.pipelines.codec import decode, encode
from maisi.pipelines.execution import bundle_of, fitted, lasting_name, settled, volume_of
from maisi.pipelines.meter import StageMeter
from maisi.pipelines.preview import comparison, write_png
from maisi.pipelines.requests import CodecRequest
from maisi.pipelines.runs import RunRecord, check_free, check_same_inputs, finish_run, now, open_run, write_run_settings
from maisi.shapes import Frozen
from maisi.space.files import write_volume
from maisi.space.volume import Volume

COMMAND = "reconstruct"
METRICS = "metrics.json"


class ReconstructionMetrics(Frozen):
    """How close a reconstruction is, beside the yardstick: the same volume with every voxel the mean of its 3^3."""

    reconstruction: Fidelity
    yardstick: Fidelity


def reconstruct(bundle: Bundle, volume: Volume) -> Volume:
    """The volume after one pass through the autoencoder, on its own grid."""
    return decode(bundle.autoencoder, encode(bundle.autoencoder, volume))


def measure(original: Volume, reconstruction: Volume) -> ReconstructionMetrics:
    """Fidelity of a reconstruction and of the yardstick."""
    return ReconstructionMetrics(
        reconstruction=fidelity(reconstruction, original), yardstick=fidelity(box_blur(original), original)
    )


def reconstruct_into(
    request: CodecRequest, path: Path, *, overwrite: bool = False, repeats: RunRecord | None = None
) -> tuple[ReconstructionMetrics, RunRecord]:
    """Fill a folder with the reconstruction, a picture of the difference, `metrics.json` and the record of the run."""
    started, meter = now(), StageMeter()
    request = settled(request)
    bundle = bundle_of(request)
    check_free(path, overwrite)
    request = request.model_copy(update={"source": request.source.resolve(), "bundle": lasting_name(request, bundle)})
    if repeats is not None:
        check_same_inputs(repeats, request.model_dump(), bundle)
    original = volume_of(request.source, request, bundle)
    bundle = fitted(bundle, original.grid.shape, request, only=("encode", "decode"))
    meter.end("load")
    again = reconstruct(bundle, original)
    meter.end("reconstruct")
    metrics = measure(original, again)
    meter.end("measure")

    with open_run(path, overwrite) as run:
        write_run_settings(run, COMMAND, request)
        write_volume(again, run.partial / "reconstruction.nii.gz")
        found = metrics.reconstruction
        title = f"{bundle.name} · PSNR {found.psnr_db:.1f} dB · SSIM {found.ssim:.3f} · MAE {found.mae_hu:.0f} HU"
        write_png(comparison(original, again, title), run.partial / "reconstruction_preview.png")
        (run.partial / METRICS).write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
        run.publish()
        meter.end("write")
        return metrics, finish_run(run, COMMAND, request, bundle, started, meter)
