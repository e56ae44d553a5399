"""`maisi encode`, `maisi decode` and `maisi reconstruct`: a CT to its latent and back."""

from maisi.cli.console import give_json, give_table, tell
from maisi.cli.options import AsJson, Out, OutFile, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.requests import DecodeRequest, EncodeRequest


@takes(EncodeRequest, arguments={"source": "CT"}, leave_out=("compute.ranks",))
def encode(request: EncodeRequest, out: OutFile, overwrite: Overwrite = False) -> None:
    """Encode a CT (or a label map) into a latent: mean, log-variance and grid in one .safetensors file.

    Beside it lie NAME.run.yaml, which repeats the run, and NAME.run.json.
    """
    run_task("encode", request, out, overwrite)


@takes(DecodeRequest, arguments={"source": "LATENT"}, leave_out=("compute.ranks",))
def decode(request: DecodeRequest, out: OutFile, overwrite: Overwrite = False) -> None:
    """Decode a latent into a CT (or a label map), on the grid of what was encoded.

    Beside it lie NAME.run.yaml, which repeats the run, and NAME.run.json.
    """
    run_task("decode", request, out, overwrite)


@takes(EncodeRequest, arguments={"source": "CT"}, leave_out=("compute.ranks", "content", "reading.numbering"))
def reconstruct(request: EncodeRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Encode and decode a CT, and measure what is lost.

    Writes the reconstruction, a picture of the difference and metrics.json. The yardstick is what a 3x3x3 box blur of
    the same CT reaches. With --spacing the CT is resampled first.
    """
    from maisi.evaluation.reconstruction import METRICS, read_metrics

    record = run_task("reconstruct", request, out, overwrite, quiet=True)
    assert record is not None
    metrics = read_metrics(out / METRICS)
    if as_json:
        give_json({"out": str(out), **metrics.model_dump(), "outputs": record.outputs})
    else:
        rows = {"reconstruction": metrics.reconstruction, "yardstick (3x3x3 box blur)": metrics.yardstick}
        give_table(
            [(name, f"{f.psnr_db:.2f}", f"{f.ssim:.4f}", f"{f.mae_hu:.1f}") for name, f in rows.items()],
            ("", "PSNR dB", "SSIM", "MAE HU" if request.reading.modality == "ct" else "MAE"),
        )
    tell(f"{out}: {', '.join(record.outputs)}, in {record.seconds:.1f} s")
