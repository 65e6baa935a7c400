import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import (
    SamplerState,
    clip_noise,
    finish,
    initial_state,
    next_state,
    state_from_tensors,
    state_to_tensors,
)
from pipelines.diffusion.sampling import SAMPLERS, SamplerConfig, sample

CONFIG = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
SHAPE = (2, 3, 4, 5, 6)


def sampler_configs() -> list[SamplerConfig]:
    configs = [SamplerConfig(name=name, num_steps=6) for name in SAMPLERS]
    return [*configs, SamplerConfig(name="ddim", num_steps=6, eta=1.0)]


def convolution(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A network of real kernels that returns strided memory, as channels-last networks do."""
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 4, 3, padding=1).to(noisy.dtype)
    output = layer(noisy.transpose(1, 2)) * torch.cos(timestep / 300).view(-1, 1, 1, 1, 1)
    return output.to(memory_format=torch.channels_last_3d).transpose(1, 2)


@pytest.mark.parametrize("config", sampler_configs(), ids=lambda config: f"{config.name}-{config.eta}")
def test_resumed_sampler_is_bit_equal_after_every_step(start, config):
    arguments = (config, convolution, NoiseSchedule(CONFIG))
    states = list(sample(*arguments, initial_state(start), seed=3))
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
    for state in states[:-1]:
        stored = save(state_to_tensors(state))
        resumed = finish(sample(*arguments, state_from_tensors(load(stored)), seed=3))
        assert torch.equal(resumed, states[-1].latents)


@pytest.mark.parametrize("config", sampler_configs(), ids=lambda config: f"{config.name}-{config.eta}")
def test_stopping_and_starting_an_iterator_changes_nothing(network, start, config):
    arguments = (config, network(CONFIG), NoiseSchedule(CONFIG), initial_state(start))
    held, other = sample(*arguments, seed=3), sample(*arguments, seed=4)
    latents = start
    for state in held:
        next(other, None)
        latents = state.latents
    assert torch.equal(latents, finish(sample(*arguments, seed=3)))


@pytest.mark.parametrize("config", sampler_configs(), ids=lambda config: f"{config.name}-{config.eta}")
def test_half_precision_network_is_sampled_in_float32(network, start, config):
    exact = finish(sample(config, network(CONFIG), NoiseSchedule(CONFIG), initial_state(start), seed=3))

    def half(noisy, timestep):
        assert timestep.dtype == torch.float32
        return network(CONFIG)(noisy.bfloat16(), timestep).bfloat16()

    states = list(sample(config, half, NoiseSchedule(CONFIG), initial_state(start.bfloat16()), seed=3))
    for state in states:
        assert state.latents.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in state.history.values())
    # A bfloat16 number is good to 0.4 %; the latents are about 1.
    assert (states[-1].latents - exact).abs().max() < 0.05


def test_states_hold_contiguous_memory(start):
    strided = start.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    state = next_state(initial_state(strided), strided, {"denoised": strided})
    for tensor in (initial_state(strided).latents, state.latents, state.history["denoised"]):
        assert tensor.is_contiguous()
        assert torch.equal(tensor, start)


def test_result_does_not_depend_on_the_batch():
    config = SamplerConfig(name="ddim", num_steps=5, eta=1.0)

    def pointwise(noisy, timestep):
        return torch.tanh(noisy) * timestep.view(-1, 1, 1, 1, 1) / 1000

    def run(seeds, num_clips=1):
        noise = clip_noise((num_clips, *SHAPE[1:]), seeds, "start")
        return finish(sample(config, pointwise, NoiseSchedule(CONFIG), initial_state(noise), seed=seeds))

    together = run([11, 12, "window 13"], num_clips=3)
    for clip, seed in enumerate([11, 12, "window 13"]):
        assert torch.equal(together[clip : clip + 1], run([seed]))
    assert torch.equal(run([11]), run(11))


def test_clip_noise_is_fresh_for_every_clip_step_and_seed():
    draws = [*clip_noise(SHAPE, 1, "step", 0), *clip_noise(SHAPE, 1, "step", 1), *clip_noise(SHAPE, 2, "step", 0)]
    for one in range(len(draws)):
        for other in range(one):
            assert abs(torch.corrcoef(torch.stack([draws[one].flatten(), draws[other].flatten()]))[0, 1]) < 0.25


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_clip_noise_with_a_seed_too_few_or_many_is_refused(seeds):
    with pytest.raises(ValueError, match="one seed per clip"):
        clip_noise(SHAPE, seeds)


def test_finish_without_a_step_left_is_refused(network, start):
    config = SamplerConfig(name="ddim", num_steps=3)
    *_, last = sample(config, network(CONFIG), NoiseSchedule(CONFIG), initial_state(start), seed=0)
    with pytest.raises(ValueError, match="no step left"):
        finish(sample(config, network(CONFIG), NoiseSchedule(CONFIG), last, seed=0))


def test_state_of_another_sampler_is_refused(network, start):
    schedule = NoiseSchedule(CONFIG)
    state = next(
        sample(SamplerConfig(name="ddim", num_steps=3), network(CONFIG), schedule, initial_state(start), seed=0)
    )
    with pytest.raises(ValueError, match="resume with the sampler that saved it"):
        next(sample(SamplerConfig(name="unipc", num_steps=3), network(CONFIG), schedule, state, seed=0))
    beyond = SamplerState(latents=start, step=4)
    with pytest.raises(ValueError, match="another sampler config"):
        next(sample(SamplerConfig(name="ddim", num_steps=3), network(CONFIG), schedule, beyond, seed=0))


def test_tensors_that_are_no_state_are_refused():
    with pytest.raises(ValueError, match="no sampler state"):
        state_from_tensors({"latents": torch.zeros(SHAPE)})
