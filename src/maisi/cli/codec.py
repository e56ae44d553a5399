"""`maisi encode` and `maisi decode`: a CT to its latent and back."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give
from maisi.cli.options import (
    BundleName,
    Device,
    HostMemory,
    Memory,
    OutFile,
    Precision,
    Scratch,
    Series,
    Spacing,
    Threads,
    request_of,
)

Force = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]


def encode(
    source: Annotated[Path, typer.Argument(metavar="CT", help=".nii, .nii.gz or a DICOM folder.", show_default=False)],
    out: OutFile,
    bundle: BundleName = None,
    spacing: Spacing = None,
    series: Series = None,
    precision: Precision = None,
    device: Device = None,
    memory: Memory = None,
    scratch: Scratch = None,
    host_memory: HostMemory = None,
    threads: Threads = None,
    overwrite: Force = False,
) -> None:
    """Encode a CT into a latent: mean, log-variance and grid in one .safetensors file."""
    from maisi.data.latents import write_latent
    from maisi.pipelines.codec import encode
    from maisi.pipelines.execution import bundle_of, fitted, ranks_of_run, settled, volume_of
    from maisi.pipelines.requests import CodecRequest

    _check_file(out, (".safetensors",), overwrite)
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
    request = settled(request_of(CodecRequest, "encode", None, None, options))
    with ranks_of_run() as ranks:
        model = bundle_of(request)
        volume = volume_of(source, request, model)
        model = fitted(model, volume.grid.shape, request, only=("encode",), ranks=ranks)
        latent = encode(model.autoencoder, volume, made_from=f"{source.name}, bundle {model.name} {model.info.version}")
        if ranks is None or ranks.is_first:
            write_latent(latent, out)
            give(str(out))


def decode(
    source: Annotated[Path, typer.Argument(metavar="LATENT", help="A file of maisi encode.", show_default=False)],
    out: OutFile,
    bundle: BundleName = None,
    precision: Precision = None,
    device: Device = None,
    memory: Memory = None,
    scratch: Scratch = None,
    host_memory: HostMemory = None,
    threads: Threads = None,
    overwrite: Force = False,
) -> None:
    """Decode a latent into a CT, on the grid of the CT that was encoded."""
    from maisi.data.latents import read_latent
    from maisi.pipelines.codec import decode
    from maisi.pipelines.execution import bundle_of, fitted, ranks_of_run, settled
    from maisi.pipelines.requests import CodecRequest
    from maisi.space.files import write_volume

    _check_file(out, (".nii", ".nii.gz"), overwrite)
    options = {
        "source": source,
        "bundle": bundle,
        "precision": precision,
        "device": device,
        "memory": memory,
        "scratch": scratch,
        "host_memory": host_memory,
        "threads": threads,
    }
    request = settled(request_of(CodecRequest, "decode", None, None, options))
    with ranks_of_run() as ranks:
        latent, model = read_latent(source), bundle_of(request)
        model = fitted(model, latent.grid.shape, request, only=("decode",), ranks=ranks)
        volume = decode(model.autoencoder, latent)
        if ranks is None or ranks.is_first:
            write_volume(volume, out)
            give(str(out))


def _check_file(path: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Nothing, or the refusal of a file that has another ending, lies nowhere or exists."""
    from maisi.errors import InvalidRequestError

    if not path.name.lower().endswith(suffixes):
        raise InvalidRequestError(f"{path} ends in {path.suffix or 'nothing'}; accepted: {' or '.join(suffixes)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidRequestError(f"{path} exists; accepted: another name, or --overwrite")
    if not path.parent.is_dir():
        raise InvalidRequestError(f"there is no folder {path.parent} to write {path.name} into")
