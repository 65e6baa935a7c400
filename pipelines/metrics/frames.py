"""Measures of frames against reference frames, and of a video against itself over time. Frames are in [-1, 1]."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from pipelines.tensors import Frames

DATA_RANGE = 2.0
PerFrame = Float[Tensor, "b t"]
PerClip = Float[Tensor, " b"]

# Wang et al. 2004, section III.C: window of 11 pixels with sigma 1.5, K1 and K2.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)
# FramePack (Zhang and Agrawala 2025) compares the first and the last 15 % of a video.
DRIFT_SHARE = 0.15


def psnr(frames: Frames, reference: Frames) -> PerFrame:
    """Peak signal-to-noise ratio of each frame in dB; infinite for equal frames."""
    error = reduce((frames.double() - reference.double()).square(), "b t c H W -> b t", "mean")
    return 10 * torch.log10(DATA_RANGE**2 / error)


def ssim(frames: Frames, reference: Frames) -> PerFrame:
    """Structural similarity of each frame, 1 for equal frames: mean over colours and all windows inside the frame.

    Raises:
        ValueError: If frames are smaller than the window.

    Source: Wang et al. 2004 (IEEE TIP 13(4)), equation 13.
    """
    if min(frames.shape[-2:]) < SSIM_WINDOW:
        height, width = frames.shape[-2:]
        raise ValueError(f"frames of {height}x{width} pixels; SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} or more")
    # Variances are differences of means of squares: float32 would lose them in flat regions.
    x, y = (rearrange(video.double(), "b t c H W -> (b t c) 1 H W") for video in (frames, reference))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c_1, c_2 = ((k * DATA_RANGE) ** 2 for k in SSIM_K)
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    structure = (2 * covariance + c_2) / (variance_x + variance_y + c_2)
    b, t, c, _, _ = frames.shape
    return reduce(luminance * structure, "(b t c) 1 H W -> b t", "mean", b=b, t=t, c=c)


def flicker(frames: Frames) -> PerClip:
    """Half the mean absolute second difference over time: 0 for steady change, the jump for frames that alternate.

    Raises:
        ValueError: If a clip has fewer than three frames.
    """
    if frames.shape[1] < 3:
        raise ValueError(f"{frames.shape[1]} frames cannot show flicker; give 3 or more")
    second = frames[:, 2:] - 2 * frames[:, 1:-1] + frames[:, :-2]
    return reduce(second.double().abs() / 2, "b t c H W -> b", "mean")


def motion_error(frames: Frames, reference: Frames) -> PerClip:
    """Mean absolute error of the change from frame to frame: what a decoder adds to or takes from the motion.

    Raises:
        ValueError: If a clip has fewer than two frames.
    """
    if frames.shape[1] < 2:
        raise ValueError(f"{frames.shape[1]} frame shows no change; give 2 or more")
    error = (frames[:, 1:] - frames[:, :-1]).double() - (reference[:, 1:] - reference[:, :-1]).double()
    return reduce(error.abs(), "b t c H W -> b", "mean")


def split_ends(num_frames: int, share: float = DRIFT_SHARE) -> tuple[slice, slice]:
    """First and last part of a video, to be compared by any measure: if they differ, the video drifts.

    Raises:
        ValueError: If the two parts would overlap.
    """
    size = max(1, round(share * num_frames))
    if num_frames < 2 or not 0 < share <= 0.5 or 2 * size > num_frames:
        raise ValueError(f"num_frames={num_frames}, share={share}; use 2 frames or more and 0 < share <= 0.5")
    return slice(0, size), slice(num_frames - size, num_frames)


def drift(scores: PerFrame, share: float = DRIFT_SHARE) -> PerClip:
    """Mean score of the last part of each video minus that of the first; 0 if quality holds.

    Args:
        scores: any measure per frame, in time order.
        share: length of either part.

    Source: Zhang and Agrawala 2025 (FramePack, arXiv 2504.12626), section 4, there without the sign.
    """
    first, last = split_ends(scores.shape[1], share)
    exact = scores.double()
    return exact[:, last].mean(dim=1) - exact[:, first].mean(dim=1)


def _blur(images: Float[Tensor, "n 1 H W"]) -> Float[Tensor, "n 1 h w"]:
    """Gaussian-weighted mean of every window that lies inside the image."""
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    rows = conv2d(images, rearrange(weights, "k -> 1 1 k 1"))
    return conv2d(rows, rearrange(weights, "k -> 1 1 1 k"))
