"""Noise schedules: eps, v and EDM prediction behind one variance-preserving interface.

Every schedule is x_tau = alpha x + sigma eps with alpha^2 + sigma^2 = 1 (Blattmann et al. 2023, section 2), so
samplers, guidance and objective never ask which one it is. EDM with sigma_data = 1 fits exactly: dividing its noisy
sample by sqrt(1 + sigma^2) is its own input scaling c_in, and its network then returns v (with the sign of Stable Video
Diffusion: c_out is negative). Its timestep is 0.25 ln(sigma) (Karras et al. 2022, table 1; SVD, appendix D.2).

Alpha and sigma are computed in float64 and returned in the timestep's type. Timesteps must be float32 or wider: 999
rounds to 1000 in bfloat16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipelines.tensors import Latents, Timestep

Denoise = Callable[[Latents, Timestep], Latents]
"""A network with its conditions bound: (noisy, timestep) -> raw prediction, as NoiseConfig.prediction says."""

Prediction = Literal["epsilon", "v_prediction", "edm"]
BetaSchedule = Literal["scaled_linear", "linear"]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What the network predicts, and how much noise each timestep stands for.

    Attributes:
        prediction: "epsilon"; "v_prediction"; or "edm", continuous noise levels with a v-predicting network.
        schedule: "scaled_linear" is linear in sqrt(beta), which latent-diffusion code calls "linear" (the schedule of
            the paper's latent models); "linear" is linear in beta. "edm" ignores schedule, betas and num_timesteps.
        beta_start: beta of the first timestep.
        beta_end: beta of the last timestep.
        num_timesteps: number of discrete timesteps.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2023, algorithm 1).
        offset_noise: standard deviation of an extra noise constant over a clip's frames and pixels; 0 turns it off.
        min_snr_gamma: cap of the signal-to-noise ratio in the loss weight (Hang et al. 2023); None weights all alike.
        P_mean: mean of ln(sigma) in EDM training; larger for larger pictures (SVD, appendix D).
        P_std: standard deviation of ln(sigma) in EDM training.
        sigma_min: last noise level of EDM sampling.
        sigma_max: first noise level of EDM sampling.
    """

    prediction: Prediction
    schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    zero_terminal_snr: bool = False
    offset_noise: float = 0.0
    min_snr_gamma: float | None = None
    P_mean: float = 0.7
    P_std: float = 1.6
    sigma_min: float = 0.002
    sigma_max: float = 700.0

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction", "edm"):
            raise ValueError(f"prediction={self.prediction!r}; use 'epsilon', 'v_prediction' or 'edm'")
        if self.schedule not in ("scaled_linear", "linear"):
            raise ValueError(f"schedule={self.schedule!r}; use 'scaled_linear' or 'linear'")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}; use 0 < beta_start <= beta_end < 1"
            )
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps={self.num_timesteps}; use 2 or more")
        if self.zero_terminal_snr and self.prediction != "v_prediction":
            raise ValueError(
                f"zero_terminal_snr with prediction={self.prediction!r}: at pure noise eps does not determine the "
                "latents, and 'edm' has no last timestep; use prediction='v_prediction'"
            )
        if self.offset_noise < 0:
            raise ValueError(f"offset_noise={self.offset_noise}; use 0 (off) or a positive strength such as 0.02")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma={self.min_snr_gamma}; use None (off) or a positive cap such as 5.0")
        if self.P_std <= 0 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"P_std={self.P_std}, sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; "
                "use P_std > 0 and 0 < sigma_min < sigma_max"
            )


