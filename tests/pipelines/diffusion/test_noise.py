import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.randomness import generator

SHAPE = (2, 3, 4, 5, 6)
EPSILON = NoiseConfig(prediction="epsilon")
V = NoiseConfig(prediction="v_prediction")
ZERO_SNR = replace(V, zero_terminal_snr=True)
EDM = NoiseConfig(prediction="edm")


def clips(*keys: int | str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(*keys))


def last_alpha(config: NoiseConfig) -> float:
    return NoiseSchedule(config).alpha(torch.tensor([float(config.num_timesteps - 1)], dtype=torch.float64)).item()


# Paper notes, table of section 1.1: (beta_start, beta_end, sqrt(abar_T) scaled_linear, sqrt(abar_T) linear, SNR_T)
TERMINAL_LEVELS = [
    pytest.param(0.0015, 0.0195, 0.0119, 0.0051, 1.4e-4, id="driving"),
    pytest.param(1e-4, 2e-2, 0.0271, 0.0064, 7.3e-4, id="driving-upsampler"),
    pytest.param(0.00085, 0.0120, 0.0683, 0.0397, 4.7e-3, id="text-to-video"),
    pytest.param(0.0003, 0.022, 0.0154, 0.0036, 2.4e-4, id="mountain-biking"),
]


@pytest.mark.parametrize(("start", "end", "scaled_linear", "linear", "snr"), TERMINAL_LEVELS)
def test_alpha_at_last_timestep_matches_the_published_schedules(start, end, scaled_linear, linear, snr):
    config = NoiseConfig(prediction="epsilon", beta_start=start, beta_end=end)
    assert last_alpha(config) == pytest.approx(scaled_linear, abs=5e-5)
    assert last_alpha(replace(config, schedule="linear")) == pytest.approx(linear, abs=5e-5)
    assert NoiseSchedule(config).snr(torch.tensor([999.0])).item() == pytest.approx(
        snr, abs=5e-6 if snr < 1e-3 else 5e-5
    )


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_alpha_and_sigma_equal_diffusers_tables(schedule, zero_terminal_snr):
    config = replace(V, schedule=schedule, zero_terminal_snr=zero_terminal_snr)
    reference = DDPMScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=schedule,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    timestep = torch.arange(1000, dtype=torch.float32)
    ours = NoiseSchedule(config)
    assert_close(ours.alpha(timestep).square(), reference.alphas_cumprod, rtol=1e-5, atol=1e-7)
    assert_close(ours.sigma(timestep).square(), 1 - reference.alphas_cumprod, rtol=0, atol=1e-6)


def test_zero_terminal_snr_is_pure_noise_and_keeps_the_first_timestep():
    schedule, plain = NoiseSchedule(ZERO_SNR), NoiseSchedule(V)
    last, first = torch.tensor([999.0]), torch.tensor([0.0])
    assert schedule.alpha(last).item() == 0.0
    assert schedule.sigma(last).item() == 1.0
    assert schedule.snr(last).item() == 0.0
    assert_close(schedule.alpha(first), plain.alpha(first))
    noise = clips("noise")
    assert torch.equal(schedule.add_noise(clips("latents"), torch.full((2,), 999.0), noise), noise)


def test_edm_levels_invert_a_quarter_of_the_log_of_sigma():
    schedule = NoiseSchedule(EDM)
    sigma = torch.tensor([0.002, 0.5, 1.0, 80.0, 700.0], dtype=torch.float64)
    timestep = 0.25 * sigma.log()
    assert_close(schedule.sigma(timestep) / schedule.alpha(timestep), sigma, rtol=1e-12, atol=0)
    assert_close(schedule.alpha(timestep).square() + schedule.sigma(timestep).square(), torch.ones(5).double())


@pytest.mark.parametrize("config", [EPSILON, V, ZERO_SNR, EDM], ids=["epsilon", "v", "zero-snr", "edm"])
def test_prediction_of_the_target_returns_latents_and_noise(config):
    schedule = NoiseSchedule(config)
    latents, noise = clips("latents"), clips("noise")
    timestep = torch.tensor([-1.2, 0.9]) if config.prediction == "edm" else torch.tensor([3.0, 700.0])
    noisy = schedule.add_noise(latents, timestep, noise)
    target = schedule.target(latents, timestep, noise)
    assert_close(schedule.denoised(noisy, target, timestep), latents, rtol=1e-4, atol=1e-5)
    assert_close(schedule.noise(noisy, target, timestep), noise, rtol=1e-4, atol=1e-5)


