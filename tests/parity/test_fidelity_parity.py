"""PSNR and SSIM against MONAI's."""

import numpy as np
import pytest
import torch

from maisi.space.similarity import psnr, ssim

monai_metrics = pytest.importorskip("monai.metrics.regression")


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = np.cumsum(rng.normal(0, 60, (28, 26, 24)), axis=0)
    return a, a + rng.normal(0, 50, a.shape)


def test_psnr_equals_the_reference() -> None:
    a, b = pair()
    reference = monai_metrics.PSNRMetric(max_val=2000.0)(torch.tensor(a)[None, None], torch.tensor(b)[None, None])
    assert psnr(a, b) == pytest.approx(float(reference), abs=1e-6)


def test_ssim_equals_the_reference() -> None:
    a, b = pair()
    metric = monai_metrics.SSIMMetric(spatial_dims=3, data_range=2000.0, win_size=11, kernel_sigma=1.5)
    reference = metric(torch.tensor(a)[None, None].float(), torch.tensor(b)[None, None].float())
    assert ssim(a, b) == pytest.approx(float(reference), abs=1e-4)
