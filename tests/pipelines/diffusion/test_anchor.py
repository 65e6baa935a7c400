import pytest
import torch
from torch.testing import assert_close

from pipelines.diffusion.anchor import anchored
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.randomness import generator

SHAPE = (2, 3, 4, 5, 6)
CONFIGS = [NoiseConfig(prediction="epsilon"), NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)]


def silent(noisy, timestep):
    return torch.zeros_like(noisy)


def draw(name):
    return torch.randn(SHAPE, generator=generator(name))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("timestep", [1.0, 400.0, 998.0])
def test_silent_network_is_the_exact_model_of_a_gaussian_around_the_guess(gaussian_network, config, timestep):
    schedule, tau, level = NoiseSchedule(config), torch.full((2,), timestep), torch.zeros(2)
    low = torch.full(SHAPE, 0.3) * schedule.alpha(level)[0]
    deviation = (0.2**2 + (schedule.sigma(level) / schedule.alpha(level))[0] ** 2).sqrt().item()
    expected = gaussian_network(config, 0.3, deviation)(draw("noisy"), tau)
    assert_close(anchored(silent, low, level, schedule, 0.2)(draw("noisy"), tau), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_clean_frames_are_found_by_least_squares_of_both_readings(config):
    """Noisy frames and noisy low resolution as two rows of a weighted least-squares problem, solved by torch."""
    schedule, tau, level = NoiseSchedule(config), torch.tensor([300.0, 700.0]), torch.tensor([50.0, 200.0])
    noisy, low = draw("noisy"), draw("low")
    found = schedule.denoised(noisy, anchored(silent, low, level, schedule, 0.1)(noisy, tau), tau)
    for clip in range(2):
        (a, s), (al, sl) = (
            (schedule.alpha(time)[clip].double(), schedule.sigma(time)[clip].double()) for time in (tau, level)
        )
        spread = (0.1**2 + (sl / al) ** 2).sqrt()
        rows = torch.stack([a / s, 1 / spread])[:, None]
        readings = torch.stack([noisy[clip].double().flatten() / s, low[clip].double().flatten() / al / spread])
        expected = torch.linalg.lstsq(rows, readings).solution.view(SHAPE[1:])
        assert_close(found[clip].double(), expected, rtol=1e-4, atol=1e-4)


def test_network_adds_to_the_guess_and_sees_what_it_saw_without():
    schedule, tau = NoiseSchedule(CONFIGS[1]), torch.tensor([300.0, 999.0])
    guess = anchored(silent, draw("low"), torch.zeros(2), schedule, 0.1)(draw("noisy"), tau)
    whole = anchored(lambda noisy, t: noisy * t.view(-1, 1, 1, 1, 1), draw("low"), torch.zeros(2), schedule, 0.1)
    assert_close(whole(draw("noisy"), tau) - guess, draw("noisy") * tau.view(-1, 1, 1, 1, 1), rtol=1e-4, atol=1e-3)
