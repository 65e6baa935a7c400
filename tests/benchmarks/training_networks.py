"""What the costs of training are measured with: a video network, its batches, stock DeepSpeed."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.models.conditioning import Conditions
from pipelines.models.video_unet import VideoUNet
from training.config import OptimizerConfig, TrainConfig
from training.task import freeze

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of this process in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


class Clips:
    """A batch of latents for `Video`."""

    def __init__(self, count: int, num_frames: int, size: tuple[int, int]) -> None:
        self.latents = torch.randn(count, num_frames, 4, *size)

    def magnitude(self) -> Tensor:
        return self.latents.abs().flatten(1).amax(1)

    def masked(self, keep: Tensor) -> "Clips":
        return self


class Video(nn.Module):
    """A video network with frozen image layers: clips to one loss each."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        unet = UNet2DConditionModel(**config.model.unet)
        freeze([unet], config)
        self.video = VideoUNet(unet, config.model.stages["keyframes"].temporal)

    def forward(self, batch: Clips) -> Tensor:
        clips = len(batch.latents)
        text = batch.latents.new_zeros(clips, 1, self.video.unet.config["cross_attention_dim"])
        prediction = self.video(batch.latents, torch.full((clips,), 500.0), Conditions(text=text))
        return (prediction - batch.latents).square().flatten(1).mean(1)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def one_worker() -> None:
    """Make this process the only worker."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    from torch.distributed import init_process_group, is_initialized  # noqa: PLC0415

    if not is_initialized():
        init_process_group("gloo", init_method=f"file://{os.environ['GROUP']}", rank=0, world_size=1)


def stock_engine(network: nn.Module, *, bf16: bool) -> Any:
    """What DeepSpeed's documentation says: ZeRO-2, an optimizer over what is trained."""
    one_worker()
    import deepspeed  # noqa: PLC0415

    # Compiling this operator takes minutes on a fresh machine; it only serves inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(trained(network).values(), lr=1e-4)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config, dist_init_required=False)
    return engine
