from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.objective import denoising_loss, draw_noise
from pipelines.randomness import generator

SHAPE = (2, 3, 4, 5, 6)
CONFIGS = [
    pytest.param(NoiseConfig(prediction="epsilon", min_snr_gamma=5.0), id="epsilon-min-snr"),
    pytest.param(NoiseConfig(prediction="v_prediction"), id="v"),
    pytest.param(NoiseConfig(prediction="v_prediction", zero_terminal_snr=True, min_snr_gamma=5.0), id="v-zero-snr"),
    pytest.param(NoiseConfig(prediction="edm", offset_noise=0.1), id="edm-offset"),
]


def draw(*keys: int | str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(*keys))


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_equals_a_slow_loop_over_clips(network, config):
    schedule, latents = NoiseSchedule(config), draw("latents")
    timestep, noise = draw_noise(schedule, latents, [generator("clip", clip) for clip in range(2)])
    losses = denoising_loss(network(config), latents, schedule, timestep, noise)
    assert losses.shape == (2,)
    for clip in range(2):
        alpha, sigma = schedule.alpha(timestep)[clip].item(), schedule.sigma(timestep)[clip].item()
        x, eps = latents[clip], noise[clip]
        noisy = alpha * x + sigma * eps
        target = eps if config.prediction == "epsilon" else alpha * eps - sigma * x
        prediction = network(config)(noisy[None], timestep[clip : clip + 1])[0]
        snr = alpha**2 / sigma**2
        weight = 1.0
        if config.min_snr_gamma and config.prediction == "epsilon":
            weight = min(snr, 5.0) / snr
        elif config.min_snr_gamma:
            weight = min(snr + 1, 5.0) / (snr + 1)
        total = sum(float((p - y) ** 2) for p, y in zip(prediction.flatten(), target.flatten(), strict=True))
        assert losses[clip].item() == pytest.approx(weight * total / target.numel(), rel=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("level", [100.0, 700.0])
def test_loss_of_the_optimal_network_is_the_bayes_error(gaussian_network, prediction, level):
    """For data N(mean, std^2) it is alpha^2 std^2 / p for eps and std^2 / p for v, with p = alpha^2 std^2 + sigma^2."""
    mean, std = 0.7, 0.4
    config = NoiseConfig(prediction=prediction)
    schedule = NoiseSchedule(config)
    numbers = generator("data")
    latents = mean + std * torch.randn((2, 10, 8, 25, 50), generator=numbers)
    noise, timestep = torch.randn(latents.shape, generator=numbers), torch.full((2,), level)
    loss = denoising_loss(gaussian_network(config, mean, std), latents, schedule, timestep, noise).mean().item()
    alpha, sigma = schedule.alpha(timestep)[0].item(), schedule.sigma(timestep)[0].item()
    power = alpha**2 * std**2 + sigma**2
    best = std**2 / power if prediction == "v_prediction" else alpha**2 * std**2 / power
    # 200,000 squared normals: five standard errors are 1.6 %.
    assert loss == pytest.approx(best, rel=0.016)


def test_perfect_prediction_has_no_loss():
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True, min_snr_gamma=5.0)
    schedule, latents, noise, timestep = NoiseSchedule(config), draw("x"), draw("eps"), torch.tensor([999.0, 0.0])
    target = schedule.target(latents, timestep, noise)
    assert denoising_loss(lambda x, t: target, latents, schedule, timestep, noise).tolist() == [0.0, 0.0]


def test_pure_noise_teaches_v_the_latents_with_full_weight():
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True, min_snr_gamma=5.0)
    schedule, latents, timestep = NoiseSchedule(config), draw("x"), torch.full((2,), 999.0)
    loss = denoising_loss(lambda x, t: torch.zeros_like(x), latents, schedule, timestep, draw("eps"))
    assert_close(loss, latents.square().mean((1, 2, 3, 4)))


def test_loss_that_is_not_finite_stays_with_its_clip(network):
    config = NoiseConfig(prediction="v_prediction")
    schedule, noise, timestep = NoiseSchedule(config), draw("eps"), torch.tensor([200.0, 600.0])
    latents = draw("x")
    expected = denoising_loss(network(config), latents, schedule, timestep, noise)
    latents[0, 1, 2, 3, 4] = float("nan")
    losses = denoising_loss(network(config), latents, schedule, timestep, noise)
    assert torch.isnan(losses[0])
    assert losses[1] == expected[1]


