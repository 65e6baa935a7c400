"""What the temporal decoder is trained against: a discriminator of volumes, and distances between frames.

Source: Blattmann et al. 2023, section 3.1.1. The paper gives neither the discriminator's layers nor the weights of the
losses; losses and balance are those of the autoencoders it builds on (Esser et al. 2021, VQGAN).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.temporal_convolution import TimeConv
from pipelines.tensors import Frames

Scalar = Float[Tensor, ""]

Features = Callable[[Float[Tensor, "n 3 H W"]], Sequence[Tensor]]
"""A frozen network that turns images in [-1, 1] into feature maps n c h w of one or more depths."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the discriminator.

    Args:
        width: channels after the first layer; each further layer doubles them.
        num_layers: layers that halve height and width.
    """

    width: int = 64
    num_layers: int = 3


class VideoDiscriminator(nn.Module):
    """Judge patches of a clip by three-dimensional convolutions, which see flicker as well as blur.

    Time is not down-sampled: six frames in, six maps of logits out. Norms are over groups, because a batch on one
    device holds few clips.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * 2**index for index in range(config.num_layers)]
        layers: list[nn.Module] = [TimeConv(3, widths[0], 4, stride=2), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [TimeConv(before, after, 4, stride=2), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, TimeConv(widths[-1], 1, 3))

    def forward(self, frames: Frames) -> Float[Tensor, "b t h w"]:
        """Return a logit for each patch of each frame; high means real."""
        return rearrange(self.layers(rearrange(frames, "b t c H W -> b c t H W")), "b 1 t h w -> b t h w")


def discriminator_loss(real: Tensor, fake: Tensor) -> Scalar:
    """Hinge loss of the discriminator on logits of real and of decoded clips."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def adversarial_loss(fake: Tensor) -> Scalar:
    """Hinge loss of the decoder on the logits of its clips."""
    return -fake.mean()


def adaptive_weight(reconstruction: Scalar, adversarial: Scalar, last_weight: nn.Parameter, *, scale: float) -> Scalar:
    """Weigh the adversarial loss so that its gradient at the decoder's last weight is `scale` times the other's.

    d = scale * |grad rec| / (|grad adv| + 1e-4), at most 1e4.
    Source: Esser et al. 2021, equation 7.

    Args:
        reconstruction: reconstruction loss, with its graph.
        adversarial: adversarial loss, with its graph.
        last_weight: where both gradients are compared; it must require gradients.
        scale: 0.5 for Gaussian, 0.6 for quantised autoencoders.
    """
    of_reconstruction = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)[0].norm()
    of_adversarial = torch.autograd.grad(adversarial, last_weight, retain_graph=True)[0].norm()
    return (scale * of_reconstruction / (of_adversarial + 1e-4)).clamp(max=1e4).detach()


def feature_distance(frames: Frames, target: Frames, features: Features) -> Scalar:
    """Compare frames by the features of a network, each position's channels scaled to unit length.

    Source: Zhang et al. 2018 (LPIPS) with equal channel weights.
    """
    depths = zip(features(_images(frames)), features(_images(target)), strict=True)
    distances = [(_unit(one) - _unit(other)).square().sum(dim=1).mean() for one, other in depths]
    return torch.stack(distances).sum()


def laplacian_distance(frames: Frames, target: Frames, levels: int = 4) -> Scalar:
    """Compare frames by their Laplacian pyramids: edges and texture at each scale weigh as much as colour.

    The perceptual distance that needs no trained network.
    """
    difference = _images(frames) - _images(target)
    distances = []
    for _ in range(levels):
        if min(difference.shape[2:]) < 2:
            break
        coarse = functional.avg_pool2d(difference, 2)
        fine = functional.interpolate(coarse, difference.shape[2:], mode="bilinear", align_corners=False)
        distances.append((difference - fine).abs().mean())
        difference = coarse
    return torch.stack([*distances, difference.abs().mean()]).sum()


def _images(frames: Frames) -> Tensor:
    return rearrange(frames, "b t c H W -> (b t) c H W")


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)
