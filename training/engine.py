"""DeepSpeed as an engine: ZeRO 0 to 3, with optimizer state on CPU or NVMe if asked for.

DeepSpeed holds the partitioned optimizer (and, at stage 3, the partitioned parameters); the gradient comes already
summed over all workers, the same on each, so nothing is reduced here and every stage applies the same update.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from training.config import OptimizerConfig, ZeroConfig
from training.torch_engine import (
    MOMENTS,
    OptimizerState,
    flat_gradient,
    make_adamw,
    set_learning_rate,
    set_moments,
    split,
)


def _import_deepspeed() -> Any:
    """Import DeepSpeed without MLflow: its tuner, which nothing here uses, would spend two seconds on that."""
    unknown = "mlflow" not in sys.modules
    if unknown:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed  # noqa: PLC0415
    finally:
        if unknown:
            del sys.modules["mlflow"]
    return deepspeed


deepspeed = _import_deepspeed()


def zero_json(config: ZeroConfig) -> dict[str, object]:
    """DeepSpeed's own configuration; clipping, accumulation, precision and loss scale are the loop's."""
    zero: dict[str, object] = {"stage": config.stage, "overlap_comm": False, "contiguous_gradients": False}
    if config.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "nvme":
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": config.nvme_path}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class DeepSpeedEngine:
    """An Engine whose optimizer, and at stage 3 parameters, are partitioned over the workers by ZeRO."""

    def __init__(
        self,
        network: nn.Module,
        trained: dict[str, nn.Parameter],
        config: OptimizerConfig,
        zero: ZeroConfig,
        state: OptimizerState | None = None,
    ) -> None:
        if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
            # Compiling this operator takes minutes on a fresh machine; it only serves inference.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        self._trained = dict(trained)
        self._zero = zero
        self._updates = 0
        optimizer = make_adamw(list(trained.values()), config)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=zero_json(zero), dist_init_required=False
        )
        # Stage 3 gathers parameters in hooks that the engine's forward arms.
        self.network: nn.Module = self._engine if zero.stage == 3 else network
        if state is not None and state.updates:
            self._load(state)

    def gradient(self, loss: Float[Tensor, ""]) -> Float[Tensor, " n"]:
        """See Engine."""
        return flat_gradient(loss, list(self._trained.values()), list(self.shapes.values()))

    def step(self, gradient: Float[Tensor, " n"], learning_rate: float) -> None:
        """See Engine."""
        set_learning_rate(self._optimizer, learning_rate)
        for parameter, part in zip(self._trained.values(), split(gradient, self.shapes.values()), strict=True):
            if self._zero.stage == 3:
                deepspeed.utils.safe_set_local_grad(parameter, _partition(part, parameter))
            else:
                parameter.grad = part.to(parameter.device)
        self._hand_over()
        self._engine.step()
        self._updates += 1

    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        if self._zero.stage < 3:
            # Trained weights are in fp32, so the model's own are the optimizer's.
            return {name: parameter.detach() for name, parameter in self._trained.items()}
        return {
            name: deepspeed.utils.safe_get_full_fp32_param(parameter).detach().view(self.shapes[name])
            for name, parameter in self._trained.items()
        }

    def state(self) -> OptimizerState:
        """See Engine."""
        if not self._updates:
            return OptimizerState()
        moments = {
            f"{moment}.{name}": self._moment(parameter, moment).detach().view(self.shapes[name]).clone()
            for moment in MOMENTS
            for name, parameter in self._trained.items()
        }
        return OptimizerState(updates=self._updates, moments=moments)

    def _hand_over(self) -> None:
        """Put whole gradients where ZeRO's step expects its partition's, without any reduction."""
        optimizer = self._optimizer
        if self._zero.stage in (1, 2) and self._zero.offload != "none":
            for group in optimizer.params_in_partition:
                for parameter in group:
                    optimizer.copy_grads_in_partition(parameter)
        elif self._zero.stage > 0:
            optimizer.independent_gradient_partition_epilogue()

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._zero.stage == 0:
            return self._optimizer.state[parameter][moment]
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)

    def _partitions(self) -> list[Tensor]:
        """The flat fp32 tensors that the inner optimizer of stages 1 to 3 updates on this worker."""
        if self._zero.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups) if self._zero.stage else []

    def _load(self, state: OptimizerState) -> None:
        self._updates = state.updates
        for flat in self._partitions():
            zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            set_moments(self._optimizer.optimizer, flat, state.updates, zeros)
        if self._zero.stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._trained.items():
            moments = {moment: state.moments[f"{moment}.{name}"] for moment in MOMENTS}
            if self._zero.stage == 0:
                set_moments(self._optimizer, parameter, state.updates, moments)
                continue
            for moment, value in moments.items():
                if self._zero.stage == 3:
                    deepspeed.utils.safe_set_local_optimizer_state(
                        parameter, _partition(value.to(parameter.device), parameter), moment
                    )
                else:
                    deepspeed.utils.safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)


def _partition(whole: Tensor, parameter: Any) -> Tensor:
    """This worker's part of a whole tensor, padded as ZeRO-3 pads its parameters."""
    size = parameter.ds_tensor.numel()
    padded = functional.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
    return padded.narrow(0, size * dist.get_rank(), size)
