"""Where bfloat16 costs HU: the packaged autoencoder in float32, with some of its numbers rounded to bfloat16.

    python benchmarks/rounding.py [CT ...]

Deviations from plain float32, HU rms, of a rendered phantom and of the CTs given (brought to 4 mm). Writes
benchmarks/results/rounding.md.
"""

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from maisi.bundle.bundle import load_bundle
from maisi.data.latents import Latent
from maisi.networks.autoencoder import Autoencoder
from maisi.networks.blocks import ResBlock
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import decode, encode
from maisi.space.files import read_volume
from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import Volume
from maisi.splitting.precision import is_narrow

RESULTS = Path(__file__).parent / "results"
SPACING = (4.0, 4.0, 4.0)
ALL = frozenset({"weights", "inputs", "results", "sums", "first and last", "last result"})
ROWS = {
    "all": ALL,
    "all but the last result": ALL - {"last result"},
    "all but the last result and residual sums": ALL - {"last result", "sums", "results"},
    "all but the first and the last convolutions (`--precision bfloat16`)": ALL - {"last result", "first and last"},
    "the same, conv results added unrounded": ALL - {"last result", "first and last", "results"},
    "the same, residual sums unrounded too": ALL - {"last result", "first and last", "results", "sums"},
}


def rounded(x: Tensor) -> Tensor:
    """The nearest numbers of bfloat16."""
    return x.bfloat16().float()


def rounding_network(places: frozenset[str]) -> Autoencoder:
    """The packaged autoencoder in float32 that rounds in these places."""
    network = load_bundle("ct-small").autoencoder
    last = {network.to_mean, network.to_log_variance, network.decoder.conv_out}

    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            ends = ("first and last",) if is_narrow(module) else ()
            if places.issuperset({"weights", *ends}):
                for parameter in module.parameters():
                    parameter.data = rounded(parameter.data)
            if places.issuperset({"inputs", *ends}):
                module.register_forward_pre_hook(lambda module, inputs: rounded(inputs[0]))
            if places.issuperset({"last result" if module in last else "results", *ends}):
                module.register_forward_hook(lambda module, inputs, result: rounded(result))
        elif isinstance(module, ResBlock) and "sums" in places:
            module.register_forward_hook(lambda module, inputs, result: rounded(result))
    return network


def deviations(volume: Volume, exact: tuple[Latent, Volume], network: Autoencoder) -> tuple[float, float]:
    """HU rms of decoding the exact latent, and of encoding and decoding."""
    latent, truth = exact
    given = decode(network, latent), decode(network, encode(network, volume))
    first, second = (float(np.sqrt(np.mean((found.array.astype(float) - truth.array) ** 2))) for found in given)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volumes", nargs="*", type=Path)
    rng = np.random.default_rng(0)
    phantom = draw_phantom("chest", Grid.centered((96, 80, 64), SPACING), rng)
    volumes = {"phantom": render_phantom(phantom, rng)}
    for path in parser.parse_args().volumes:
        volume = read_volume(path)
        volumes[path.parent.name] = resample(volume, with_spacing(volume.grid, SPACING))
    plain = load_bundle("ct-small").autoencoder
    exact = {}
    for name, volume in volumes.items():
        latent = encode(plain, volume)
        exact[name] = latent, decode(plain, latent)
    heads = [f"{name}: {what}" for name in volumes for what in ("decode", "encode and decode")]
    lines = [f"| rounded to bfloat16 | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for row, places in ROWS.items():
        network = rounding_network(places)
        values = [f"{hu:.2f}" for n, volume in volumes.items() for hu in deviations(volume, exact[n], network)]
        lines.append(f"| {row} | {' | '.join(values)} |")
    (RESULTS / "rounding.md").write_text("## HU rms of what is rounded\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
