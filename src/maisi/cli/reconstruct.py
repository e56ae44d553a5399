"""`maisi reconstruct`: how much of a CT the autoencoder keeps."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give_json, give_table, tell
from maisi.cli.options import (
    AsJson,
    Assignments,
    BundleName,
    Config,
    Device,
    HostMemory,
    Memory,
    Out,
    Overwrite,
    Precision,
    Scratch,
    Series,
    Spacing,
    Threads,
    request_of,
)


def reconstruct(
    source: Annotated[Path, typer.Argument(metavar="CT", help=".nii, .nii.gz or a DICOM folder.", show_default=False)],
    out: Out,
    bundle: BundleName = None,
    spacing: Spacing = None,
    series: Series = None,
    precision: Precision = None,
    device: Device = None,
    memory: Memory = None,
    scratch: Scratch = None,
    host_memory: HostMemory = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    config: Config = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Encode and decode a CT, and measure what is lost.

    Writes the reconstruction, a picture of the difference and metrics.json. The yardstick is what a 3x3x3 box blur of
    the same CT reaches. With --spacing the CT is resampled first.
    """
    from maisi.evaluation.reconstruction import reconstruct_into
    from maisi.pipelines.requests import CodecRequest

    options = {
        "source": source,
        "bundle": bundle,
        "spacing": spacing,
        "series": series,
        "precision": precision,
        "device": device,
        "memory": memory,
        "scratch": scratch,
        "host_memory": host_memory,
        "threads": threads,
    }
    request = request_of(CodecRequest, "reconstruct", config, assignments, options)
    metrics, record = reconstruct_into(request, out, overwrite=overwrite)
    if as_json:
        give_json({"out": str(out), **metrics.model_dump(), "outputs": record.outputs})
    else:
        rows = {"reconstruction": metrics.reconstruction, "yardstick (3x3x3 box blur)": metrics.yardstick}
        give_table(
            [(name, f"{f.psnr_db:.2f}", f"{f.ssim:.4f}", f"{f.mae_hu:.1f}") for name, f in rows.items()],
            ("", "PSNR dB", "SSIM", "MAE HU"),
        )
    tell(f"{out}: {', '.join(record.outputs)}, in {record.seconds:.1f} s")
