"""Losses beside the denoising loss of pipelines.diffusion.objective: pure functions that give one number per sample."""

from collections.abc import Callable

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.models.latent_space import Autoencoder
from pipelines.tensors import Frames
from training.batches import FrameBatch

Losses = Float[Tensor, " b"]
Logits = Float[Tensor, "b t h w"]

Distance = Callable[[Float[Tensor, "n 3 H W"], Float[Tensor, "n 3 H W"]], Float[Tensor, " n"]]
"""How far images are from others, such as `pipelines.metrics.perceptual.PerceptualDistance`."""

SCALES = 3
"""Sizes at which a reconstruction is compared: full, half and quarter."""

COLOUR_WEIGHT = 24.0
"""Weight of the square of what is left of an error without its grey: few pixels of a street have colour, and under an
absolute error most are best served by grey."""


def autoencoder_losses(vae: Autoencoder, batch: FrameBatch, *, gradient_weight: float, kl_weight: float) -> Losses:
    """Reconstruction of frames by an autoencoder with a Gaussian or a quantised latent space.

    L1 of pixels and of pixel differences (edges, where L1 alone leaves a blur; stands in for a perceptual network) and
    L2 of colour, at three scales; and a small pull of the posterior to the standard normal, or of the latents to codes.

    Args:
        vae: the autoencoder.
        batch: frames and the noise of the posterior.
        gradient_weight: weight of the differences.
        kl_weight: weight of the divergence, per latent value.
    """
    if isinstance(vae, VQModel):
        output = vae(rearrange(batch.frames, "b t c H W -> (b t) c H W"))
        frames = rearrange(output.sample, "(b t) c H W -> b t c H W", b=batch.frames.shape[0])
        return reconstruction_losses(frames, batch.frames, gradient_weight) + output.commit_loss.mean()
    posterior = vae.encode(rearrange(batch.frames, "b t c H W -> (b t) c H W")).latent_dist
    z = posterior.mean + posterior.std * rearrange(batch.noise, "b t z h w -> (b t) z h w")
    frames = rearrange(vae.decode(z).sample, "(b t) c H W -> b t c H W", b=batch.frames.shape[0])
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    divergence = reduce(divergence, "(b t) z h w -> b", "mean", b=batch.frames.shape[0])
    return reconstruction_losses(frames, batch.frames, gradient_weight) + kl_weight * divergence


def reconstruction_losses(frames: Frames, target: Frames, gradient_weight: float) -> Losses:
    """L1 of pixels and of pixel differences, and L2 of colour, mean over sizes."""
    difference = rearrange(frames - target, "b t c H W -> (b t) c H W")
    error = torch.zeros_like(frames[:, 0, 0, 0, 0])
    for _ in range(SCALES):
        colour = difference - difference.mean(dim=1, keepdim=True)
        pixels = difference.abs() + COLOUR_WEIGHT * colour.square()
        error = error + reduce(pixels, "(b t) c H W -> b", "mean", b=target.shape[0]) / SCALES
        edges = torch.stack(
            [reduce(difference.diff(dim=axis).abs(), "(b t) c H W -> b", "mean", b=target.shape[0]) for axis in (2, 3)]
        )
        error = error + gradient_weight / SCALES * edges.sum(0)
        difference = functional.avg_pool2d(difference, 2)
    return error


def perceptual_losses(frames: Frames, target: Frames, distance: Distance) -> Losses:
    """Mean distance of a clip's frames from those of another, by a frozen network that compares images."""
    one, other = (rearrange(clip, "b t c H W -> (b t) c H W") for clip in (frames, target))
    return reduce(distance(one, other), "(b t) -> b", "mean", b=target.shape[0])


def discriminator_losses(real: Logits, fake: Logits) -> Losses:
    """Hinge loss of a patch discriminator: above 1 for real clips and below -1 for others."""
    values = functional.relu(1 - real) + functional.relu(1 + fake)
    return 0.5 * reduce(values, "b t h w -> b", "mean")


def adversarial_losses(fake: Logits) -> Losses:
    """Hinge loss of what the discriminator judges."""
    return -reduce(fake, "b t h w -> b", "mean")
