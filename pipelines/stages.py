"""The stages from noise to frames. Each samples step by step, can stop after any step and go on from its state.

A stage is a generator: it yields a `StageState` after every denoising step, and the last one holds its result.

    keyframes = finish(stages.keyframes(stage, conditions, ...))
    frames = torch.cat(list(stages.decode(decoder, keyframes)), dim=1)

Source: Blattmann et al. 2023, section 3 and figure 5.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.diffusion.frame_masks import interpolation_mask, prediction_mask
from pipelines.diffusion.guidance import guide, noise_interval, rising_scale
from pipelines.diffusion.noise import Denoise
from pipelines.diffusion.sampler_state import (
    SamplerState,
    clip_noise,
    initial_state,
)
from pipelines.diffusion.sampling import SamplerConfig, sample
from pipelines.diffusion.windows import append_window, join_gaps, open_gaps, open_window, plan_rollout, split_gaps
from pipelines.image_stage import ImageStage
from pipelines.models.autoencoder import decode_windows
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import Autoencoder
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.networks import Stage
from pipelines.stage_inputs import (
    denoise_in_windows,
    frame_noise,
    keep_frames,
    repeat_conditions,
    with_given_frames,
    with_low_resolution,
)
from pipelines.stage_state import StageState
from pipelines.tensors import Frames, Latents

AnyStage = Stage | ImageStage

UPSAMPLING = 4
"""Factor of the upsampler in height and width."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stage samples.

    Attributes:
        sampler: which sampler, how many steps.
        guidance_scale: strength of guidance; 1 is none.
        guidance_last: strength at the last frame of a window, to which it rises (or falls) linearly from the first;
            None keeps it the same.
        guidance_interval: noise sigma / alpha between which there is guidance at all; None guides at every step.
        seed: of all noise; equal seeds give equal results.
    """

    sampler: SamplerConfig
    guidance_scale: float
    guidance_last: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int


def finish(states: Iterable[StageState]) -> Latents:
    """Run a stage to its end and return its latents."""
    (last,) = deque(states, maxlen=1)
    assert last.done is not None
    return last.done


def keyframes(
    stage: AnyStage,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    shape: tuple[int, int, int, int, int],
    state: StageState | None = None,
) -> Iterator[StageState]:
    """Sample clips from noise.

    Args:
        stage: the key-frame model, or an image model.
        conditions: what the clips show.
        unconditional: what guidance pushes away from.
        sampling: sampler, guidance and seed.
        shape: of the latents, b t z h w.
        state: where an earlier run stopped.

    Yields:
        The state after each step; the last is finished.

    Source: section 3.1.
    """
    if state is None or state.done is None:
        start = None if state is None else state.sampler
        seed = f"{sampling.seed}/keyframes"
        denoise = _guided(stage, (conditions, unconditional), sampling, shape[1])
        for current, is_last in _sample(stage, denoise, sampling, clip_noise(shape, seed, "start"), start, seed):
            yield StageState(current.latents, None) if is_last else StageState(None, current)


def predict(
    stage: Stage,
    given: Latents,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    num_frames: int,
    state: StageState | None = None,
) -> Iterator[StageState]:
    """Go on from given frames, window by window, each but the first given the last two frames of the one before.

    Args:
        stage: the prediction model.
        given: 0, 1 or 2 frames to start from (b s z h w).
        conditions: what the clips show; the context is added here.
        unconditional: other side of guidance; it gets no context (context guidance, equation 4).
        sampling: sampler, guidance and seed.
        num_frames: length wanted, given frames included.
        state: where an earlier run stopped.

    Yields:
        The state after each step; `done` holds the frames finished so far.

    Source: section 3.2 and appendix H.1.
    """
    size = stage.config.num_frames
    video = given if state is None or state.done is None else state.done
    start = None if state is None else state.sampler
    for window in plan_rollout(num_frames, size, given.shape[1]):
        if video.shape[1] > window.start + window.num_context:
            continue
        seed = f"{sampling.seed}/prediction/{window.start}"
        known = open_window(video, window, size)
        mask = prediction_mask(torch.full((len(video),), window.num_context, device=video.device), size)
        sides = with_given_frames(stage, known, mask, (conditions, unconditional), seed)
        noise = clip_noise(tuple(known.shape), seed, "start")
        for current, is_last in _sample(stage, _guided(stage, sides, sampling, size), sampling, noise, start, seed):
            if is_last:
                video = append_window(video, current.latents, window)[:, :num_frames]
            yield StageState(video, None if is_last else current)
        start = None


def interpolate(
    stage: Stage,
    keyframes: Latents,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    *,
    gaps_at_once: int = 8,
    state: StageState | None = None,
) -> Iterator[StageState]:
    """Put three frames into every gap between key frames; key frames stay as they are. T -> 4 (T - 1) + 1.

    Args:
        stage: the interpolation model.
        keyframes: b T z h w.
        conditions: what the clips show, with the frame rate to reach if the model asks for it; context is added here.
        unconditional: other side of guidance; it gets no context.
        sampling: sampler, guidance and seed.
        gaps_at_once: gaps of all clips that are sampled in one batch.
        state: where an earlier run stopped.

    Yields:
        The state after each step; `done` holds the frames up to the last finished gap.

    Source: section 3.3.
    """
    size = stage.config.num_frames
    video = keyframes[:, :1] if state is None or state.done is None else state.done
    start = None if state is None else state.sampler
    for first in range((video.shape[1] - 1) // (size - 1), keyframes.shape[1] - 1, gaps_at_once):
        part = keyframes[:, first : first + gaps_at_once + 1]
        seed, gaps = f"{sampling.seed}/interpolation/{keyframes.shape[1]}/{first}", part.shape[1] - 1
        known = open_gaps(split_gaps(part), size)
        mask = interpolation_mask(len(known), size).to(known.device)
        each = repeat_conditions(conditions, gaps), repeat_conditions(unconditional, gaps)
        sides = with_given_frames(stage, known, mask, each, seed)
        noise = clip_noise(tuple(known.shape), seed, "start")
        for current, is_last in _sample(stage, _guided(stage, sides, sampling, size), sampling, noise, start, seed):
            if is_last:
                video = torch.cat([video, join_gaps(part, current.latents)[:, 1:]], dim=1)
            yield StageState(video, None if is_last else current)
        start = None


def decode(
    decoder: VideoDecoder | Autoencoder, latents: Latents, *, window: int = 8, overlap: int = 2
) -> Iterator[Frames]:
    """Decode clips a few frames at a time, in constant memory. A picture has no neighbours: its autoencoder decodes it.

    Yields:
        Consecutive frames in [-1, 1], clamped.

    Source: section 3.1.1.
    """
    if isinstance(decoder, VideoDecoder) and latents.shape[1] == 1:
        decoder = decoder.vae
    overlap = overlap if isinstance(decoder, VideoDecoder) else 0
    own = latents.to(next(decoder.parameters()).dtype)
    for frames in decode_windows(decoder, own, window=window, overlap=overlap):
        yield frames.float().clamp(-1, 1)


def upsample(
    stage: Stage,
    low: Frames,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    *,
    factor: int = 1,
    known: Float[Tensor, "b n z h w"] | None = None,
    first_frame: int = 0,
    overlap: int = 2,
    state: StageState | None = None,
) -> Iterator[StageState]:
    """Upsample a segment of clips four times, in overlapping windows of frames that are blended at every step.

    The next segment of a long clip is given the frames it shares with this one, so memory does not grow with the clip.

    Args:
        stage: the upsampler.
        low: low-resolution frames; noise of level `StageConfig.context_level` is put on them.
        conditions: what the clips show; the low resolution is added here.
        unconditional: other side of guidance; it keeps the low resolution.
        sampling: sampler, guidance and seed.
        factor: pixels along a side of a latent of the upsampler: 1 for a pixel-space one.
        known: latents of the first frames, made with the segment before.
        first_frame: place of the segment in the clip.
        overlap: frames that neighbouring windows share.
        state: where an earlier run stopped.

    Yields:
        The state after each step; the last holds the latents (frames, if factor is 1).

    Source: section 3.4, equation 5; the paper does not say how its windows join, the blending is ours.
    """
    if state is not None and state.done is not None:
        return
    h, w = (side * UPSAMPLING // factor for side in low.shape[3:])
    shape = (*low.shape[:2], int(stage.network.unet.config["out_channels"]), h, w)
    sides = with_low_resolution(stage, low, (conditions, unconditional), (h, w), sampling.seed, first_frame)
    given, nothing = (denoise_in_windows(stage, side, low.shape[1], overlap) for side in sides)
    denoise = guide(given, nothing, sampling.guidance_scale)
    if known is not None:
        denoise = keep_frames(denoise, known, stage.schedule)
    noise = frame_noise(shape, sampling.seed, first_frame, "start")
    start, seed = None if state is None else state.sampler, f"{sampling.seed}/upsampler/{first_frame}"
    for current, is_last in _sample(stage, denoise, sampling, noise, start, seed):
        latents = current.latents
        if is_last and known is not None:
            latents = torch.cat([known.to(latents), latents[:, known.shape[1] :]], dim=1)
        yield StageState(latents, None) if is_last else StageState(None, current)


def _guided(stage: AnyStage, sides: tuple[Conditions, Conditions], sampling: Sampling, num_frames: int) -> Denoise:
    first, last, interval = sampling.guidance_scale, sampling.guidance_last, sampling.guidance_interval
    return guide(
        stage.denoise(sides[0]),
        stage.denoise(sides[1]),
        first if last is None else rising_scale(first, last, num_frames),
        interval=None if interval is None else noise_interval(stage.schedule, *interval),
    )


def _sample(
    stage: AnyStage, denoise: Denoise, sampling: Sampling, noise: Latents, start: SamplerState | None, seed: str
) -> Iterator[tuple[SamplerState, bool]]:
    """Sample one batch of windows: each state, and whether it is the last."""
    begun = start or initial_state(noise.to(stage.device))
    for current in sample(sampling.sampler, denoise, stage.schedule, begun, seed=seed):
        yield current, current.step == sampling.sampler.num_steps
