"""What the loop asks of an engine, and the plain torch engine that every other one must equal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's two running averages."""


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """The optimizer between two steps, without a trace of how many workers or which engine held it.

    Attributes:
        updates: steps applied so far.
        moments: for each of MOMENTS and each trained parameter, "exp_avg.<name>" and so on, whole fp32 tensors.
    """

    updates: int = 0
    moments: Mapping[str, Tensor] = field(default_factory=dict)


class Engine(Protocol):
    """Holds a network's trained parameters and their optimizer.

    Attributes:
        network: maps a batch to one loss per sample; to be called instead of the module itself.
        shapes: shape of each trained parameter by name, in the order of the flat gradient.
    """

    network: nn.Module
    shapes: dict[str, torch.Size]

    def gradient(self, loss: Float[Tensor, ""]) -> Float[Tensor, " n"]:
        """Gradient of `loss` for all trained parameters as one flat fp32 tensor; nothing is accumulated."""

    def step(self, gradient: Float[Tensor, " n"], learning_rate: float) -> None:
        """Apply one update; every worker passes the same summed gradient."""

    def weights(self) -> dict[str, Tensor]:
        """Whole trained parameters by name, detached, in fp32; all workers must call it together."""

    def state(self) -> OptimizerState:
        """Whole optimizer state, copied; all workers must call it together."""


class TorchEngine:
    """The reference: every worker holds all parameters and the whole of AdamW's state."""

    def __init__(
        self,
        network: nn.Module,
        trained: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        state: OptimizerState | None = None,
    ) -> None:
        self.network = network
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        self._trained = dict(trained)
        self._optimizer = make_adamw(list(trained.values()), config)
        self._updates = 0
        if state is not None and state.updates:
            self._updates = state.updates
            for name, parameter in trained.items():
                moments = {moment: state.moments[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                set_moments(self._optimizer, parameter, state.updates, moments)

    def gradient(self, loss: Float[Tensor, ""]) -> Float[Tensor, " n"]:
        """See Engine."""
        return flat_gradient(loss, list(self._trained.values()), list(self.shapes.values()))

    def step(self, gradient: Float[Tensor, " n"], learning_rate: float) -> None:
        """See Engine."""
        set_learning_rate(self._optimizer, learning_rate)
        for parameter, part in zip(self._trained.values(), split(gradient, self.shapes.values()), strict=True):
            parameter.grad = part
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1

    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def state(self) -> OptimizerState:
        """See Engine."""
        if not self._updates:
            return OptimizerState()
        states = self._optimizer.state
        moments = {
            f"{moment}.{name}": states[parameter][moment].detach().clone()
            for moment in MOMENTS
            for name, parameter in self._trained.items()
        }
        return OptimizerState(updates=self._updates, moments=moments)


def make_adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the learning rate is set at every step."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def set_moments(
    optimizer: torch.optim.Optimizer, parameter: Tensor, updates: int, moments: Mapping[str, Tensor]
) -> None:
    """Give a parameter the AdamW state it had after `updates` steps."""
    optimizer.state[parameter] = {
        "step": torch.tensor(float(updates)),
        **{name: moment.to(parameter.dtype).clone() for name, moment in moments.items()},
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def flat_gradient(
    loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter], shapes: Sequence[torch.Size]
) -> Float[Tensor, " n"]:
    """Gradient for all parameters in one fp32 tensor; zero where the loss does not reach.

    Asks autograd for it instead of calling backward, so that no accumulation hook of any engine sees it.
    """
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    parts = [
        loss.new_zeros(shape.numel()) if gradient is None else gradient.flatten()
        for gradient, shape in zip(gradients, shapes, strict=True)
    ]
    return torch.cat(parts).float()


def split(flat: Float[Tensor, " n"], shapes: Iterable[torch.Size]) -> list[Tensor]:
    """Cut a flat tensor into views of the given shapes."""
    sizes = list(shapes)
    parts = torch.split(flat, [size.numel() for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]
