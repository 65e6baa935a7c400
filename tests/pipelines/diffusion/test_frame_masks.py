from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pipelines.diffusion.frame_masks import (
    draw_levels,
    draw_num_context,
    drop_context,
    interpolation_mask,
    masked_context,
    noisy_context,
    prediction_mask,
)
from pipelines.diffusion.guidance import guide
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.randomness import generator

SHAPE = (2, 5, 4, 3, 6)
LINEAR = NoiseConfig(prediction="v_prediction", schedule="linear", beta_start=1e-4, beta_end=2e-2)


def draw(*keys: int | str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(*keys))


def generators(count: int) -> list[torch.Generator]:
    return [generator("clip", clip) for clip in range(count)]


def test_prediction_mask_gives_the_first_frames():
    assert prediction_mask(torch.tensor([0, 1, 2]), 4).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("num_context", [-1, 4])
def test_prediction_mask_with_nothing_to_predict_is_refused(num_context):
    with pytest.raises(ValueError, match="use 0 to 3"):
        prediction_mask(torch.tensor([0, num_context]), 4)


def test_interpolation_mask_gives_both_ends():
    assert interpolation_mask(2, 5).tolist() == [[1, 0, 0, 0, 1]] * 2
    with pytest.raises(ValueError, match="3 or more"):
        interpolation_mask(2, 2)


def test_num_context_is_drawn_with_its_probabilities_by_clip():
    drawn = draw_num_context(generators(3000), (0.2, 0.3, 0.5)).tolist()
    counts = Counter(drawn)
    for num_context, probability in enumerate((0.2, 0.3, 0.5)):
        # Binomial: five standard deviations are at most 137.
        assert abs(counts[num_context] - 3000 * probability) < 137
    assert drawn[1000] == draw_num_context([generator("clip", 1000)], (0.2, 0.3, 0.5)).item()


@pytest.mark.parametrize("probabilities", [(), (0.5, 0.4), (-0.5, 1.5)])
def test_probabilities_that_are_no_distribution_are_refused(probabilities):
    with pytest.raises(ValueError, match="sum to 1"):
        draw_num_context(generators(1), probabilities)


def test_context_is_masked_latents_and_mask():
    latents, mask = draw("latents"), prediction_mask(torch.tensor([1, 2]), 5)
    context = masked_context(latents, mask)
    assert context.shape == (2, 5, 5, 3, 6)
    for clip in range(2):
        for frame in range(5):
            is_given = frame < (1, 2)[clip]
            expected = latents[clip, frame] if is_given else torch.zeros(4, 3, 6)
            assert torch.equal(context[clip, frame, :4], expected)
            assert torch.equal(context[clip, frame, 4], torch.full((3, 6), float(is_given)))


def test_context_of_no_frames_is_zero_and_guidance_by_it_is_the_unconditional_branch():
    """S = 0 equals the unconditional branch; scale 1 is the conditional output, scale 0 the unconditional one."""
    latents, timestep = draw("latents"), torch.tensor([400.0, 400.0])
    none = masked_context(latents, prediction_mask(torch.tensor([0, 0]), 5))
    some = masked_context(latents, prediction_mask(torch.tensor([1, 2]), 5))
    assert torch.equal(none, torch.zeros(2, 5, 5, 3, 6))

    def network(context):
        return lambda noisy, timestep: torch.tanh(noisy + context.mean(2, keepdim=True))

    without = torch.tanh(latents)
    assert torch.equal(guide(network(some), network(none), 0.0)(latents, timestep), without)
    assert torch.equal(guide(network(some), network(none), 1.0)(latents, timestep), network(some)(latents, timestep))
    assert torch.equal(guide(network(none), network(none), 7.0)(latents, timestep), without)


def test_frames_that_are_not_given_cannot_leak():
    latents, mask = draw("latents"), prediction_mask(torch.tensor([1, 2]), 5)
    spoilt = torch.where(mask.view(2, 5, 1, 1, 1) > 0, latents, float("nan"))
    assert torch.equal(masked_context(spoilt, mask), masked_context(latents, mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_context_keeps_the_type_of_its_latents(dtype):
    context = masked_context(draw("latents").to(dtype), prediction_mask(torch.tensor([1, 2]), 5))
    assert context.dtype == dtype


def test_dropped_context_leaves_whole_clips_without_frames():
    mask = interpolation_mask(2000, 5)
    dropped = drop_context(mask, 0.1, generators(2000))
    is_empty = dropped.sum(dim=1) == 0
    # Binomial: five standard deviations are 67.
    assert abs(int(is_empty.sum()) - 200) < 67
    assert torch.equal(dropped[~is_empty], mask[~is_empty])
    assert torch.equal(drop_context(mask, 0.0, generators(2000)), mask)


def test_noisy_context_adds_its_level_to_given_frames_only():
    schedule = NoiseSchedule(LINEAR)
    latents, noise, mask = draw("latents"), draw("noise"), prediction_mask(torch.tensor([1, 2]), 5)
    context = noisy_context(latents, mask, torch.tensor([150.0, 30.0]), noise, schedule)
    # Level 150 of the linear schedule: alpha .887, sigma .463 (paper notes, section 5).
    assert_close(context[0, 0, :4], 0.887 * latents[0, 0] + 0.463 * noise[0, 0], rtol=0, atol=2e-3)
    assert_close(context[1, 1, :4], 0.9938 * latents[1, 1] + 0.1111 * noise[1, 1], rtol=0, atol=1e-3)
    assert torch.equal(context[0, 1:], torch.zeros(4, 5, 3, 6))
    assert torch.equal(context[:, :, 4], masked_context(latents, mask)[:, :, 4])


def test_levels_are_uniform_and_include_both_ends():
    levels = draw_levels(4, generators(5000))
    assert levels.dtype == torch.float32
    counts = torch.bincount(levels.long(), minlength=5)
    assert counts.shape == (5,)
    # Binomial: mean 1000, five standard deviations 141.
    assert (counts - 1000).abs().max() < 141


def test_level_zero_is_nearly_clean():
    schedule = NoiseSchedule(replace(LINEAR, schedule="scaled_linear"))
    latents, mask = draw("latents"), interpolation_mask(2, 5)
    context = noisy_context(latents, mask, torch.zeros(2), draw("noise"), schedule)
    assert_close(context, masked_context(latents, mask), rtol=0, atol=0.05)
