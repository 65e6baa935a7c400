"""What the temporal decoder is trained against: a discriminator of volumes, and its weight in the loss.

Source: Blattmann et al. 2023, section 3.1.1. The paper gives neither the discriminator's layers nor the weights of the
losses; the balance is that of the autoencoders it builds on (Esser et al. 2021, VQGAN).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.models.temporal_convolution import TimeConv
from pipelines.tensors import Frames

Scalar = Float[Tensor, ""]


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
