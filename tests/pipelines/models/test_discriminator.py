import pytest
import torch
from torch import nn

from pipelines.models.discriminator import DiscriminatorConfig, VideoDiscriminator, adaptive_weight


@pytest.fixture
def discriminator() -> VideoDiscriminator:
    return VideoDiscriminator(DiscriminatorConfig(width=8))


def test_discriminator_gives_a_map_of_logits_for_each_frame(discriminator):
    logits = discriminator(torch.randn(2, 6, 3, 32, 48))
    assert logits.shape == (2, 6, 4, 6)
    sizes = {tuple(p.shape) for p in discriminator.parameters() if p.ndim == 5}
    assert sizes == {(8, 3, 3, 4, 4), (16, 8, 3, 4, 4), (32, 16, 3, 4, 4), (1, 32, 3, 3, 3)}


def test_discriminator_sees_the_order_of_frames(discriminator):
    frames = torch.randn(1, 6, 3, 16, 24)
    shuffled = frames[:, [0, 2, 1, 3, 5, 4]]
    logits = discriminator(frames)
    assert not torch.allclose(discriminator(shuffled).mean(), logits.mean(), atol=1e-5)
    changed = frames.clone()
    changed[:, 0] += 1
    assert not torch.allclose(discriminator(changed)[:, 3], logits[:, 3], atol=1e-5)


def test_adaptive_weight_balances_the_gradients_at_the_last_weight():
    weight = nn.Parameter(torch.tensor([[3.0, -2.0], [0.5, 4.0]]))
    inputs = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]])
    reconstruction, adversarial = (inputs @ weight).square().mean(), (inputs @ weight).sum() * 0.01
    by_hand = (inputs.T @ (2 * inputs @ weight.detach()) / 6).norm() / (0.01 * inputs.sum(0) * 2**0.5).norm()
    d = adaptive_weight(reconstruction, adversarial, weight, scale=0.5)
    assert d.item() == pytest.approx(0.5 * by_hand.item(), rel=1e-2)
    assert not d.requires_grad
    (reconstruction + d * adversarial).backward()
    tiny = adaptive_weight((inputs @ weight).sum(), (inputs @ weight).sum() * 1e-12, weight, scale=10.0)
    assert tiny.item() == pytest.approx(1e4)
