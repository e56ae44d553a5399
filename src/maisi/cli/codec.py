"""`maisi encode`, `maisi decode` and `maisi reconstruct`: a CT to its latent and back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from maisi.cli.console import give, give_json, give_table, tell
from maisi.cli.options import AsJson, Out, OutFile, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.requests import DecodeRequest, EncodeCasesRequest, EncodeRequest


@takes(EncodeRequest, arguments={"source": "[CT]"}, leave_out=("compute.ranks",))
def encode(
    request: EncodeRequest,
    out: OutFile,
    overwrite: Overwrite = False,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encode all cases of this manifest, into the folder --out.")
    ] = None,
    workers: Annotated[int, typer.Option(help="With --manifest: processes side by side.")] = 1,
    shard: Annotated[str | None, typer.Option(help="With --manifest: part I/N only, for array jobs.")] = None,
    ray: Annotated[str | None, typer.Option(help="With --manifest: a Ray cluster, or local.")] = None,
) -> None:
    """Encode a CT (or a label map) into a latent: mean, log-variance and grid in one .safetensors file.

    Beside it lie NAME.run.yaml, which repeats the run, and NAME.run.json. With --manifest a latent a case, with its
    labels, for training; each process takes one thread unless --threads says more, and what is there stays.
    """
    if manifest is None:
        if workers != 1 or shard is not None or ray is not None:
            raise typer.BadParameter("--workers, --shard and --ray share out the cases of a --manifest")
        run_task("encode", request, out, overwrite)
        return
    _check_of_cases(request, overwrite)
    _encode_cases(request, manifest, out, {"workers": workers, "shard": shard, "ray": ray})


def _check_of_cases(request: EncodeRequest, overwrite: bool) -> None:
    """Nothing, or the refusal of options that would be passed over for the cases of a manifest."""
    if request.source is not None:
        raise typer.BadParameter(f"either {request.source} or --manifest")
    plain = EncodeRequest(bundle=request.bundle, compute=request.compute)
    asked = [name for name in type(request).model_fields if getattr(request, name) != getattr(plain, name)]
    if asked or overwrite:
        what = f"options of a single file ({', '.join(asked)})" if asked else "--overwrite"
        raise typer.BadParameter(
            f"cases of a manifest are encoded as they are stored, and what is there stays; accepted: without {what}"
        )


def _encode_cases(request: EncodeRequest, manifest: Path, out: Path, across: dict[str, Any]) -> None:
    from maisi.storage.settings import check_settings

    compute = request.compute.model_copy(update={"threads": request.compute.threads or 1})
    asked = {"manifest": manifest, "bundle": request.bundle, "across": across, "compute": compute.model_dump()}
    record = run_task("encode cases", check_settings(EncodeCasesRequest, asked), out, quiet=True)
    assert record is not None
    for warning in record.warnings:
        tell(f"warning: {warning}")
    give(str(out / "latents.jsonl"))


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