class NoiseSchedule:
    """alpha and sigma of every timestep, and the conversions between latents, noise and prediction."""

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        self._alpha_bar = torch.empty(0) if config.prediction == "edm" else alpha_bars(config)

    def alpha(self, timestep: Timestep) -> Timestep:
        """Signal level alpha of each clip, in [0, 1)."""
        return self._signal_power(timestep).sqrt().to(timestep.dtype)

    def sigma(self, timestep: Timestep) -> Timestep:
        """Noise level sigma of each clip, in (0, 1]."""
        return self._noise_power(timestep).sqrt().to(timestep.dtype)

    def snr(self, timestep: Timestep) -> Timestep:
        """Signal-to-noise ratio alpha^2 / sigma^2 of each clip; 0 at the last timestep of a zero-SNR schedule."""
        return (self._signal_power(timestep) / self._noise_power(timestep)).to(timestep.dtype)

    def sample_timesteps(self, b: int, generator: torch.Generator) -> Timestep:
        """Draw a training timestep per clip: uniform (paper, appendix F); EDM draws ln(sigma) ~ N(P_mean, P_std^2)."""
        if self.config.prediction == "edm":
            normal = torch.randn(b, generator=generator, device=generator.device)
            return 0.25 * (self.config.P_mean + self.config.P_std * normal)
        index = torch.randint(self.config.num_timesteps, (b,), generator=generator, device=generator.device)
        return index.to(torch.float32)

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Latents:
        """Draw training noise for clips of `shape` (b t z h w), with offset noise if the config asks for it.

        The offset is one number per clip and channel: brightness shared by all frames is what noise hides worst.
        """
        noise = torch.randn(shape, generator=generator, device=generator.device)
        if self.config.offset_noise == 0:
            return noise
        b, _, z, _, _ = shape
        offset = torch.randn((b, 1, z, 1, 1), generator=generator, device=generator.device)
        return noise + self.config.offset_noise * offset

    def add_noise(self, latents: Latents, timestep: Timestep, noise: Latents) -> Latents:
        """x_tau = alpha x + sigma eps, in the type of `latents`."""
        alpha, sigma = self._levels(timestep)
        return (alpha * latents + sigma * noise).to(latents.dtype)

    def target(self, latents: Latents, timestep: Timestep, noise: Latents) -> Latents:
        """What the network should return: y = eps, or v = alpha eps - sigma x (paper, section 2); float32 or wider."""
        alpha, sigma = self._levels(timestep)
        if self.config.prediction == "epsilon":
            return noise.to(torch.promote_types(noise.dtype, alpha.dtype))
        return alpha * noise - sigma * latents

    def denoised(self, noisy: Latents, prediction: Latents, timestep: Timestep) -> Latents:
        """Estimate of the clean latents x that a prediction stands for; float32 or wider."""
        alpha, sigma = self._levels(timestep)
        if self.config.prediction == "epsilon":
            return (noisy - sigma * prediction) / alpha
        return alpha * noisy - sigma * prediction

    def noise(self, noisy: Latents, prediction: Latents, timestep: Timestep) -> Latents:
        """Estimate of the noise eps that a prediction stands for; float32 or wider."""
        alpha, sigma = self._levels(timestep)
        if self.config.prediction == "epsilon":
            return prediction.to(torch.promote_types(prediction.dtype, alpha.dtype))
        return sigma * noisy + alpha * prediction

    def loss_weight(self, timestep: Timestep) -> Timestep:
        """Weight of each clip's squared error: 1, or min-SNR weighting.

        min(SNR, gamma) weights the squared error of x; that of eps is SNR times larger, that of v SNR + 1 times, hence
        the divisors. For v the weight would be 0 at zero terminal SNR, where sampling starts and the overall brightness
        is decided, so such schedules take min(SNR + 1, gamma) / (SNR + 1): still capped, and 1 at pure noise.

        Source: Hang et al. 2023, section 3.4.
        """
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return torch.ones_like(timestep)
        snr = self.snr(timestep)
        if self.config.prediction == "epsilon":
            return snr.clamp(max=gamma) / snr
        floor = 1.0 if self.config.zero_terminal_snr else 0.0
        return (snr + floor).clamp(max=gamma) / (snr + 1)

    def _signal_power(self, timestep: Timestep) -> Float[Tensor, " b"]:
        _check_precision(timestep)
        if self.config.prediction == "edm":
            return torch.sigmoid(-8 * timestep.double())
        return self._alpha_bar.to(timestep.device).index_select(0, timestep.round().long())

    def _noise_power(self, timestep: Timestep) -> Float[Tensor, " b"]:
        # 1 - sigmoid(-x) would lose every digit of a small sigma.
        if self.config.prediction == "edm":
            _check_precision(timestep)
            return torch.sigmoid(8 * timestep.double())
        return 1 - self._signal_power(timestep)

    def _levels(self, timestep: Timestep) -> tuple[Float[Tensor, "b 1 1 1 1"], Float[Tensor, "b 1 1 1 1"]]:
        return per_clip(self.alpha(timestep)), per_clip(self.sigma(timestep))


def alpha_bars(config: NoiseConfig) -> Float[Tensor, " n"]:
    """alpha^2 of each discrete timestep: the cumulative product of 1 - beta, in float64."""
    if config.schedule == "scaled_linear":
        roots = torch.linspace(
            math.sqrt(config.beta_start), math.sqrt(config.beta_end), config.num_timesteps, dtype=torch.float64
        )
        betas = roots.square()
    else:
        betas = torch.linspace(config.beta_start, config.beta_end, config.num_timesteps, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    return rescale_to_zero_terminal_snr(alpha_bar) if config.zero_terminal_snr else alpha_bar


def rescale_to_zero_terminal_snr(alpha_bar: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Shift and scale alpha so that the first timestep keeps its value and the last becomes exactly 0.

    Source: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
    """
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()


def per_clip(value: Timestep) -> Float[Tensor, "b 1 1 1 1"]:
    """Shape one number per clip so that it multiplies latents `b t z h w`."""
    return rearrange(value, "b -> b 1 1 1 1")


def _check_precision(timestep: Timestep) -> None:
    if timestep.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"timestep has type {timestep.dtype}, which cannot hold every timestep; keep it in float32 "
            "and let the network cast its own embedding"
        )
