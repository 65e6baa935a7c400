"""Long clips as short windows: gaps between key frames, roll-outs, and overlapping windows that are blended."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipelines.diffusion.noise import Denoise
from pipelines.tensors import Latents, Timestep

Clip = Float[Tensor, "b t channels height width"]
"""Latents or frames."""


def interpolated_length(num_frames: int, passes: int, factor: int = 4) -> int:
    """Frames after interpolating `passes` times: T -> factor^passes (T - 1) + 1; 8 -> 29 -> 113, 10 -> 37 -> 145."""
    return factor**passes * (num_frames - 1) + 1


def split_gaps(keyframes: Latents) -> Float[Tensor, "gaps 2 z h w"]:
    """Both ends of every gap, all gaps of the first clip first; gaps are independent and may be batched freely.

    Raises:
        ValueError: If there is no gap.
    """
    if keyframes.shape[1] < 2:
        raise ValueError(f"{keyframes.shape[1]} key frame has no gap to interpolate; give 2 or more")
    return rearrange(torch.stack([keyframes[:, :-1], keyframes[:, 1:]], dim=2), "b g ends z h w -> (b g) ends z h w")


def open_gaps(ends: Float[Tensor, "gaps 2 z h w"], num_frames: int) -> Float[Tensor, "gaps t z h w"]:
    """Windows with the key frames at both ends and zeros between, to be masked as `interpolation_mask` says."""
    window = ends.new_zeros((ends.shape[0], num_frames, *ends.shape[2:]))
    window[:, 0], window[:, -1] = ends[:, 0], ends[:, 1]
    return window


def join_gaps(keyframes: Latents, windows: Float[Tensor, "gaps n z h w"]) -> Float[Tensor, "b dense z h w"]:
    """Put the frames between the key frames of every gap where they belong; key frames stay as they were, bit for bit.

    Args:
        keyframes: T key frames of each clip.
        windows: one per gap in the order of `split_gaps`, ends included; what the model made of the ends is dropped.

    Raises:
        ValueError: If there is not one window per gap.
    """
    b, gaps = keyframes.shape[0], keyframes.shape[1] - 1
    if len(windows) != b * gaps:
        raise ValueError(f"{len(windows)} windows for {b} clips of {gaps} gaps; give {b * gaps}")
    between = rearrange(windows[:, 1:-1], "(b g) n z h w -> b g n z h w", b=b)
    starts = rearrange(keyframes[:, :-1], "b g z h w -> b g 1 z h w")
    filled = rearrange(torch.cat([starts, between.to(keyframes)], dim=2), "b g n z h w -> b (g n) z h w")
    return torch.cat([filled, keyframes[:, -1:]], dim=1)


@dataclass(frozen=True)
class RolloutWindow:
    """One call of a prediction model in a long video: its frames are start ... start + window - 1."""

    start: int
    num_context: int


def plan_rollout(num_frames: int, window: int, first_context: int, num_context: int = 2) -> list[RolloutWindow]:
    """Windows that make `num_frames` frames, each but the first given the last `num_context` (paper, section 3.2).

    Two frames carry the direction of motion. The last window may reach past the end; cut what is too much.

    Args:
        num_frames: length wanted, given frames included.
        window: frames of the prediction model.
        first_context: frames the video starts from, 0, 1 or 2.
        num_context: frames handed from window to window.

    Raises:
        ValueError: If a window would make no new frame.
    """
    if num_frames < 1 or first_context < 0 or num_context < 1 or max(first_context, num_context) >= window:
        raise ValueError(
            f"num_frames={num_frames}, window={window}, first_context={first_context}, num_context={num_context}; "
            f"use num_frames >= 1, first_context 0 to {window - 1} and num_context 1 to {window - 1}"
        )
    plan = [RolloutWindow(start=0, num_context=first_context)]
    while plan[-1].start + window < num_frames:
        plan.append(RolloutWindow(start=plan[-1].start + window - num_context, num_context=num_context))
    return plan


def open_window(video: Latents, window: RolloutWindow, num_frames: int) -> Float[Tensor, "b window z h w"]:
    """The given frames of a roll-out window followed by zeros, to be masked as `prediction_mask` says.

    Raises:
        ValueError: If the video does not end where the window's new frames begin.
    """
    known = video[:, window.start :]
    if known.shape[1] != window.num_context:
        raise ValueError(
            f"video has {video.shape[1]} frames but the window at {window.start} goes on from frame "
            f"{window.start + window.num_context}; append the windows in the order of the plan"
        )
    b, _, z, h, w = video.shape
    return torch.cat([known, video.new_zeros((b, num_frames - window.num_context, z, h, w))], dim=1)


def append_window(
    video: Latents, predicted: Float[Tensor, "b window z h w"], window: RolloutWindow
) -> Float[Tensor, "b longer z h w"]:
    """The video with the new frames of a predicted window; frames it was given stay as they were, bit for bit."""
    return torch.cat([video, predicted[:, window.num_context :].to(video)], dim=1)


def window_starts(num_frames: int, size: int, overlap: int) -> list[int]:
    """First frames of windows that cover a clip; the last is moved back to end with it. A short clip is one window.

    Raises:
        ValueError: If windows would not advance.
    """
    if not 0 <= overlap < size or num_frames < 1:
        raise ValueError(
            f"size={size}, overlap={overlap} for {num_frames} frames; use 0 <= overlap < size, 1 frame or more"
        )
    starts = list(range(0, max(num_frames - size, 0), size - overlap))
    return [*starts, max(num_frames - size, 0)]


def blend_weights(size: int, overlap: int, *, is_first: bool, is_last: bool) -> Float[Tensor, " size"]:
    """Weights that rise over the first `overlap` frames and fall over the last, so that windows fade into each other.

    The rise of one window and the fall of the one before sum to 1; no weight is 0. The clip's own ends do not fade.
    """
    position = torch.arange(1, size + 1, dtype=torch.float32)
    rise = torch.ones(size) if is_first else position / (overlap + 1)
    fall = torch.ones(size) if is_last else (size + 1 - position) / (overlap + 1)
    return torch.minimum(rise, fall).clamp(max=1.0)


def blend_stream(windows: Iterable[Clip], starts: Sequence[int], overlap: int) -> Iterator[Clip]:
    """Blend overlapping windows as they come, yielding frames as soon as no later window can change them.

    Memory is that of one window and one overlap, whatever the length of the clip. Half-precision windows are summed in
    float32.

    Args:
        windows: one per start, in order, of the same number of frames.
        starts: from `window_starts`.
        overlap: frames over which two windows fade.

    Raises:
        ValueError: If there is not one window per start.

    Source: Bar-Tal et al. 2023 (MultiDiffusion, arXiv 2302.08113), equation 5, along time as in Lumiere.
    """
    pending: tuple[Tensor, Tensor] | None = None
    for index, (start, window) in enumerate(zip(starts, windows, strict=True)):
        is_last = index == len(starts) - 1
        ramp = blend_weights(window.shape[1], overlap, is_first=index == 0, is_last=is_last)
        weights = rearrange(ramp.to(window.device), "t -> 1 t 1 1 1")
        sums = weights * window
        if pending is not None:
            sums, weights = _add_over_start(sums, pending[0]), _add_over_start(weights, pending[1])
        done = window.shape[1] if is_last else starts[index + 1] - start
        yield (sums[:, :done] / weights[:, :done]).to(window.dtype)
        pending = sums[:, done:], weights[:, done:]


def _add_over_start(values: Tensor, earlier: Tensor) -> Tensor:
    """Add what earlier windows left to the first frames of `values`."""
    shared = earlier.shape[1]
    return torch.cat([values[:, :shared] + earlier, values[:, shared:]], dim=1)


def blend_denoise(denoise_window: Callable[[slice], Denoise], num_frames: int, size: int, overlap: int) -> Denoise:
    """Denoise a clip of any length with a network for short windows: predict each window, blend the predictions.

    Blending at every step keeps the windows together, so that no seam shows where two of them meet.

    Args:
        denoise_window: the network with the conditions of the frames of a slice bound.
        num_frames: frames of the clip.
        size: frames of a window.
        overlap: frames that neighbouring windows share.
    """
    starts = window_starts(num_frames, size, overlap)
    frames = [slice(start, min(start + size, num_frames)) for start in starts]

    def denoise(noisy: Latents, timestep: Timestep) -> Latents:
        predictions = (denoise_window(window)(noisy[:, window], timestep) for window in frames)
        return torch.cat(list(blend_stream(predictions, starts, overlap)), dim=1)

    return denoise
