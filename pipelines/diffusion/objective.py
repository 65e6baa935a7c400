"""The one loss of every latent, pixel and upsampling model: E || y - f(x_tau; c, tau) ||^2.

Source: Blattmann et al. 2023, equations 2, 3 and 5; they differ in the conditions bound into the denoise function.
"""

from collections.abc import Sequence

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.tensors import Latents, Timestep


def denoising_loss(
    denoise: Denoise,
    latents: Latents,
    schedule: NoiseSchedule,
    timestep: Timestep,
    noise: Latents,
    *,
    frame_weights: Float[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Weighted mean squared error of each clip, in float32 or wider; their mean is the loss to minimise.

    One number per clip lets training name, and leave out, a clip whose loss is not finite.

    Args:
        denoise: network with its conditions bound.
        latents: clean latents.
        schedule: what the network predicts, and the weight of each timestep.
        timestep: from `draw_noise`.
        noise: from `draw_noise`.
        frame_weights: relative weight of each frame, such as 0 for given frames; None weights all alike, as the paper
            does. A clip with no weight at all has loss 0.
    """
    prediction = denoise(schedule.add_noise(latents, timestep, noise), timestep)
    error = (prediction - schedule.target(latents, timestep, noise)).square()
    error_of_frames = reduce(error, "b t z h w -> b t", "mean")
    if frame_weights is None:
        error_of_clips = error_of_frames.mean(dim=1)
    else:
        weights = frame_weights.to(error_of_frames)
        total = weights.sum(dim=1).clamp(min=torch.finfo(weights.dtype).tiny)
        error_of_clips = (weights * error_of_frames).sum(dim=1) / total
    return error_of_clips * schedule.loss_weight(timestep)


def draw_noise(
    schedule: NoiseSchedule, latents: Latents, generators: Sequence[torch.Generator]
) -> tuple[Timestep, Latents]:
    """Draw the timestep and noise of a training step, from one generator per clip.

    A clip's noise then depends on its own generator alone: not on its batch, the worker or the world size.

    Raises:
        ValueError: If there are more or fewer generators than clips.
    """
    if len(generators) != latents.shape[0]:
        raise ValueError(f"{len(generators)} generators for {latents.shape[0]} clips; give one per clip")
    shape = (1, *latents.shape[1:])
    draws = [(schedule.sample_timesteps(1, own), schedule.sample_noise(shape, own)) for own in generators]
    timesteps, noises = zip(*draws, strict=True)
    return torch.cat(timesteps).to(latents.device), torch.cat(noises).to(latents.device)
