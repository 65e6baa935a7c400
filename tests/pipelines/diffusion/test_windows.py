from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import finish, initial_state
from pipelines.diffusion.sampling import SamplerConfig, sample
from pipelines.diffusion.windows import (
    RolloutWindow,
    append_window,
    blend_denoise,
    blend_stream,
    blend_weights,
    interpolated_length,
    join_gaps,
    open_gaps,
    open_window,
    plan_rollout,
    split_gaps,
    window_starts,
)
from pipelines.randomness import generator


def clip(num_frames: int, b: int = 2) -> torch.Tensor:
    return torch.randn((b, num_frames, 4, 5, 6), generator=generator("clip", num_frames))


@pytest.mark.parametrize(("num_frames", "once", "twice"), [(8, 29, 113), (10, 37, 145), (2, 5, 17), (1, 1, 1)])
def test_interpolated_length_is_the_papers(num_frames, once, twice):
    assert interpolated_length(num_frames, passes=1) == once
    assert interpolated_length(num_frames, passes=2) == twice


@pytest.mark.parametrize("num_keyframes", [2, 8, 10])
def test_two_passes_keep_key_frames_and_place_every_frame(num_keyframes):
    """A model that interpolates linearly must give the straight line between key frames that stay untouched."""
    keyframes = clip(num_keyframes)

    def interpolate(latents, batch_size):
        windows = []
        for ends in split_gaps(latents).split(batch_size):
            opened = open_gaps(ends, 5)
            assert torch.equal(opened[:, 1:-1], torch.zeros_like(opened[:, 1:-1]))
            assert torch.equal(opened[:, [0, -1]], ends)
            position = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
            # What the model makes of the ends is wrong on purpose.
            made = opened[:, :1] * (1 - position) + opened[:, -1:] * position
            windows.append(torch.cat([made[:, :1] + 1, made[:, 1:-1], made[:, -1:] + 1], dim=1))
        return join_gaps(latents, torch.cat(windows))

    dense = interpolate(interpolate(keyframes, batch_size=3), batch_size=7)
    assert dense.shape[1] == interpolated_length(num_keyframes, passes=2)
    assert torch.equal(dense[:, ::16], keyframes)
    for frame in range(dense.shape[1]):
        gap, position = divmod(frame, 16)
        after = keyframes[:, min(gap + 1, num_keyframes - 1)]
        assert_close(dense[:, frame], torch.lerp(keyframes[:, gap], after, position / 16), rtol=0, atol=1e-5)


def test_gaps_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 or more"):
        split_gaps(clip(1))
    with pytest.raises(ValueError, match="give 6"):
        join_gaps(clip(4), clip(5, b=5))


def test_rollout_of_five_minutes_takes_the_published_number_of_calls():
    # 5 minutes at 1.875 fps = 563 frames = 71 calls of 10 frames, each adding 8 (paper notes, section 3).
    plan = plan_rollout(563, window=10, first_context=1)
    assert len(plan) == 71
    assert plan[0] == RolloutWindow(start=0, num_context=1)
    assert {window.num_context for window in plan[1:]} == {2}
    assert [after.start - before.start for before, after in pairwise(plan)] == [8] * 70