def test_levels_belong_to_their_clip():
    schedule = NoiseSchedule(V)
    latents, noise, timestep = clips("latents"), clips("noise"), torch.tensor([10.0, 900.0])
    together = schedule.add_noise(latents, timestep, noise)
    alone = schedule.add_noise(latents[1:], timestep[1:], noise[1:])
    assert torch.equal(together[1:], alone)


def test_add_noise_and_target_equal_diffusers():
    reference = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    latents, noise, index = clips("latents"), clips("noise"), torch.tensor([17, 640])
    schedule = NoiseSchedule(V)
    assert_close(schedule.add_noise(latents, index.float(), noise), reference.add_noise(latents, noise, index))
    assert_close(schedule.target(latents, index.float(), noise), reference.get_velocity(latents, noise, index))


def test_edm_denoised_equals_karras_preconditioning():
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), written out in EDM's own sample space with sigma_data = 1."""
    sigma = torch.tensor([0.3, 25.0])
    scale = sigma.view(2, 1, 1, 1, 1)
    noisy_edm, network_output = clips("latents") + scale * clips("noise"), clips("output")
    c_skip, c_out, c_in = 1 / (scale**2 + 1), -scale / (scale**2 + 1).sqrt(), 1 / (scale**2 + 1).sqrt()
    expected = c_skip * noisy_edm + c_out * network_output
    denoised = NoiseSchedule(EDM).denoised(c_in * noisy_edm, network_output, 0.25 * sigma.log())
    assert_close(denoised, expected, rtol=1e-5, atol=1e-5)


# Paper notes, section 5: the driving upsampler samples at level 150 (linear), the latent x4 upscaler at 30 (scaled).
@pytest.mark.parametrize(
    ("level", "schedule", "alpha", "sigma"), [(150, "linear", 0.887, 0.463), (30, "scaled_linear", 0.998, 0.067)]
)
def test_augmentation_levels_match_the_upsamplers(level, schedule, alpha, sigma):
    schedule = NoiseSchedule(replace(V, schedule=schedule, beta_start=1e-4, beta_end=2e-2))
    timestep = torch.tensor([float(level)])
    assert schedule.alpha(timestep).item() == pytest.approx(alpha, abs=5e-4)
    assert schedule.sigma(timestep).item() == pytest.approx(sigma, abs=5e-4)


def test_augmentation_level_250_equals_the_product_of_its_betas():
    schedule = NoiseSchedule(replace(V, schedule="linear", beta_start=1e-4, beta_end=2e-2))
    alpha = math.sqrt(math.prod(1 - (1e-4 + (2e-2 - 1e-4) * i / 999) for i in range(251)))
    timestep = torch.tensor([250.0], dtype=torch.float64)
    assert schedule.alpha(timestep).item() == pytest.approx(alpha, rel=1e-12)
    assert schedule.sigma(timestep).item() == pytest.approx(math.sqrt(1 - alpha**2), rel=1e-12)


