"""Why windows have seams: one latent decoded whole, by MONAI's sliding windows and by slabs.

    python benchmarks/seams.py [--window 24] [--overlap 0.4]

Decodes the latent of a generated chest with the packaged bundle's weights, once as a whole, once with
`monai.inferers.SlidingWindowInferer` around MONAI's autoencoder (Gaussian blending), once with eight slabs. Writes
docs/images/seams.png (top: windows beside the whole, bottom: slabs beside the whole) and prints the deviations in HU.
"""
# ruff: noqa: E402

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parity"))
warnings.filterwarnings("ignore")
logging.disable(logging.INFO)

from monai.inferers import SlidingWindowInferer
from oracle_networks import oracle_of

import maisi
from maisi.pipelines.codec import decode_tensor, encode
from maisi.pipelines.preview import comparison, write_png
from maisi.space.intensity import from_unit
from maisi.space.volume import Volume
from maisi.splitting import SlabTensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=24, help="latent voxels an axis")
    parser.add_argument("--overlap", type=float, default=0.4)
    arguments = parser.parse_args()
    bundle = maisi.load_bundle("ct-small")
    sample = next(iter(maisi.generate(maisi.GenerateRequest(region="chest", seed=1), bundle)))
    latent = encode(bundle.autoencoder, sample.volume).mean
    whole = decode_tensor(bundle.autoencoder, latent, sample.volume.grid)
    monai = oracle_of(bundle.autoencoder)
    inferer = SlidingWindowInferer([arguments.window] * 3, overlap=arguments.overlap, mode="gaussian", progress=False)
    with torch.inference_mode():
        blended = inferer(latent, monai.decode)[0, 0].numpy()
        slabs = bundle.autoencoder.decode(SlabTensor.split(latent, 8)).gather()[0, 0].numpy()
    sheets = []
    for name, unit in (("sliding windows, blended", blended), ("eight slabs", slabs)):
        volume = Volume(from_unit(unit, "ct"), whole.grid)
        difference = abs(volume.array - whole.array)
        told = f"{name}: at most {difference.max():.3g} HU from the whole decode, mean {difference.mean():.2g} HU"
        print(told)
        sheets.append(comparison(whole, volume, told, ("whole", name.split(",")[0])))
    both = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)))
    both.paste(sheets[0], (0, 0))
    both.paste(sheets[1], (0, sheets[0].height))
    write_png(both, ROOT / "docs" / "images" / "seams.png")


if __name__ == "__main__":
    main()
