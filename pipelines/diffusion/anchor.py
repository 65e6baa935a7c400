"""Upsampling from a good guess: the network says only what the low resolution leaves open."""

from pipelines.diffusion.noise import Denoise, NoiseSchedule, per_clip
from pipelines.tensors import Context, Latents, Timestep


def anchored(denoise: Denoise, low: Context, level: Timestep, schedule: NoiseSchedule, deviation: float) -> Denoise:
    """Add a network's answer to that of the exact model of N(low, deviation^2), which knows no edges.

    An untrained network that answers 0 thus gives the low resolution with noise of `deviation`; a trained one puts the
    detail in the place of the noise. It plays the part of the skip connection of Karras et al. 2022 (section 5).

    Args:
        denoise: the network.
        low: low resolution with noise of `level`, at the size of what is denoised.
        level: timestep of that noise in the same schedule.
        schedule: of both.
        deviation: of frames from their low resolution brought to their size, in units of what is denoised.

    Source: ours; residual learning for diffusion upsamplers is due to Li et al. 2021 (SRDiff, arXiv 2104.14951).
    """
    guess = low / per_clip(schedule.alpha(level))
    variance = deviation**2 + per_clip(schedule.sigma(level) / schedule.alpha(level)).square()

    def call(noisy: Latents, timestep: Timestep) -> Latents:
        alpha, sigma = per_clip(schedule.alpha(timestep)), per_clip(schedule.sigma(timestep))
        total = sigma.square() + alpha.square() * variance
        latents = (sigma.square() * guess + alpha * variance * noisy) / total
        noise = sigma * (noisy - alpha * guess) / total
        return schedule.target(latents, timestep, noise) + denoise(noisy, timestep)

    return call
