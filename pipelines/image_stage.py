"""The image model by itself: what a video model is with mix = 1. It makes the first frame that prediction animates."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from pipelines.config import StageConfig
from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.models.checks import UNet
from pipelines.models.conditioning import Conditions
from pipelines.models.video_unet import with_native_context
from pipelines.tensors import Latents, Timestep


@dataclass(frozen=True)
class ImageStage:
    """An image model of a checkpoint, ready to sample clips whose frames do not know of each other."""

    unet: UNet
    config: StageConfig
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype

    def denoise(self, conditions: Conditions) -> Denoise:
        """Bind conditions; the network computes in its own type, whatever the sampler's."""

        def call(noisy: Latents, timestep: Timestep) -> Latents:
            return denoise_frames(self.unet, noisy.to(self.dtype), timestep, conditions)

        return call


def denoise_frames(unet: UNet, noisy: Latents, timestep: Timestep, conditions: Conditions) -> Latents:
    """Run an image U-Net on every frame by itself; a network with more channels than latents takes the context too."""
    num_frames = noisy.shape[1]
    kwargs: dict[str, Any] = {}
    if conditions.text is not None:
        kwargs["encoder_hidden_states"] = conditions.text.to(noisy.dtype).repeat_interleave(num_frames, dim=0)
    if conditions.class_labels is not None:
        kwargs["class_labels"] = conditions.class_labels.repeat_interleave(num_frames, dim=0)
    images = rearrange(with_native_context(unet, noisy, conditions.context), "b t z h w -> (b t) z h w")
    (prediction,) = unet(images, timestep.repeat_interleave(num_frames), return_dict=False, **kwargs)
    return rearrange(prediction, "(b t) z h w -> b t z h w", t=num_frames)
