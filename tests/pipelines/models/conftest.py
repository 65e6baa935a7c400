"""Small networks with random weights and pairwise different sizes."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from tests.pipelines.models.peak_memory import PeakMemory

TEXT_DIM = 24

MakeUNet = Callable[..., UNet2DConditionModel]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_unet() -> MakeUNet:
    def make(**changes: object) -> UNet2DConditionModel:
        config: dict[str, object] = {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": TEXT_DIM,
            "attention_head_dim": 4,
            "layers_per_block": 1,
        }
        return UNet2DConditionModel(**(config | changes))

    return make


@pytest.fixture
def make_pixel_unet() -> Callable[[], UNet2DModel]:
    def make() -> UNet2DModel:
        return UNet2DModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=16,
        )

    return make


@pytest.fixture
def make_video_unet(make_unet: MakeUNet) -> Callable[..., VideoUNet]:
    """Build a video network; `trained` gives its temporal layers weights that do something."""

    def make(trained: bool = False, unet: UNet2DConditionModel | None = None, **changes: object) -> VideoUNet:
        config = TemporalConfig(**({"mix": "scalar", "cross_attention_dim": TEXT_DIM} | changes))
        video_unet = VideoUNet(unet or make_unet(), config)
        if trained:
            randomise(video_unet)
        return video_unet

    return make


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    noisy, text = torch.randn(2, 3, 4, 10, 12), torch.randn(2, 7, TEXT_DIM)
    return noisy, torch.tensor([3.0, 500.0]), Conditions(text=text)


@torch.no_grad()
def randomise(video_unet: VideoUNet) -> None:
    for name, parameter in video_unet.temporal.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        std = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.copy_(is_scale + std * torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 1.0))


@pytest.fixture
def peak_memory() -> type[PeakMemory]:
    return PeakMemory