def test_loss_weight_is_one_without_min_snr():
    timestep = torch.tensor([0.0, 500.0, 999.0])
    assert torch.equal(NoiseSchedule(V).loss_weight(timestep), torch.ones(3))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_equal_a_capped_error_of_the_latents(prediction):
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the squared error of x."""
    schedule = NoiseSchedule(NoiseConfig(prediction=prediction, min_snr_gamma=5.0))
    latents, noise, timestep = clips("latents").double(), clips("noise").double(), torch.tensor([40.0, 800.0]).double()
    noisy, target = schedule.add_noise(latents, timestep, noise), schedule.target(latents, timestep, noise)
    prediction = target + 0.1 * clips("error").double()
    error = (prediction - target).square().mean((1, 2, 3, 4)) * schedule.loss_weight(timestep)
    error_of_latents = (schedule.denoised(noisy, prediction, timestep) - latents).square().mean((1, 2, 3, 4))
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = compute_snr(reference, timestep.long()).double()
    assert snr[0] > 5 > snr[1]
    assert_close(error, snr.clamp(max=5.0) * error_of_latents, rtol=1e-5, atol=0)


def test_min_snr_with_zero_terminal_snr_trains_pure_noise_and_caps_clean_timesteps():
    schedule = NoiseSchedule(replace(ZERO_SNR, min_snr_gamma=5.0))
    weight = schedule.loss_weight(torch.arange(1000, dtype=torch.float32))
    assert weight[-1].item() == 1.0
    assert weight.min() > 0
    assert torch.isfinite(weight).all()
    snr = schedule.snr(torch.tensor([0.0])).item()
    assert weight[0].item() == pytest.approx(5.0 / (snr + 1), rel=1e-5)


def test_sample_timesteps_covers_every_timestep_evenly():
    timestep = NoiseSchedule(replace(V, num_timesteps=10)).sample_timesteps(20_000, generator("timesteps"))
    counts = torch.bincount(timestep.long(), minlength=10)
    assert counts.shape == (10,)
    # Binomial: mean 2000, standard deviation 42.
    assert (counts - 2000).abs().max() < 5 * 42


def test_sample_timesteps_of_edm_follows_its_log_normal():
    schedule = NoiseSchedule(replace(EDM, P_mean=-1.2, P_std=1.4))
    log_sigma = 4 * schedule.sample_timesteps(40_000, generator("timesteps"))
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=5 * 1.4 / 200)
    assert log_sigma.std().item() == pytest.approx(1.4, rel=0.02)


def test_offset_noise_shifts_whole_clips_by_channel():
    shape = (500, 2, 3, 4, 5)
    plain = NoiseSchedule(V).sample_noise(shape, generator("noise"))
    offset = NoiseSchedule(replace(V, offset_noise=0.5)).sample_noise(shape, generator("noise")) - plain
    assert_close(offset, offset[:, :1, :, :1, :1].expand(shape), rtol=0, atol=1e-6)
    assert offset[:, 0, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.1)
    # Channels are independent: 500 clips leave a correlation of 0.045 by chance.
    assert (torch.corrcoef(offset[:, 0, :, 0, 0].T) - torch.eye(3)).abs().max() < 0.2


def test_noise_and_timesteps_depend_on_the_generator_alone():
    schedule = NoiseSchedule(replace(V, offset_noise=0.1))
    assert torch.equal(schedule.sample_noise(SHAPE, generator(1)), schedule.sample_noise(SHAPE, generator(1)))
    assert not torch.equal(schedule.sample_noise(SHAPE, generator(1)), schedule.sample_noise(SHAPE, generator(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_converted_in_float32(dtype):
    schedule = NoiseSchedule(V)
    latents, noise, timestep = clips("latents").to(dtype), clips("noise").to(dtype), torch.tensor([2.0, 998.0])
    noisy = schedule.add_noise(latents, timestep, noise)
    assert noisy.dtype == dtype
    exact = schedule.add_noise(latents.double(), timestep, noise.double())
    # One rounding of the result, none inside.
    assert torch.equal(noisy, exact.float().to(dtype))
    target = schedule.target(latents, timestep, noise)
    assert target.dtype == torch.float32
    assert_close(target, schedule.target(latents.double(), timestep, noise.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_timesteps_are_refused(dtype):
    with pytest.raises(ValueError, match="float32"):
        NoiseSchedule(V).alpha(torch.tensor([999.0], dtype=dtype))


@pytest.mark.parametrize("timestep", [-1.0, 1000.0])
def test_timestep_outside_the_schedule_is_refused(timestep):
    with pytest.raises(IndexError):
        NoiseSchedule(V).alpha(torch.tensor([timestep]))


@pytest.mark.parametrize(
    "change",
    [
        {"beta_start": 0.0},
        {"beta_start": 0.5, "beta_end": 0.1},
        {"num_timesteps": 1},
        {"prediction": "epsilon", "zero_terminal_snr": True},
        {"prediction": "edm", "zero_terminal_snr": True},
        {"offset_noise": -0.1},
        {"min_snr_gamma": 0.0},
        {"sigma_min": 2.0, "sigma_max": 1.0},
    ],
)
def test_contradictory_config_is_refused(change):
    with pytest.raises(ValueError, match="use"):
        replace(V, **change)


@pytest.mark.parametrize("change", [{"prediction": "sample"}, {"schedule": "cosine"}])
def test_unknown_choice_is_refused(change):
    # TypeError: the run-time type check of the test run comes first.
    with pytest.raises((ValueError, TypeError), match=r"scaled_linear|epsilon"):
        replace(V, **change)
