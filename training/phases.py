"""A run's networks in their engines, built from a checkpoint or from the start, and turned back into one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.checkpoints import Checkpoint
from training.config import OptimizerConfig, TrainConfig
from training.ema import MovingAverage
from training.loop import Phase
from training.task import PhaseSpec
from training.torch_engine import MOMENTS, Engine, OptimizerState, TorchEngine

Tensors = Mapping[str, Mapping[str, Tensor]]


def build_phases(
    specs: Sequence[PhaseSpec],
    config: TrainConfig,
    device: torch.device,
    found: Checkpoint | None,
    *,
    keeps_average: bool,
) -> list[Phase]:
    """Put networks into engines, with weights and optimizer state of a checkpoint if there is one.

    Args:
        specs: the networks.
        config: of the run.
        device: where they compute.
        found: checkpoint to go on from.
        keeps_average: whether this worker keeps the moving averages.

    Raises:
        ValueError: if the checkpoint does not hold what the networks need.
    """
    tensors: Tensors = found.load() if found is not None else {}
    phases = []
    for spec in specs:
        optimizer = config.discriminator if spec.name == "discriminator" else config.optimizer
        assert optimizer is not None
        state, average, averages = None, None, 0
        if found is not None:
            load_weights(spec, tensors["weights"])
            state = _optimizer_state(spec, tensors["moments"], found.progress["updates"][spec.name])
            averages = found.progress["averages"][spec.name]
        spec.network.to(device)
        engine = make_engine(spec, config, optimizer, state)
        weights = engine.weights()
        if keeps_average:
            start = {name: tensors["ema"][f"{spec.name}/{name}"] for name in weights} if found is not None else weights
            average = MovingAverage(config.ema_decay, {name: start[name].to(device) for name in start}, averages)
        phases.append(
            Phase(name=spec.name, engine=engine, optimizer=optimizer, average=average, first_step=spec.first_step)
        )
    return phases


def snapshot(phases: Sequence[Phase]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Copy what a checkpoint holds; all workers must call it together.

    Returns:
        Tensors by file and "phase/name", and the number of updates of optimizers and averages; averages only where this
        worker keeps them.
    """
    tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}, "ema": {}}
    updates, averages = {}, {}
    for phase in phases:
        state = phase.engine.state()
        updates[phase.name] = state.updates
        tensors["weights"] |= _named(phase, {k: v.detach().clone() for k, v in phase.engine.weights().items()})
        tensors["moments"] |= _named(phase, state.moments)
        if phase.average is not None:
            averages[phase.name] = phase.average.updates
            tensors["ema"] |= _named(phase, {k: v.clone() for k, v in phase.average.tensors.items()})
    return tensors, {"updates": updates, "averages": averages}


def load_weights(spec: PhaseSpec, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved weights ("phase/name") into a network's trained parameters.

    Raises:
        ValueError: if a parameter is missing or of another shape.
    """
    for name, parameter in spec.trained.items():
        saved = tensors.get(f"{spec.name}/{name}")
        if saved is None or saved.shape != parameter.shape:
            found = "nothing" if saved is None else f"shape {tuple(saved.shape)}"
            raise ValueError(
                f"checkpoint holds {found} for {name}, the network needs shape {tuple(parameter.shape)}; it is of "
                "another version of the program"
            )
        with torch.no_grad():
            parameter.copy_(saved)


def make_engine(
    spec: PhaseSpec, config: TrainConfig, optimizer: OptimizerConfig, state: OptimizerState | None
) -> Engine:
    """Plain torch, or DeepSpeed if the run says so."""
    if config.cluster.engine == "torch":
        return TorchEngine(spec.network, spec.trained, optimizer, state)
    # Importing DeepSpeed takes seconds that plain runs need not spend.
    from training.engine import DeepSpeedEngine  # noqa: PLC0415

    return DeepSpeedEngine(spec.network, spec.trained, optimizer, config.cluster.zero, state)


def _optimizer_state(spec: PhaseSpec, moments: Mapping[str, Tensor], updates: int) -> OptimizerState:
    names = [f"{moment}.{name}" for moment in MOMENTS for name in spec.trained] if updates else []
    missing = [name for name in names if f"{spec.name}/{name}" not in moments]
    if missing:
        raise ValueError(f"checkpoint holds no {missing[0]}; it is of another version of the program")
    return OptimizerState(updates=updates, moments={name: moments[f"{spec.name}/{name}"] for name in names})


def _named(phase: Phase, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{phase.name}/{name}": tensor.to("cpu") for name, tensor in tensors.items()}
