"""What a run needs of its objective: networks with losses, data, export and a look at the result."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines import checkpoint
from pipelines.tensors import VideoFrames
from training.config import TrainConfig
from training.data import Sample, Source


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads and writes.

    Attributes:
        out: checkpoint folder that is read and, at the end, written to.
        shards: latent shards, for diffusion models.
        corpus: folder of videos, for autoencoders and pixel models.
        backbone: diffusers folder with the image network (autoencoder, upsampler) to start from; default the
            checkpoint's own for video, a new one for images.
        measures: folder with the networks of measurement, one of which the decoder may be trained with.
    """

    out: str
    shards: str | None = None
    corpus: str | None = None
    backbone: str | None = None
    measures: str = ".cache/weights"


@dataclass(frozen=True, kw_only=True)
class PhaseSpec:
    """One network of a run before any engine holds it.

    Attributes:
        name: of the phase.
        network: maps a batch to one loss per sample.
        trained: the parameters that are trained, by name.
        first_step: the phase does nothing before.
    """

    name: str
    network: nn.Module
    trained: dict[str, nn.Parameter]
    first_step: int = 0


class Task(Protocol):
    """An objective with its networks and data."""

    @property
    def phases(self) -> Sequence[PhaseSpec]:
        """Networks to train, in the order of a step."""

    @property
    def source(self) -> Source[Any]:
        """Samples to train on."""

    @property
    def held_out(self) -> Source[Any]:
        """Samples for validation; the training samples if none are held out."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of everything the run is given: data and frozen weights."""

    def collate(self, samples: Sequence[Sample], items: Sequence[Any]) -> Any:
        """Make a batch (see training.loop.Batch)."""

    def preview(self, count: int) -> list[VideoFrames]:
        """Sample some clips with the weights as they are."""

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the weights as they are into the checkpoint folder."""


class LossNetwork(nn.Module):
    """A network whose forward pass maps a batch to losses, in the precision of the run."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self._dtype = torch.bfloat16 if config.precision == "bf16" else None

    def forward(self, batch: Any) -> Float[Tensor, " b"]:
        """Loss of each sample; moves the batch to the network's device."""
        device = next(self.parameters()).device
        with self._autocast(device):
            return self.losses(batch.to(device)).float()

    def losses(self, batch: Any) -> Float[Tensor, " b"]:
        """Loss of each sample."""
        raise NotImplementedError

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, self._dtype) if self._dtype else nullcontext()


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that want a gradient, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def freeze(modules: Iterable[nn.Module], config: TrainConfig) -> None:
    """Stop training modules; with bf16, weights of linear maps and convolutions need no more.

    Norms keep their few weights in float32: on CPU they refuse another type than their input's.
    """
    for frozen in modules:
        frozen.requires_grad_(False).eval()
        for module in frozen.modules():
            if config.precision == "bf16" and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
                module.to(torch.bfloat16)


def put_part(folder: Path, part: str, write: Callable[[Path], None], *, name: str, record: dict[str, Any]) -> None:
    """Write a part of a checkpoint aside and put it in place when it is whole, its weights in half precision."""
    aside = folder / f".new-{part.replace('/', '-')}"
    aside.mkdir(parents=True, exist_ok=True)
    write(aside)
    for path in aside.rglob("config.json"):
        # diffusers notes there from which folder of this machine a network was loaded.
        values = json.loads(path.read_text())
        if values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    for path in aside.rglob("*.safetensors"):
        halved = {name: value.half() if value.is_floating_point() else value for name, value in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    checkpoint.write_part(folder, part, aside, name=name, record=record)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed` and leave torch's own generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