def test_frame_weights_choose_the_frames_that_count(network):
    config = NoiseConfig(prediction="epsilon")
    schedule, latents, noise, timestep = NoiseSchedule(config), draw("x"), draw("eps"), torch.tensor([200.0, 600.0])
    prediction = network(config)(schedule.add_noise(latents, timestep, noise), timestep)
    weights = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    losses = denoising_loss(network(config), latents, schedule, timestep, noise, frame_weights=weights)
    assert losses[0].item() == pytest.approx((prediction - noise)[0, 1:].square().mean().item(), rel=1e-5)
    assert losses[1].item() == 0.0
    plain = denoising_loss(network(config), latents, schedule, timestep, noise)
    alike = denoising_loss(network(config), latents, schedule, timestep, noise, frame_weights=torch.full((2, 3), 7.0))
    assert_close(alike, plain)


def test_drawn_noise_does_not_depend_on_the_batch():
    schedule = NoiseSchedule(NoiseConfig(prediction="v_prediction", offset_noise=0.1))
    latents = draw("x")
    timestep, noise = draw_noise(schedule, latents, [generator("clip", 7), generator("clip", 8)])
    for clip, name in enumerate([7, 8]):
        own_timestep, own_noise = draw_noise(schedule, latents[clip : clip + 1], [generator("clip", name)])
        assert torch.equal(own_timestep, timestep[clip : clip + 1])
        assert torch.equal(own_noise, noise[clip : clip + 1])
    assert not torch.equal(noise[0], noise[1])
    with pytest.raises(ValueError, match="one per clip"):
        draw_noise(schedule, latents, [generator("clip", 7)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_network_gets_half_latents_and_a_float32_loss(network, dtype):
    config = NoiseConfig(prediction="v_prediction")
    schedule, latents, noise, timestep = NoiseSchedule(config), draw("x"), draw("eps"), torch.tensor([2.0, 998.0])

    def half(noisy, timestep):
        assert (noisy.dtype, timestep.dtype) == (dtype, torch.float32)
        return network(config)(noisy.float(), timestep).to(dtype)

    loss = denoising_loss(half, latents.to(dtype), schedule, timestep, noise)
    assert loss.dtype == torch.float32
    assert_close(loss, denoising_loss(network(config), latents, schedule, timestep, noise), rtol=0.02, atol=0)


def test_gradient_descent_on_the_loss_finds_the_optimal_linear_network():
    """f(x) = w x fitted to eps at one timestep must reach w = sigma / (alpha^2 std^2 + sigma^2)."""
    config, std = NoiseConfig(prediction="epsilon"), 0.4
    schedule, timestep = NoiseSchedule(config), torch.full((2,), 500.0)
    numbers = generator("data")
    latents = std * torch.randn((2, 10, 8, 25, 50), generator=numbers)
    noise = torch.randn(latents.shape, generator=numbers)
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.4)
    for _ in range(40):
        optimizer.zero_grad()
        denoising_loss(lambda x, t: weight * x, latents, schedule, timestep, noise).mean().backward()
        optimizer.step()
    alpha, sigma = schedule.alpha(timestep)[0].item(), schedule.sigma(timestep)[0].item()
    assert weight.item() == pytest.approx(sigma / (alpha**2 * std**2 + sigma**2), rel=0.01)


def test_offset_noise_reaches_the_loss():
    config = NoiseConfig(prediction="epsilon")
    latents = torch.zeros((64, 2, 3, 4, 5))
    generators = [[generator("clip", clip) for clip in range(64)] for _ in range(2)]
    _, plain = draw_noise(NoiseSchedule(config), latents, generators[0])
    _, offset = draw_noise(NoiseSchedule(replace(config, offset_noise=0.5)), latents, generators[1])
    means = (offset - plain).mean((1, 3, 4))
    assert means.std().item() == pytest.approx(0.5, rel=0.25)
