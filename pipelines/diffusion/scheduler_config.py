"""Noise config from and to the `scheduler/` folder of a diffusers backbone, which thereby decides its own noise."""

from collections.abc import Mapping
from typing import Any

from pipelines.diffusion.noise import NoiseConfig

# What every diffusers scheduler assumes for a key that its file leaves out.
DIFFUSERS_DEFAULTS: Mapping[str, Any] = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "timestep_type": "discrete",
}


def noise_config_from_diffusers(scheduler: Mapping[str, Any]) -> NoiseConfig:
    """Read what a backbone predicts and its noise schedule from its `scheduler_config.json`.

    Training-only fields (offset noise, min-SNR, EDM's P_mean and P_std) are not in the file and keep their defaults.

    Args:
        scheduler: the parsed file, or `scheduler.config` of a loaded diffusers scheduler.

    Raises:
        ValueError: If the schedule is of a kind NoiseConfig does not have.
    """
    values = {**DIFFUSERS_DEFAULTS, **scheduler}
    # A config in memory has no class name; only diffusers' EDM schedulers have sigma_data.
    if "sigma_data" in values or values["timestep_type"] == "continuous":
        return _edm_config(values)
    if values["trained_betas"] is not None:
        raise ValueError(
            "scheduler has trained_betas, a free table of noise; only linear and scaled_linear are supported"
        )
    if values["beta_schedule"] not in ("linear", "scaled_linear"):
        raise ValueError(f"scheduler has beta_schedule={values['beta_schedule']!r}; use 'linear' or 'scaled_linear'")
    if values["prediction_type"] not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"scheduler has prediction_type={values['prediction_type']!r}; use 'epsilon' or 'v_prediction'"
        )
    return NoiseConfig(
        prediction=values["prediction_type"],
        schedule=values["beta_schedule"],
        beta_start=float(values["beta_start"]),
        beta_end=float(values["beta_end"]),
        num_timesteps=int(values["num_train_timesteps"]),
        zero_terminal_snr=bool(values["rescale_betas_zero_snr"]),
    )


def diffusers_from_noise_config(config: NoiseConfig) -> dict[str, Any]:
    """Write a `scheduler_config.json` that diffusers loads to sample as `config` says.

    EDM becomes the scheduler that Stable Video Diffusion ships. The file ends sampling at clean latents and spaces
    timesteps from the last one, as `SamplerConfig` does by default.
    """
    if config.prediction == "edm":
        return {
            "_class_name": "EulerDiscreteScheduler",
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
            "sigma_min": config.sigma_min,
            "sigma_max": config.sigma_max,
        }
    return {
        "_class_name": "DDIMScheduler",
        "prediction_type": config.prediction,
        "beta_schedule": config.schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "num_train_timesteps": config.num_timesteps,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }


def _edm_config(values: Mapping[str, Any]) -> NoiseConfig:
    prediction, sigma_data = values["prediction_type"], values.get("sigma_data", 1.0)
    if prediction != "v_prediction" or sigma_data != 1:
        raise ValueError(
            f"scheduler has continuous noise, prediction_type={prediction!r} and sigma_data={sigma_data}; "
            "use 'v_prediction' and 1.0 (Stable Video Diffusion's form)"
        )
    sigma_min, sigma_max = values.get("sigma_min"), values.get("sigma_max")
    if sigma_min is None or sigma_max is None:
        raise ValueError(f"scheduler has sigma_min={sigma_min}, sigma_max={sigma_max}; write both into its config")
    return NoiseConfig(prediction="edm", sigma_min=float(sigma_min), sigma_max=float(sigma_max))
