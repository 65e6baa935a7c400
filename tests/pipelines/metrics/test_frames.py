import math

import pytest
import torch
from torch.testing import assert_close

from pipelines.metrics.frames import drift, flicker, motion_error, psnr, split_ends, ssim
from pipelines.randomness import generator

SHAPE = (2, 4, 3, 13, 15)


def draw(*keys: int | str) -> torch.Tensor:
    return torch.rand(SHAPE, generator=generator(*keys)) * 2 - 1


def test_psnr_equals_its_definition_on_byte_images():
    frames, reference = draw("frames"), draw("reference")
    for clip in range(2):
        for frame in range(4):
            error = ((frames[clip, frame] - reference[clip, frame]).double() * 127.5).square().mean().item()
            expected = 10 * math.log10(255**2 / error)
            assert psnr(frames, reference)[clip, frame].item() == pytest.approx(expected, rel=1e-9)


def test_psnr_of_a_constant_error_is_its_closed_form():
    frames = draw("frames")
    assert_close(psnr(frames.double(), frames.double() + 0.2), torch.full((2, 4), 20.0).double())
    assert psnr(frames, frames).isinf().all()


def test_ssim_equals_a_loop_over_windows():
    frames = draw("frames")
    reference = (0.6 * frames + 0.4 * draw("reference")).clamp(-1, 1)
    offsets = range(-5, 6)
    weights = torch.tensor([[math.exp(-(i * i + j * j) / 4.5) for j in offsets] for i in offsets], dtype=torch.float64)
    weights /= weights.sum()
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    result = ssim(frames, reference)
    for clip, frame in [(0, 0), (1, 3)]:
        values = []
        for colour in range(3):
            for top in range(13 - 10):
                for left in range(15 - 10):
                    region = (clip, frame, colour, slice(top, top + 11), slice(left, left + 11))
                    x, y = frames[region].double(), reference[region].double()
                    m_x, m_y = (weights * x).sum(), (weights * y).sum()
                    v_x, v_y = (weights * (x - m_x) ** 2).sum(), (weights * (y - m_y) ** 2).sum()
                    cov = (weights * (x - m_x) * (y - m_y)).sum()
                    luminance = (2 * m_x * m_y + c_1) / (m_x**2 + m_y**2 + c_1)
                    values.append(luminance * (2 * cov + c_2) / (v_x + v_y + c_2))
        assert result[clip, frame].item() == pytest.approx((sum(values) / len(values)).item(), rel=1e-9)


def test_ssim_of_constant_frames_is_its_luminance_term():
    one, other = torch.full(SHAPE, 0.5), torch.full(SHAPE, -0.25)
    c_1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * -0.25 + c_1) / (0.5**2 + 0.25**2 + c_1)
    assert_close(ssim(one, other), torch.full((2, 4), expected).double(), rtol=1e-6, atol=0)
    assert_close(ssim(draw("frames"), draw("frames")), torch.ones(2, 4).double(), rtol=0, atol=1e-12)


def test_ssim_of_frames_smaller_than_its_window_is_refused():
    small = torch.zeros(1, 2, 3, 10, 40)
    with pytest.raises(ValueError, match="11x11"):
        ssim(small, small)


def test_flicker_is_zero_for_steady_change_and_the_jump_for_alternation():
    time = torch.arange(6.0).view(1, 6, 1, 1, 1)
    steady = (0.1 * time).expand(1, 6, 3, 4, 5)
    alternating = (0.2 * (time % 2)).expand(1, 6, 3, 4, 5)
    both = torch.cat([steady, alternating, steady + alternating])
    assert_close(flicker(both), torch.tensor([0.0, 0.2, 0.2]).double(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="3 or more"):
        flicker(both[:, :2])


def test_motion_error_ignores_a_constant_error_and_measures_a_changing_one():
    reference = draw("reference").double()
    assert_close(motion_error(reference + 0.3, reference), torch.zeros(2).double(), rtol=0, atol=1e-12)
    drifting = reference + torch.linspace(0, 0.9, 4).double().view(1, 4, 1, 1, 1)
    assert_close(motion_error(drifting, reference), torch.full((2,), 0.3).double(), rtol=1e-6, atol=0)
    frozen = reference[:, :1].expand(SHAPE)
    expected = (reference[:, 1:] - reference[:, :-1]).abs().mean((1, 2, 3, 4))
    assert_close(motion_error(frozen, reference), expected)
    with pytest.raises(ValueError, match="2 or more"):
        motion_error(reference[:, :1], reference[:, :1])


@pytest.mark.parametrize(("num_frames", "size"), [(2, 1), (10, 2), (100, 15), (563, 84)])
def test_ends_are_the_first_and_last_fifteen_percent(num_frames, size):
    first, last = split_ends(num_frames)
    assert list(range(num_frames))[first] == list(range(size))
    assert list(range(num_frames))[last] == list(range(num_frames - size, num_frames))


def test_drift_is_the_change_from_first_to_last_part():
    scores = torch.zeros(2, 20)
    scores[0, :3], scores[0, 3:17], scores[0, 17:] = 5.0, 100.0, 3.5
    scores[1] = torch.arange(20.0)
    assert drift(scores).tolist() == [-1.5, 17.0]


@pytest.mark.parametrize(("num_frames", "share"), [(1, 0.15), (10, 0.6), (10, 0.0), (3, 0.5)])
def test_ends_that_overlap_are_refused(num_frames, share):
    with pytest.raises(ValueError, match="use 2 frames"):
        split_ends(num_frames, share)
