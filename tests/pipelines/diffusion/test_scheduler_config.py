import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.scheduler_config import diffusers_from_noise_config, noise_config_from_diffusers

# What the public Stable Diffusion 1.x and Stable Video Diffusion folders hold.
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
STABLE_VIDEO_DIFFUSION = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


@pytest.mark.parametrize("scheduler", [PNDMScheduler.from_config(STABLE_DIFFUSION), DDIMScheduler(), PNDMScheduler()])
def test_backbone_scheduler_decides_the_noise(scheduler):
    schedule = NoiseSchedule(noise_config_from_diffusers(scheduler.config))
    assert schedule.config.prediction == "epsilon"
    alpha = schedule.alpha(torch.arange(1000, dtype=torch.float32))
    assert_close(alpha.square(), scheduler.alphas_cumprod, rtol=1e-5, atol=0)


def test_missing_keys_mean_what_diffusers_means():
    scheduler = DDIMScheduler.from_config({"prediction_type": "v_prediction"})
    assert noise_config_from_diffusers({"prediction_type": "v_prediction"}) == noise_config_from_diffusers(
        scheduler.config
    )


def test_stable_video_diffusion_scheduler_is_edm():
    config = noise_config_from_diffusers(STABLE_VIDEO_DIFFUSION)
    assert (config.prediction, config.sigma_min, config.sigma_max) == ("edm", 0.002, 700.0)
    assert noise_config_from_diffusers(EulerDiscreteScheduler.from_config(STABLE_VIDEO_DIFFUSION).config) == config


def test_edm_scheduler_class_with_unit_data_is_edm():
    scheduler = EDMEulerScheduler(sigma_data=1.0, sigma_max=120.0, prediction_type="v_prediction")
    assert noise_config_from_diffusers(scheduler.config).sigma_max == 120.0


@pytest.mark.parametrize(
    "config",
    [
        NoiseConfig(prediction="epsilon", schedule="linear", beta_start=1e-4, beta_end=2e-2),
        NoiseConfig(prediction="v_prediction", zero_terminal_snr=True, num_timesteps=400),
        NoiseConfig(prediction="edm", sigma_min=0.01, sigma_max=300.0),
    ],
)
def test_written_config_reads_back_and_loads_in_diffusers(config):
    written = json.loads(json.dumps(diffusers_from_noise_config(config)))
    assert noise_config_from_diffusers(written) == config
    loaded = (EulerDiscreteScheduler if config.prediction == "edm" else DDIMScheduler).from_config(written)
    assert noise_config_from_diffusers(loaded.config) == config


def test_training_fields_are_not_written():
    config = NoiseConfig(prediction="v_prediction")
    trained = replace(config, offset_noise=0.1, min_snr_gamma=5.0)
    assert diffusers_from_noise_config(trained) == diffusers_from_noise_config(config)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"trained_betas": [0.1, 0.2]},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample"},
        {"timestep_type": "continuous", "prediction_type": "epsilon", "sigma_min": 0.1, "sigma_max": 9.0},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        EDMEulerScheduler(prediction_type="v_prediction").config,
    ],
)
def test_other_kinds_of_noise_are_refused(scheduler):
    with pytest.raises(ValueError, match="scheduler has"):
        noise_config_from_diffusers(scheduler)
