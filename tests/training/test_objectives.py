"""Losses against their formulas."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pipelines.metrics.perceptual import PerceptualDistance
from training.objectives import (
    COLOUR_WEIGHT,
    adversarial_losses,
    discriminator_losses,
    perceptual_losses,
    reconstruction_losses,
)


def test_hinge_losses_by_hand() -> None:
    real = torch.tensor([[2.0, 0.5], [1.0, -1.0]]).view(2, 1, 1, 2)
    fake = torch.tensor([[-3.0, 0.5], [-1.0, -1.0]]).view(2, 1, 1, 2)
    by_hand = [0.5 * ((0 + 0.5) / 2 + (0 + 1.5) / 2), 0.5 * ((0 + 2.0) / 2 + 0)]
    assert_close(discriminator_losses(real, fake), torch.tensor(by_hand))
    assert_close(adversarial_losses(fake), torch.tensor([1.25, 1.0]))


def test_reconstruction_loss_sees_edges_beside_colour() -> None:
    target = torch.zeros(1, 2, 3, 16, 16)
    target[..., 8:] = 1
    other_colour, blurred = target + 0.25, functional.avg_pool3d(target, (1, 1, 5), 1, (0, 0, 2))
    assert reconstruction_losses(target, target, 1.0).item() == 0
    assert reconstruction_losses(other_colour, target, 1.0).item() == pytest.approx(0.25)
    plain, edged = (reconstruction_losses(blurred, target, weight).item() for weight in (0.0, 1.0))
    by_size = [functional.avg_pool3d(blurred - target, (1, size, size)).abs().mean().item() for size in (1, 2, 4)]
    assert plain == pytest.approx(sum(by_size) / 3)
    assert edged > 1.2 * plain


def test_reconstruction_loss_sees_colour_beside_grey() -> None:
    target = torch.zeros(1, 1, 3, 8, 8)
    grey, red = target + 0.1, target.clone()
    red[:, :, 0] = 0.3
    assert reconstruction_losses(grey, target, 1.0).item() == pytest.approx(0.1)
    colour = (0.2**2 + 0.1**2 + 0.1**2) / 3
    assert reconstruction_losses(red, target, 1.0).item() == pytest.approx(0.1 + COLOUR_WEIGHT * colour)


def test_perceptual_loss_is_the_mean_distance_of_a_clips_frames() -> None:
    torch.manual_seed(0)
    network = PerceptualDistance("alex").requires_grad_(False)
    frames, target = torch.rand(2, 2, 3, 3, 32, 40)
    frames.requires_grad_(True)
    losses = perceptual_losses(frames, target, network)
    for clip in range(2):
        by_frame = [network(frames[clip, t][None], target[clip, t][None]) for t in range(3)]
        assert_close(losses[clip], torch.cat(by_frame).mean(), rtol=1e-4, atol=1e-6)
    losses.sum().backward()
    assert frames.grad is not None
    assert frames.grad.abs().amax(dim=(2, 3, 4)).min() > 0
