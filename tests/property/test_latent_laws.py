"""Laws of stored latents."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.data.latents import Latent, read_latent, write_latent
from maisi.space.grid import Grid

quick = settings(max_examples=40, deadline=None)
sizes = st.tuples(*[st.integers(1, 5)] * 3)
regions = list(BodyRegion)
ends = st.tuples(*[st.integers(0, len(regions) - 1)] * 2).map(sorted)
spans = ends.map(lambda pair: RegionSpan(*(regions[i] for i in pair)))


@st.composite
def latents(draw: st.DrawFn) -> Latent:
    shape = draw(sizes)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    mean, log_variance = (
        torch.randn((1, 3, *(-(-n // 2) for n in shape)), generator=random).to(dtype) for _ in range(2)
    )
    affine = np.diag([*draw(st.tuples(*[st.floats(0.1, 9)] * 3)), 1.0])
    affine[:3, 3] = draw(st.tuples(*[st.floats(-999, 999)] * 3))
    return Latent(
        mean,
        log_variance,
        Grid(shape, affine),
        draw(st.sampled_from(["ct", "mr"])),
        draw(st.sampled_from(["volume", "labels"])),
        draw(st.text(max_size=20)),
        draw(st.none() | st.just(torch.randint(0, 256, shape, generator=random, dtype=torch.uint8))),
        draw(st.none() | spans),
        draw(st.none() | st.integers(0, 127)),
        draw(st.text(max_size=20)),
    )


@quick
@given(latent=latents())
def test_a_latent_comes_back_from_disk_as_it_was(latent: Latent) -> None:
    with TemporaryDirectory() as folder:
        write_latent(latent, Path(folder) / "l.safetensors")
        back = read_latent(Path(folder) / "l.safetensors")
    for name in ("mean", "log_variance", "labels"):
        ours, theirs = getattr(latent, name), getattr(back, name)
        assert ours is theirs is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs))
    assert back.grid.shape == latent.grid.shape
    assert np.array_equal(back.grid.affine, latent.grid.affine)
    for name in ("modality", "content", "made_from", "span", "modality_code", "group", "factor"):
        assert getattr(back, name) == getattr(latent, name)
