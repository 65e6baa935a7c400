"""An autoencoder's decoder with temporal layers.

Source: Blattmann et al. 2023, section 3.1.1 and table 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from torch import Tensor, nn

from pipelines.models.latent_space import decode_images
from pipelines.models.lean_backbone import lighten
from pipelines.models.temporal import Clip, load_temporal, run_clip, running_clip, zeroed
from pipelines.models.temporal_convolution import TemporalConvolution, TimeConv
from pipelines.tensors import Frames, Latents


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What is inserted into an autoencoder's decoder.

    Args:
        spatial_kernel: 3 for kernels (3, 3, 3) as in the paper, 1 for (3, 1, 1) as in Stable Video Diffusion.
        convolves_frames: whether a last convolution over time works on the decoded colours.
        eps: of the temporal layers' norms.
    """

    spatial_kernel: Literal[1, 3] = 3
    convolves_frames: bool = False
    eps: float = 1e-5


class VideoDecoder(nn.Module):
    """An image autoencoder whose decoder has a temporal convolution behind every residual block.

    The layers hang on the decoder as forward hooks: called by itself the autoencoder is unchanged, and the encoder is
    never touched. A new VideoDecoder gives the image decoder's output for every frame.

    Args:
        vae: a diffusers autoencoder.
        config: what to insert.

    Raises:
        ValueError: the autoencoder is of another family.
    """

    def __init__(self, vae: nn.Module, config: DecoderConfig) -> None:
        super().__init__()
        if not isinstance(vae, AutoencoderKL | VQModel):
            raise ValueError(f"{type(vae).__name__} is no image autoencoder; load a diffusers AutoencoderKL or VQModel")
        self.vae = vae
        self.config = config
        self.temporal = nn.ModuleDict()
        for name, module in vae.decoder.named_modules():
            if isinstance(module, ResnetBlock2D):
                self._follow_resnet(name.replace(".", "_"), module)
        lighten(vae.decoder)
        if config.convolves_frames:
            channels = vae.decoder.conv_out.out_channels
            self.temporal["frames"] = frames = zeroed(TimeConv(channels, channels, 1))
            nn.init.dirac_(frames.weight)

    def forward(self, latents: Latents) -> Frames:
        """Decode all frames as one window.

        Args:
            latents: scaled latents.

        Returns:
            Frames, about in [-1, 1]; not clamped.
        """
        num_frames = latents.shape[1]
        with run_clip(self, Clip(num_frames=num_frames)):
            frames = decode_images(self.vae, latents)
        if not self.config.convolves_frames:
            return frames
        volume = self.temporal["frames"](rearrange(frames, "b t c H W -> b c t H W"))
        return rearrange(volume, "b c t H W -> b t c H W")

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that are not the autoencoder's."""
        return self.temporal.parameters()

    def temporal_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that are not the autoencoder's."""
        return self.temporal.state_dict()

    def load_temporal_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Load what `temporal_state_dict` returned.

        Raises:
            ValueError: the weights belong to a decoder of another shape.
        """
        load_temporal(self.temporal, weights)

    def freeze_spatial(self) -> None:
        """Stop training the autoencoder."""
        self.vae.requires_grad_(False)

    def last_weight(self) -> nn.Parameter:
        """Return the weight at which the adversarial loss is balanced against the reconstruction loss."""
        return self.vae.decoder.conv_out.weight

    def _follow_resnet(self, key: str, resnet: ResnetBlock2D) -> None:
        self.temporal[key] = TemporalConvolution(
            channels=resnet.out_channels,
            groups=resnet.norm2.num_groups,
            eps=self.config.eps,
            spatial_kernel=self.config.spatial_kernel,
        )
        resnet.register_forward_hook(partial(self._after_resnet, key))

    def _after_resnet(self, key: str, _: nn.Module, __: tuple[Tensor | None, ...], output: Tensor) -> Tensor:
        clip = running_clip(self)
        return output if clip is None else self.temporal[key](output, clip)
