"""`maisi plan`: how the work on a volume would be cut to fit into memory."""

from typing import Annotated

import typer

from maisi.cli.console import give, give_json, give_table
from maisi.cli.options import (
    AsJson,
    BundleName,
    Device,
    HostMemory,
    Precision,
    Scratch,
    Three,
    request_of,
    three_numbers,
)

PLACES = ("memory", "host", "disk", "recomputed")
"""What becomes of tensors that two passes over the rows need."""


def plan(
    size: Annotated[
        Three, typer.Option(metavar="X Y Z", help="Voxels of the volume.", callback=three_numbers, show_default=False)
    ],
    memory: Annotated[str, typer.Option(help="Memory to stay within, such as 24GB.", show_default=False)],
    bundle: BundleName = None,
    precision: Precision = None,
    device: Device = None,
    scratch: Scratch = None,
    host_memory: HostMemory = None,
    as_json: AsJson = False,
) -> None:
    """Show how encoding, sampling and decoding a volume would be cut to stay within an amount of memory.

    Nothing is computed, so the device need not be there.
    """
    from maisi.pipelines.execution import bundle_of, dtype_of, fixed_bytes, plan_bundle, settled
    from maisi.pipelines.requests import GenerateRequest
    from maisi.pipelines.sizes import format_bytes

    options = {
        "size": size,
        "memory": memory,
        "bundle": bundle,
        "precision": precision,
        "device": device,
        "scratch": scratch,
        "host_memory": host_memory,
    }
    request = settled(request_of(GenerateRequest, "plan", None, None, options))
    assert request.size is not None
    model = bundle_of(request.model_copy(update={"device": "cpu"}))
    plans, fixed = plan_bundle(model, request.size, request), fixed_bytes(model, dtype_of(request))
    if as_json:
        told = {name: found.model_dump(mode="json") for name, found in plans.items()}
        give_json({"precision": request.precision, "fixed_bytes": fixed, "plans": told})
        return
    places = [place for place in PLACES if place != "host" or request.host_memory]
    rows = [
        (
            name,
            "xyz"[p.axis],
            p.parts,
            format_bytes(p.peak_bytes),
            *(format_bytes(sum(t.num_bytes for t in p.tensors if t.place == place)) for place in places),
            f"{p.flops / 1e12:.3g}",
            f"{100 * p.overhead:.0f} %",
        )
        for name, p in plans.items()
    ]
    give_table(rows, ("", "axis", "slabs", "peak", *places, "TFLOP", "extra work"))
    give(f"{', '.join(places)}: where the tensors go that two passes over the rows share, not all at the same time")
    give(f"besides: {format_bytes(fixed)} for the process and the networks in {request.precision}")
