"""Adversarial losses against MONAI's."""

import pytest
import torch

from maisi.training.losses import discriminator_loss, generator_loss

adversarial = pytest.importorskip("monai.losses.adversarial_loss")


def test_least_squares_losses_equal_the_reference() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 1, 6, 6, 6), torch.randn(2, 1, 6, 6, 6)
    reference = adversarial.PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    as_generator = reference(fake, target_is_real=True, for_discriminator=False)
    as_real = reference(real, target_is_real=True, for_discriminator=True)
    as_fake = reference(fake, target_is_real=False, for_discriminator=True)
    assert float(generator_loss(fake)) == pytest.approx(float(as_generator), rel=1e-6)
    assert float(discriminator_loss(real, fake)) == pytest.approx(0.5 * float(as_real + as_fake), rel=1e-6)
