"""Where a stage stands between two denoising steps, and how that is written to a file."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipelines.diffusion.sampler_state import SamplerState, state_from_tensors, state_to_tensors
from pipelines.tensors import Latents

DONE = "done"


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
