"""Losses beside the denoising loss of pipelines.diffusion.objective: pure functions that give one number per sample."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.models.latent_space import Autoencoder
from pipelines.tensors import Frames
from training.batches import FrameBatch

Losses = Float[Tensor, " b"]


def autoencoder_losses(vae: Autoencoder, batch: FrameBatch, *, gradient_weight: float, kl_weight: float) -> Losses:
    """Reconstruction of frames by an autoencoder with a Gaussian latent space.

    L1 of pixels, L1 of pixel differences at three scales (edges, where L1 alone leaves a blur; stands in for a
    perceptual network) and a small pull of the posterior to the standard normal.

    Args:
        vae: the autoencoder.
        batch: frames and the noise of the posterior.
        gradient_weight: weight of the differences.
        kl_weight: weight of the divergence, per latent value.
    """
    posterior = vae.encode(rearrange(batch.frames, "b t c H W -> (b t) c H W")).latent_dist
    z = posterior.mean + posterior.std * rearrange(batch.noise, "b t z h w -> (b t) z h w")
    frames = rearrange(vae.decode(z).sample, "(b t) c H W -> b t c H W", b=batch.frames.shape[0])
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    divergence = reduce(divergence, "(b t) z h w -> b", "mean", b=batch.frames.shape[0])
    return reconstruction_losses(frames, batch.frames, gradient_weight) + kl_weight * divergence


def reconstruction_losses(frames: Frames, target: Frames, gradient_weight: float) -> Losses:
    """L1 of pixels, and of pixel differences at full, half and quarter size."""
    error = reduce((frames - target).abs(), "b t c H W -> b", "mean")
    difference = rearrange(frames - target, "b t c H W -> (b t) c H W")
    for _ in range(3):
        edges = torch.stack(
            [reduce(difference.diff(dim=axis).abs(), "(b t) c H W -> b", "mean", b=target.shape[0]) for axis in (2, 3)]
        )
        error = error + gradient_weight / 3 * edges.sum(0)
        difference = functional.avg_pool2d(difference, 2)
    return error


def discriminator_losses(real: Float[Tensor, "b 1 t h w"], fake: Float[Tensor, "b 1 t h w"]) -> Losses:
    """Hinge loss of a patch discriminator: its answers are to be above 1 for real clips and below -1 for others."""
    return 0.5 * (_mean(functional.relu(1 - real)) + _mean(functional.relu(1 + fake)))


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_weight: Tensor, weight: float
) -> Float[Tensor, ""]:
    """Balance the adversarial loss by the gradients that reach the decoder's last weight: w |g_rec| / (|g_adv| + 1e-4).

    Source: Esser et al. 2021, as in latent-diffusion's autoencoder losses; clamped at 1e4 like there.
    """
    (g_rec,) = torch.autograd.grad(reconstruction, [last_weight], retain_graph=True)
    (g_adv,) = torch.autograd.grad(adversarial, [last_weight], retain_graph=True)
    return (weight * g_rec.norm() / (g_adv.norm() + 1e-4)).clamp(0, 1e4).detach()


def _mean(values: Float[Tensor, "b 1 t h w"]) -> Losses:
    return reduce(values, "b 1 t h w -> b", "mean")
