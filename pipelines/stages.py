"""The stages from noise to frames. Each samples step by step, can stop after any step and go on from its state.

A stage is a generator: it yields a `StageState` after every denoising step, and the last one holds its result.

    keyframes = finish(stages.keyframes(stage, conditions, ...))
    frames = torch.cat(list(stages.decode(decoder, keyframes)), dim=1)

Source: Blattmann et al. 2023, section 3 and figure 5.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pipelines.diffusion.guidance import guide
from pipelines.diffusion.sampler_state import (
    SamplerState,
    clip_noise,
    initial_state,
    state_from_tensors,
    state_to_tensors,
)
from pipelines.diffusion.sampling import SamplerConfig, sample
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
    if state is not None and state.sampler is None:
        return
    denoise = guide(
        partial(stage.network, conditions=conditions),
        partial(stage.network, conditions=unconditional),
        sampling.guidance_scale,
    )
    start = state.sampler if state and state.sampler else initial_state(clip_noise(shape, sampling.seed, "keyframes"))
    for current in sample(sampling.sampler, denoise, stage.schedule, start, seed=sampling.seed):
        is_last = current.step == sampling.sampler.num_steps
        yield StageState(current.latents, None) if is_last else StageState(None, current)


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
