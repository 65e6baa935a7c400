"""Where a sampler stands between two steps: plain tensors that can be stored and resumed from, bit for bit."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.randomness import generator
from pipelines.tensors import Latents

Seed = int | str
HISTORY_PREFIX = "history."


@dataclass(frozen=True)
class SamplerState:
    """The latents after `step` finished steps, and what the next step needs of earlier ones.

    Attributes:
        latents: noisy latents; clean ones once step equals the number of timesteps.
        step: number of finished steps.
        history: earlier estimates of a multistep sampler; empty for the others.
    """

    latents: Latents
    step: int = 0
    history: Mapping[str, Latents] = field(default_factory=dict)


def initial_state(noise: Latents) -> SamplerState:
    """Start sampling from unit-variance noise; the sampler computes in float32 or wider whatever the network does."""
    return SamplerState(latents=noise.detach().to(torch.promote_types(noise.dtype, torch.float32)).contiguous())


def next_state(state: SamplerState, latents: Latents, history: Mapping[str, Latents] | None = None) -> SamplerState:
    """Close a step.

    Tensors are made contiguous because a network may sum a strided tensor in another order than its stored copy, and
    then a resumed run would differ in the last bit.
    """
    kept = {name: value.contiguous() for name, value in (history or {}).items()}
    return SamplerState(latents=latents.contiguous(), step=state.step + 1, history=kept)


def finish(states: Iterable[SamplerState]) -> Latents:
    """Run a sampler to its end and return the clean latents.

    Raises:
        ValueError: If no step was left to do; then the latents of the state it started from are the result.
    """
    last = deque(states, maxlen=1)
    if not last:
        raise ValueError("the sampler had no step left: use the latents of the state it started from")
    return last[0].latents


def state_to_tensors(state: SamplerState) -> dict[str, Tensor]:
    """Flatten a state for a safetensors file."""
    history = {HISTORY_PREFIX + name: value for name, value in state.history.items()}
    return {"latents": state.latents, "step": torch.tensor(state.step), **history}


def state_from_tensors(tensors: Mapping[str, Tensor]) -> SamplerState:
    """Rebuild the state that `state_to_tensors` flattened.

    Raises:
        ValueError: If the tensors are not those of a sampler state.
    """
    if missing := {"latents", "step"} - tensors.keys():
        raise ValueError(f"tensors {sorted(tensors)} are no sampler state: {sorted(missing)} missing")
    history = {name[len(HISTORY_PREFIX) :]: value for name, value in tensors.items() if name.startswith(HISTORY_PREFIX)}
    return SamplerState(latents=tensors["latents"], step=int(tensors["step"]), history=history)


def clip_noise(shape: tuple[int, ...], seed: Seed | Sequence[Seed], *keys: Seed) -> Latents:
    """Draw unit noise for clips of `shape` (b t z h w) on the CPU, a pure function of seed, clip and keys.

    Args:
        shape: shape of the batch.
        seed: one seed per clip, so that a clip's noise does not depend on what it is batched with; or a single one,
            from which clip i draws with (seed, i).
        keys: what the noise is for, such as ("step", 3).

    Raises:
        ValueError: If there are more or fewer seeds than clips.
    """
    owners = list(_clip_keys(shape[0], seed))
    if len(owners) != shape[0]:
        raise ValueError(f"{len(owners)} seeds for {shape[0]} clips; give one seed per clip, or a single one")
    return torch.stack([torch.randn(shape[1:], generator=generator(*owner, *keys)) for owner in owners])


def _clip_keys(b: int, seed: Seed | Sequence[Seed]) -> Iterator[tuple[Seed, int]]:
    if isinstance(seed, int | str):
        return ((seed, clip) for clip in range(b))
    return ((own, 0) for own in seed)