@pytest.mark.parametrize("first_context", [0, 1, 2])
@pytest.mark.parametrize("num_frames", [1, 10, 11, 26, 27])
def test_rollout_continues_a_known_motion_without_a_break(first_context, num_frames):
    """A model that goes on with the motion it is given must count frames without gap or repetition."""

    def count_on(window_latents, num_context):
        first = window_latents[0, num_context - 1].mean().item() + 1 if num_context else 0.0
        new = torch.arange(first, first + 10 - num_context).view(1, -1, 1, 1, 1).expand(2, -1, 4, 5, 6)
        # What the model makes of the given frames is wrong on purpose.
        return torch.cat([torch.full((2, num_context, 4, 5, 6), -9.0), new], dim=1)

    video = torch.arange(float(first_context)).view(1, -1, 1, 1, 1).repeat(2, 1, 4, 5, 6)
    plan = plan_rollout(num_frames, window=10, first_context=first_context)
    assert len(plan) == 1 + max(0, -(-(num_frames - 10) // 8))
    for window in plan:
        opened = open_window(video, window, 10)
        assert opened.shape[1] == 10
        assert torch.equal(opened[:, : window.num_context], video[:, video.shape[1] - window.num_context :])
        assert not opened[:, window.num_context :].any()
        video = append_window(video, count_on(opened, window.num_context), window)
    assert num_frames <= video.shape[1] < num_frames + 10
    assert video[0, :, 0, 0, 0].tolist() == list(range(video.shape[1]))


def test_rollout_out_of_order_is_refused():
    plan = plan_rollout(26, window=10, first_context=1)
    with pytest.raises(ValueError, match="order of the plan"):
        open_window(clip(1), plan[1], 10)


@pytest.mark.parametrize("change", [{"num_frames": 0}, {"first_context": 10}, {"num_context": 0}, {"num_context": 10}])
def test_rollout_that_does_not_advance_is_refused(change):
    with pytest.raises(ValueError, match="use num_frames"):
        plan_rollout(**{"num_frames": 20, "window": 10, "first_context": 1, "num_context": 2, **change})


SIZES = st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(num_frames=st.integers(1, 40), size_and_overlap=SIZES)
@settings(max_examples=200, deadline=None)
def test_windows_cover_every_frame_and_overlap_enough(num_frames, size_and_overlap):
    size, overlap = size_and_overlap
    starts = window_starts(num_frames, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(num_frames - size, 0)
    for before, after in pairwise(starts):
        assert 0 < after - before <= size - overlap


@given(num_frames=st.integers(1, 30), size_and_overlap=SIZES)
@settings(max_examples=100, deadline=None)
def test_blending_equals_a_weighted_mean_frame_by_frame(num_frames, size_and_overlap):
    size, overlap = size_and_overlap
    starts = window_starts(num_frames, size, overlap)
    length = min(size, num_frames)
    windows = [torch.randn((1, length, 2, 1, 3), generator=generator("window", start)) for start in starts]
    blended = torch.cat(list(blend_stream(iter(windows), starts, overlap)), dim=1)
    assert blended.shape[1] == num_frames
    for frame in range(num_frames):
        total, weight_sum = torch.zeros(1, 2, 1, 3), 0.0
        for index, (start, window) in enumerate(zip(starts, windows, strict=True)):
            inside = frame - start
            if not 0 <= inside < length:
                continue
            rise = 1.0 if index == 0 else min(1.0, (inside + 1) / (overlap + 1))
            fall = 1.0 if index == len(starts) - 1 else min(1.0, (length - inside) / (overlap + 1))
            total, weight_sum = total + min(rise, fall) * window[:, inside], weight_sum + min(rise, fall)
        assert_close(blended[:, frame], total / weight_sum, rtol=1e-5, atol=1e-6)


def test_neighbouring_windows_fade_with_weights_that_sum_to_one():
    before = blend_weights(8, 2, is_first=True, is_last=False)
    after = blend_weights(8, 2, is_first=False, is_last=True)
    assert_close(before, torch.tensor([1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]))
    assert_close(before[-2:] + after[:2], torch.ones(2))


def test_blending_leaves_what_one_window_covers_bit_for_bit():
    whole, starts = clip(20), window_starts(20, 8, 2)
    blended = torch.cat(list(blend_stream((whole[:, s : s + 8] for s in starts), starts, 2)), dim=1)
    assert starts == [0, 6, 12]
    alone = [frame for frame in range(20) if frame not in (6, 7, 12, 13)]
    assert torch.equal(blended[:, alone], whole[:, alone])
    assert_close(blended, whole, rtol=1e-6, atol=1e-6)


def test_blending_holds_one_window_at_a_time():
    taken = []

    def windows():
        for index in range(100):
            taken.append(index)
            yield torch.zeros(1, 8, 2, 1, 3)

    starts = window_starts(602, 8, 2)
    assert len(starts) == 100
    for index, frames in enumerate(blend_stream(windows(), starts, 2)):
        assert len(taken) == index + 1
        assert frames.shape[1] == (8 if index == 99 else 6)


def test_blending_of_half_precision_is_summed_in_float32():
    whole, starts = clip(20).bfloat16(), window_starts(20, 8, 5)
    blended = torch.cat(list(blend_stream((whole[:, s : s + 8] for s in starts), starts, 5)), dim=1)
    assert blended.dtype == torch.bfloat16
    assert torch.equal(blended, whole)


def test_blending_with_a_window_missing_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        list(blend_stream([torch.zeros(1, 8, 2, 1, 3)], [0, 6], 2))


def test_windowed_denoising_of_a_framewise_network_equals_the_whole(network, start):
    """If frames do not look at each other, windows must not matter, at any step of sampling."""
    config = NoiseConfig(prediction="v_prediction")
    bias = torch.linspace(-1, 1, 21).view(1, 21, 1, 1, 1)

    def denoise_window(frames):
        return lambda noisy, timestep: torch.tanh(noisy + bias[:, frames]) * (timestep / 1000).view(-1, 1, 1, 1, 1)

    noise = clip(21)
    sampler = SamplerConfig(name="ddim", num_steps=6, eta=1.0)
    arguments = (NoiseSchedule(config), initial_state(noise))
    whole = finish(sample(sampler, denoise_window(slice(0, 21)), *arguments, seed=1))
    blended = finish(sample(sampler, blend_denoise(denoise_window, 21, size=8, overlap=2), *arguments, seed=1))
    assert_close(blended, whole, rtol=0, atol=1e-5)


def test_windowed_denoising_has_no_jump_at_seams():
    """Windows that disagree by a constant: hard cuts jump by it, blended windows by a third of it."""

    def denoise_window(frames):
        return lambda noisy, timestep: torch.full_like(noisy, float(frames.start % 4))

    prediction = blend_denoise(denoise_window, 20, size=8, overlap=2)(torch.zeros(1, 20, 4, 5, 6), torch.zeros(1))
    steps = prediction[0, :, 0, 0, 0].diff().abs()
    assert steps.max().item() == pytest.approx(2 / 3, rel=1e-5)


@pytest.mark.parametrize(("num_frames", "size", "overlap"), [(0, 8, 2), (9, 8, 8), (9, 8, -1)])
def test_windows_that_do_not_advance_are_refused(num_frames, size, overlap):
    with pytest.raises(ValueError, match="overlap < size"):
        window_starts(num_frames, size, overlap)
