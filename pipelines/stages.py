"""The stages from noise to frames. Each samples step by step, can stop after any step and go on from its state.

A stage is a generator: it yields a `StageState` after every denoising step, and the last one holds its result.

    keyframes = finish(stages.keyframes(stage, conditions, ...))
    frames = torch.cat(list(stages.decode(decoder, keyframes)), dim=1)

Source: Blattmann et al. 2023, section 3 and figure 5.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pipelines.diffusion.frame_masks import Mask, interpolation_mask, masked_context, noisy_context, prediction_mask
from pipelines.diffusion.guidance import guide
from pipelines.diffusion.sampler_state import (
    SamplerState,
    clip_noise,
    initial_state,
    state_from_tensors,
    state_to_tensors,
)
from pipelines.diffusion.sampling import SamplerConfig, sample
from pipelines.diffusion.windows import append_window, join_gaps, open_gaps, open_window, plan_rollout, split_gaps
from pipelines.models.autoencoder import decode_windows
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import Autoencoder
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.networks import Stage
from pipelines.tensors import Frames, Latents

DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stage samples.

    Attributes:
        sampler: which sampler, how many steps.
        guidance_scale: strength of guidance; 1 is none.
        seed: of all noise; equal seeds give equal results.
    """

    sampler: SamplerConfig
    guidance_scale: float
    seed: int


@dataclass(frozen=True)
class StageState:
    """Where a stage stands after a step: what is done, and the sampler at work on the rest.

    Attributes:
        done: finished latents; None until the first part is finished.
        sampler: state of the running sampler; None once the stage is finished.
    """

    done: Latents | None
    sampler: SamplerState | None

    def to_tensors(self) -> dict[str, Tensor]:
        """Flatten for a safetensors file."""
        tensors = {} if self.sampler is None else state_to_tensors(self.sampler)
        return tensors if self.done is None else {**tensors, DONE: self.done}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "StageState":
        """Rebuild what `to_tensors` flattened."""
        rest = {name: tensor for name, tensor in tensors.items() if name != DONE}
        return StageState(done=tensors.get(DONE), sampler=state_from_tensors(rest) if rest else None)


def finish(states: Iterable[StageState]) -> Latents:
    """Run a stage to its end and return its latents."""
    (last,) = deque(states, maxlen=1)
    assert last.done is not None
    return last.done


def keyframes(
    stage: Stage,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    shape: tuple[int, int, int, int, int],
    state: StageState | None = None,
) -> Iterator[StageState]:
    """Sample clips from noise.

    Args:
        stage: the key-frame model.
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
        for current, is_last in _sample(stage, conditions, unconditional, sampling, shape, start, "keyframes"):
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
        name = f"prediction/{window.start}"
        known = open_window(video, window, size)
        mask = prediction_mask(torch.full((len(video),), window.num_context, device=video.device), size)
        sides = _with_context(stage, known, mask, conditions, unconditional, sampling, name)
        for current, is_last in _sample(stage, *sides, sampling, tuple(known.shape), start, name):
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
        name, gaps = f"interpolation/{keyframes.shape[1]}/{first}", part.shape[1] - 1
        known = open_gaps(split_gaps(part), size)
        mask = interpolation_mask(len(known), size).to(known.device)
        given, empty = _repeat(conditions, gaps), _repeat(unconditional, gaps)
        sides = _with_context(stage, known, mask, given, empty, sampling, name)
        for current, is_last in _sample(stage, *sides, sampling, tuple(known.shape), start, name):
            if is_last:
                video = torch.cat([video, join_gaps(part, current.latents)[:, 1:]], dim=1)
            yield StageState(video, None if is_last else current)
        start = None


def _repeat(conditions: Conditions, times: int) -> Conditions:
    """Give each clip's conditions to `times` windows of it."""
    values = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    return Conditions(
        **{name: None if value is None else value.repeat_interleave(times, dim=0) for name, value in values.items()}
    )


def _sample(
    stage: Stage,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    shape: tuple[int, ...],
    start: SamplerState | None,
    name: str,
) -> Iterator[tuple[SamplerState, bool]]:
    """Sample one batch of windows: each state, and whether it is the last."""
    denoise = guide(stage.denoise(conditions), stage.denoise(unconditional), sampling.guidance_scale)
    seed = f"{sampling.seed}/{name}"
    noise = clip_noise(shape, seed, "start").to(stage.device)
    for current in sample(sampling.sampler, denoise, stage.schedule, start or initial_state(noise), seed=seed):
        yield current, current.step == sampling.sampler.num_steps


def _with_context(
    stage: Stage,
    known: Latents,
    mask: Mask,
    conditions: Conditions,
    unconditional: Conditions,
    sampling: Sampling,
    name: str,
) -> tuple[Conditions, Conditions]:
    """Add the given frames to one side of guidance and an empty context to the other."""
    level = stage.config.context_level
    nothing = torch.zeros_like(masked_context(known, mask))
    if level is None:
        return replace(conditions, context=masked_context(known, mask)), replace(unconditional, context=nothing)
    levels = torch.full((len(known),), float(level), device=known.device)
    noise = clip_noise(tuple(known.shape), f"{sampling.seed}/{name}", "context").to(known)
    context = noisy_context(known, mask, levels, noise, stage.schedule)
    return (
        replace(conditions, context=context, context_level=levels),
        replace(unconditional, context=nothing, context_level=levels),
    )


def decode(
    decoder: VideoDecoder | Autoencoder, latents: Latents, *, window: int = 8, overlap: int = 2
) -> Iterator[Frames]:
    """Decode clips a few frames at a time, in constant memory.

    Yields:
        Consecutive frames in [-1, 1], clamped.

    Source: section 3.1.1.
    """
    overlap = overlap if isinstance(decoder, VideoDecoder) else 0
    for frames in decode_windows(decoder, latents, window=window, overlap=overlap):
        yield frames.clamp(-1, 1)
