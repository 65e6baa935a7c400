"""Sampling by configuration: which sampler, how many steps, and at which timesteps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from pipelines.diffusion.multistep import sample_dpm_solver, sample_unipc
from pipelines.diffusion.noise import Denoise, NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import SamplerState, Seed
from pipelines.diffusion.solvers import Timesteps, sample_ddim, sample_ddpm, sample_euler, sample_heun

SamplerName = Literal["ddim", "ddpm", "euler", "heun", "dpm_solver", "unipc"]
Spacing = Literal["trailing", "leading", "linspace"]

SAMPLERS: Mapping[SamplerName, Callable[..., Iterator[SamplerState]]] = {
    "ddim": sample_ddim,
    "ddpm": sample_ddpm,
    "euler": sample_euler,
    "heun": sample_heun,
    "dpm_solver": sample_dpm_solver,
    "unipc": sample_unipc,
}


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How to walk from noise to clean latents.

    Attributes:
        name: "ddim" (with eta, the paper's), "ddpm", "euler", "heun" (two network calls a step), "dpm_solver"
            (DPM-Solver++(2M)) or "unipc" (order 2).
        num_steps: number of steps.
        eta: DDIM's share of fresh noise: 0 deterministic, 1 as much as DDPM.
        spacing: "trailing" starts at the last timestep; "leading" starts short of it, as latent-diffusion code does;
            "linspace" takes both ends. EDM spaces by rho instead (Lin et al. 2023, table 2).
        steps_offset: added to every timestep of "leading"; latent-diffusion code and Stable Diffusion use 1.
        rho: bend of EDM's noise levels: larger spends more steps on little noise (Karras et al. 2022, equation 5).
    """

    name: SamplerName
    num_steps: int
    eta: float = 0.0
    spacing: Spacing = "trailing"
    steps_offset: int = 0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler name={self.name!r}; use one of {sorted(SAMPLERS)}")
        if self.spacing not in ("trailing", "leading", "linspace"):
            raise ValueError(f"spacing={self.spacing!r}; use 'trailing', 'leading' or 'linspace'")
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps}; use 1 or more")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}; use 0 (deterministic) to 1 (as DDPM)")
        if self.eta > 0 and self.name != "ddim":
            raise ValueError(f"eta={self.eta} with sampler name={self.name!r}; only 'ddim' has eta, use eta=0.0")
        if self.steps_offset < 0 or (self.steps_offset > 0 and self.spacing != "leading"):
            raise ValueError(
                f"steps_offset={self.steps_offset} with spacing={self.spacing!r}; use 0, or spacing='leading'"
            )
        if self.rho <= 0:
            raise ValueError(f"rho={self.rho}; use a positive number such as 7.0")


def sample(
    config: SamplerConfig,
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """Sample with the configured sampler, yielding the state after every step.

    Args:
        config: sampler, steps and spacing.
        denoise: network with its conditions bound, possibly under guidance.
        schedule: what the network predicts and the noise of its timesteps.
        state: `initial_state(noise)`, or a stored state to continue from.
        seed: of the fresh noise; one for all clips or one per clip (see `clip_noise`).

    Raises:
        ValueError: If the timesteps do not fit the schedule, or the state does not fit the sampler.
    """
    timesteps = sampling_timesteps(config, schedule.config)
    sampler = SAMPLERS[config.name]
    if config.name == "ddim":
        sampler = partial(sample_ddim, eta=config.eta)
    return sampler(denoise, schedule, state, timesteps, seed=seed)


def sampling_timesteps(config: SamplerConfig, noise: NoiseConfig) -> Timesteps:
    """Timesteps of a sampler, noisy first.

    Raises:
        ValueError: If there are more steps than timesteps, or a zero-SNR schedule would not start at its last timestep.
    """
    if noise.prediction == "edm":
        return 0.25 * edm_sigmas(config, noise).log().float()
    total, steps = noise.num_timesteps, config.num_steps
    if steps > total:
        raise ValueError(f"num_steps={steps} for {total} timesteps; use at most {total}")
    index = torch.arange(steps, dtype=torch.float64)
    if config.spacing == "trailing":
        timesteps = (total - index * total / steps).round() - 1
    elif config.spacing == "linspace":
        timesteps = ((total - 1) * (1 - index / max(steps - 1, 1))).round()
    else:
        timesteps = index.flip(0) * (total // steps) + config.steps_offset
    first = int(timesteps[0])
    if first >= total:
        raise ValueError(f"steps_offset={config.steps_offset} puts the first timestep at {first} of {total}; lower it")
    if noise.zero_terminal_snr and first != total - 1:
        raise ValueError(
            f"spacing={config.spacing!r} starts at timestep {first}, but a zero_terminal_snr schedule is pure noise "
            f"only at {total - 1}; use spacing='trailing'"
        )
    return timesteps.float()


def edm_sigmas(config: SamplerConfig, noise: NoiseConfig) -> Timesteps:
    """Noise levels between sigma_max and sigma_min, evenly spaced in sigma^(1/rho).

    Source: Karras et al. 2022, equation 5.
    """
    ramp = torch.arange(config.num_steps, dtype=torch.float64) / max(config.num_steps - 1, 1)
    high, low = noise.sigma_max ** (1 / config.rho), noise.sigma_min ** (1 / config.rho)
    return (high + ramp * (low - high)) ** config.rho
