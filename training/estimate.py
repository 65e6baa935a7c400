"""What a run will take, before it: parameters, memory of a worker, arithmetic and time of a step, hours and cost.

The network is built and taken through a training step on the meta device: shapes alone, nothing is allocated.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipelines.models.cost import count_parameters, meta_inputs
from pipelines.models.lean_backbone import recompute_transformers
from pipelines.models.video_unet import VideoUNet
from training.config import TrainConfig
from training.low_rank import LowRank
from training.torch_engine import flat_gradient

GIB = 2**30
ESTIMATED = ("image", "keyframes", "prediction", "interpolation")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Figures of a run.

    Attributes:
        frozen_parameters, trained_parameters: of the network.
        step_flops: of a whole step, over all workers.
        state_bytes: weights, gradient, moving average and optimizer state on the first worker, by ZeRO stage.
        activation_bytes: what a virtual shard's forward and backward pass needs beside that, at most.
        step_s: seconds of a step.
        hours: of the whole run.
        cost: of the whole run, in the currency of the price.
    """

    frozen_parameters: int
    trained_parameters: int
    step_flops: float
    state_bytes: dict[int, int]
    activation_bytes: int
    step_s: float
    hours: float
    cost: float


def estimate(config: TrainConfig, *, workers: int, flops_per_s: float) -> Estimate:
    """Estimate a run of the image model or of a video model.

    Args:
        config: the run.
        workers: how many.
        flops_per_s: arithmetic that one worker does in a second, as reached, not as advertised.

    Raises:
        ValueError: for objectives whose networks are not U-Nets on latents.
    """
    shard = _shard_cost(config)
    step_flops = shard.flops * config.virtual_shards
    # The worker with the most virtual shards decides.
    step_s = shard.flops * ceil(config.virtual_shards / workers) / flops_per_s
    hours = step_s * config.steps / 3600
    half = 0.5 if config.precision == "bf16" else 1.0
    return Estimate(
        frozen_parameters=shard.frozen,
        trained_parameters=shard.trained,
        step_flops=step_flops,
        state_bytes={stage: _state_bytes(shard, config, stage, workers) for stage in range(4)},
        activation_bytes=int(half * shard.activation_bytes),
        step_s=step_s,
        hours=hours,
        cost=hours * workers * config.cluster.price_per_hour,
    )


def step_flops(config: TrainConfig) -> float | None:
    """Arithmetic of a step over all workers; None for objectives without an estimate."""
    return _shard_cost(config).flops * config.virtual_shards if config.objective in ESTIMATED else None


def report(config: TrainConfig, found: Estimate, workers: int) -> str:
    """Lay the figures out for a reader."""
    sizes = {stage: (size + found.activation_bytes) / GIB for stage, size in found.state_bytes.items()}
    memory = "  ".join(f"ZeRO-{stage} {size:.2f}" for stage, size in sizes.items())
    trained, frozen = found.trained_parameters / 1e6, found.frozen_parameters / 1e6
    return "\n".join(
        [
            f"{config.name}: {config.steps} steps of {config.batch_size} samples on {workers} worker(s)",
            f"parameters   {trained:.2f} M trained, {frozen:.2f} M frozen",
            f"memory, GiB  {memory}   of a worker, {found.activation_bytes / GIB:.2f} of it for a virtual shard's pass",
            f"arithmetic   {found.step_flops / 1e12:.3f} TFLOP a step, forward and backward",
            f"step         {found.step_s:.2f} s",
            f"whole run    {found.hours:.2f} hours, cost {found.cost:.2f}",
        ]
    )


@dataclass(frozen=True, kw_only=True)
class _ShardCost:
    """Parameters, and the arithmetic and memory of the gradient of one virtual shard."""

    frozen: int
    trained: int
    flops: float
    activation_bytes: int


def _shard_cost(config: TrainConfig) -> _ShardCost:
    if config.objective not in ESTIMATED:
        raise ValueError(f"no estimate for objective {config.objective!r}; it is made for {', '.join(ESTIMATED)}")
    network, call = _network(config)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with Meter() as meter:
        flat_gradient(call().square().mean(), trained, [parameter.shape for parameter in trained])
    count = sum(parameter.numel() for parameter in trained)
    # The gradient itself is counted with the state.
    return _ShardCost(
        frozen=count_parameters(network) - count,
        trained=count,
        flops=float(meter.flops),
        activation_bytes=meter.peak - 4 * count,
    )


def _network(config: TrainConfig) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Build a run's network on the meta device; returns it with a forward pass of one virtual shard."""
    family: Any = UNet2DConditionModel if "cross_attention_dim" in config.model.unet else UNet2DModel
    stages: dict[str, Any] = dict(config.model.stages.items())
    stage = stages[config.objective] if config.objective in stages else next(iter(stages.values()))
    clips, data = config.batch_size // config.virtual_shards, config.data
    factor = 2 ** (len(config.model.autoencoder["block_out_channels"]) - 1)
    channels = int(config.model.autoencoder["latent_channels"])
    shape = (clips, data.num_frames, channels, data.height // factor, data.width // factor)
    network = nn.Module()
    with torch.device("meta"):
        network.unet = unet = family(**config.model.unet).requires_grad_(config.train_all)
        network.video = video = VideoUNet(unet, stage.temporal)
        if config.lora_rank is not None:
            network.low_rank = LowRank(unet, config.lora_rank)
    noisy, timestep, conditions = meta_inputs(
        video, shape=shape, num_tokens=77 if config.model.condition == "text" else 1
    )
    if config.recompute:
        recompute_transformers(unet)
    if config.objective != "image":
        return network, lambda: video(noisy, timestep, conditions)
    unet.requires_grad_(config.lora_rank is None)
    del network.video
    kwargs = {} if conditions.text is None else {"encoder_hidden_states": conditions.text}
    images = rearrange(noisy, "b t z h w -> (b t) z h w")
    return network, lambda: unet(images, timestep, return_dict=False, **kwargs)[0]


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Arithmetic done while it runs, and the most bytes that the tensors made meanwhile take at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.now = self.peak = 0
        self._known: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, is_new=True)
        self.peak = max(self.peak, self.now)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _see(self, tree: object, *, is_new: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._known:
                size = storage.nbytes() if is_new else 0
                self.now += size
                self._known[key] = size, weakref.ref(storage, partial(self._free, key))

    def _free(self, key: int, _: object) -> None:
        self.now -= self._known.pop(key)[0]


def _state_bytes(shard: _ShardCost, config: TrainConfig, stage: int, workers: int) -> int:
    weights = average = 4 * shard.trained
    moments = 8 * shard.trained
    frozen = shard.frozen * (2 if config.precision == "bf16" else 4)
    # One sum for each level of a worker's part of the tree, and the gradient that is being added.
    gradients = 4 * shard.trained * (1 + ceil(log2(ceil(config.virtual_shards / workers)) + (workers > 1)))
    if stage >= 1:
        # ZeRO's flat fp32 partition stands beside the model's own weights.
        moments = (moments + weights) // workers
    if stage == 3:
        weights, frozen = weights // workers, frozen // workers
    return frozen + weights + average + gradients + moments
