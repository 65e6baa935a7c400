"""What a run will take, before it: parameters, memory of a worker, arithmetic of a step, hours and cost.

Networks are built on the meta device: nothing is allocated. Memory is that of weights, gradients and optimizer state by
ZeRO stage; activations, which depend on the batch of a virtual shard, are not in it.
"""

from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.models.cost import count_parameters, video_unet_cost
from pipelines.models.video_unet import VideoUNet
from training.config import TrainConfig

FACTOR = 8
GIB = 2**30
ESTIMATED = ("image", "keyframes", "prediction", "interpolation")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Figures of a run.

    Attributes:
        frozen_parameters, trained_parameters: of the network.
        forward_flops: arithmetic of a forward pass of one sample.
        step_flops: of a whole step, over all workers.
        state_bytes: weights, gradient and optimizer state on a worker.
        hours: of the whole run.
        cost: of the whole run, in the currency of the price.
    """

    frozen_parameters: int
    trained_parameters: int
    forward_flops: float
    step_flops: float
    state_bytes: dict[int, int]
    hours: float
    cost: float


def estimate(config: TrainConfig, *, workers: int, flops_per_s: float, price_per_hour: float) -> Estimate:
    """Estimate a run of the image model or of a video model.

    Args:
        config: the run.
        workers: how many.
        flops_per_s: arithmetic that one worker does in a second, as reached, not as advertised.
        price_per_hour: of one worker.

    Raises:
        ValueError: for objectives whose networks are not U-Nets on latents.
    """
    if config.objective not in ESTIMATED:
        raise ValueError(f"no estimate for objective {config.objective!r}; it is made for models on latents")
    frozen, trained, forward = _network_cost(config)
    # Forward, input gradients (which pass through frozen layers too), and weight gradients of the trained share.
    share = trained / (frozen + trained)
    passes = 2 + share + (1 if config.recompute else 0) * 0.1
    step_flops = forward * config.batch_size * passes
    seconds = step_flops / (workers * flops_per_s)
    hours = seconds * config.steps / 3600
    frozen_bytes = frozen * (2 if config.precision == "bf16" else 4)
    return Estimate(
        frozen_parameters=frozen,
        trained_parameters=trained,
        forward_flops=forward,
        step_flops=step_flops,
        state_bytes={stage: _state_bytes(frozen_bytes, trained, stage, workers) for stage in range(4)},
        hours=hours,
        cost=hours * workers * price_per_hour,
    )


def report(config: TrainConfig, found: Estimate, workers: int) -> str:
    """Lay the figures out for a reader."""
    memory = "  ".join(f"ZeRO-{stage} {size / GIB:.2f}" for stage, size in found.state_bytes.items())
    trained, frozen = found.trained_parameters / 1e6, found.frozen_parameters / 1e6
    return "\n".join(
        [
            f"{config.name}: {config.steps} steps of {config.batch_size} samples on {workers} worker(s)",
            f"parameters   {trained:.2f} M trained, {frozen:.2f} M frozen",
            f"state, GiB   {memory}   (weights, gradient, optimizer; activations come on top)",
            f"arithmetic   {found.forward_flops / 1e9:.2f} GFLOP a forward pass of a sample, "
            f"{found.step_flops / 1e12:.3f} TFLOP a step",
            f"whole run    {found.hours:.2f} hours, cost {found.cost:.2f}",
        ]
    )


def _network_cost(config: TrainConfig) -> tuple[int, int, float]:
    family = UNet2DConditionModel if "cross_attention_dim" in config.model.unet else UNet2DModel
    stages = dict(config.model.stages.items())
    stage = stages[config.objective] if config.objective in stages else next(iter(stages.values()))
    frames = config.data.num_frames
    shape = (1, frames, 4, config.data.height // FACTOR, config.data.width // FACTOR)
    with torch.device("meta"):
        unet = family(**config.model.unet)
        video = VideoUNet(unet, stage.temporal)
    if config.objective == "image":
        # The image model alone costs a clip of one frame without the temporal layers' share.
        cost = video_unet_cost(video, shape=shape, num_tokens=1)
        parameters = count_parameters(unet)
        return 0, parameters, cost.flops * parameters / (parameters + cost.temporal_parameters)
    cost = video_unet_cost(video, shape=shape, num_tokens=77 if config.model.condition == "text" else 1)
    return cost.spatial_parameters, cost.temporal_parameters, float(cost.flops)


def _state_bytes(frozen_bytes: int, trained: int, stage: int, workers: int) -> int:
    weights, gradient, moments = 4 * trained, 4 * trained, 8 * trained
    if stage >= 1:
        # ZeRO's flat fp32 partition stands beside the model's own weights.
        moments = (moments + weights) // workers
    if stage == 3:
        weights, frozen_bytes = weights // workers, frozen_bytes // workers
    return frozen_bytes + weights + gradient + moments
