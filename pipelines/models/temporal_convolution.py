"""The temporal convolution block and the path by which known frames enter it.

Source: Blattmann et al. 2023, sections 3.1 and 3.2, appendices D and F.1.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.lean import norm_silu_convolve
from pipelines.models.temporal import Clip, Mix, zeroed

FEW_CHANNELS = 128
"""With fewer channels the CPU convolves volumes three to nine times slower than images."""


class TimeConv(nn.Conv3d):
    """Convolution over three frames, in the form that is fast on the device; the number of frames stays the same.

    (3, 1, 1) is the two-dimensional convolution (3, 1) over (t, h w): two to three times faster on CPU.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        spatial_kernel: side of the kernel in space.
        stride: of the kernel in space.
        bias: whether a bias is added.
    """

    def __init__(
        self, in_channels: int, out_channels: int, spatial_kernel: int, *, stride: int = 1, bias: bool = True
    ) -> None:
        margin = (spatial_kernel - 1) // 2
        kernel, padding = (3, spatial_kernel, spatial_kernel), (1, margin, margin)
        super().__init__(in_channels, out_channels, kernel, (1, stride, stride), padding, bias=bias)

    def forward(self, hidden: Float[Tensor, "b c t H W"]) -> Float[Tensor, "b o t h w"]:
        """Convolve."""
        if self.kernel_size[1] == 1:
            flat = rearrange(hidden, "b c t h w -> b c t (h w)")
            flat = functional.conv2d(flat, self.weight.squeeze(-1), self.bias, padding=(1, 0))
            return rearrange(flat, "b c t (h w) -> b c t h w", h=hidden.shape[3])
        if hidden.device.type == "cpu" and self.in_channels < FEW_CHANNELS:
            return self._sum_of_images(hidden)
        return super().forward(hidden)

    def after_norm(self, hidden: Float[Tensor, "b c t H W"], norm: nn.GroupNorm) -> Float[Tensor, "b o t h w"]:
        """Apply GroupNorm and SiLU, then convolve."""
        if self.kernel_size[1] > 1:
            # PyTorch's GroupNorm crashes in backward on channels-last input that needs no gradient.
            return self(functional.silu(norm(hidden.contiguous())))
        flat = rearrange(hidden, "b c t h w -> b c t (h w)")
        flat = norm_silu_convolve(flat, norm, self.weight.squeeze(-1), self.bias, (1, 0))
        return rearrange(flat, "b c t (h w) -> b c t h w", h=hidden.shape[3])

    def _sum_of_images(self, hidden: Tensor) -> Tensor:
        """Convolve each frame with the three slices of the kernel at once, then add what neighbours contribute."""
        images = rearrange(hidden, "b c t h w -> (b t) c h w")
        slices = rearrange(self.weight, "o c k u v -> (k o) c u v")
        images = functional.conv2d(images, slices, stride=self.stride[1:], padding=self.padding[1:])
        before, same, after = rearrange(images, "(b t) (k o) h w -> k b o t h w", k=3, t=hidden.shape[2])
        same = same if self.bias is None else same + rearrange(self.bias, "o -> o 1 1 1")
        no_frame = (0, 0, 0, 0)
        return (
            same
            + functional.pad(before[:, :, :-1], (*no_frame, 1, 0))
            + functional.pad(after[:, :, 1:], (*no_frame, 0, 1))
        )


class ContextPath(nn.Module):
    """Bring known frames to the resolution and width of one temporal convolution.

    Every temporal convolution has a path of its own. The paper leaves that open; private paths explain the parameter
    count it gives for the upsampler (449 M; ours has 448.8 M), one stack shared by a resolution does not.
    Source: Blattmann et al. 2023, section 3.2 and appendix F.1.
    """

    def __init__(self, context_channels: int, width: int, channels: int, *, halvings: int) -> None:
        super().__init__()
        self.downsample = nn.ModuleList([nn.Conv2d(context_channels, width, 3, padding=1)])
        self.downsample.extend(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(halvings))
        self.proj = nn.Conv2d(width, width, 1)
        # The paper concatenates the context to the convolution's input. A convolution of concatenated channels is the
        # sum of two; apart, the new one starts at zero and the other loads from a model without context.
        self.conv = zeroed(TimeConv(width, channels, 1, bias=False))

    def forward(self, context: Float[Tensor, "b t k H W"]) -> Float[Tensor, "b c t h w"]:
        """Return what the context adds to the output of the temporal convolution."""
        hidden = rearrange(context, "b t k h w -> (b t) k h w")
        for conv in self.downsample:
            hidden = functional.silu(conv(hidden))
        return self.conv(rearrange(self.proj(hidden), "(b t) c h w -> b c t h w", t=context.shape[1]))


class TemporalConvolution(nn.Module):
    """Residual block of two convolutions over time, after a spatial residual block.

    Args:
        channels: channels of the spatial block's output.
        groups: groups of both norms.
        eps: of both norms.
        num_mixes: frames of a per-frame mix; None for a scalar one.
        spatial_kernel: 1 in diffusion networks (table 6), 3 in the decoder (table 8).
        embedding_dim: width of the noise level's embedding; None in decoders.
        context: path of the known frames, if there are any.
    """

    def __init__(
        self,
        *,
        channels: int,
        groups: int,
        eps: float,
        num_mixes: int | None = None,
        spatial_kernel: Literal[1, 3] = 1,
        embedding_dim: int | None = None,
        context: ContextPath | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = TimeConv(channels, channels, spatial_kernel)
        self.embedding = None if embedding_dim is None else nn.Linear(embedding_dim, channels)
        self.context = context
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = zeroed(TimeConv(channels, channels, spatial_kernel))
        self.mix = Mix(num_mixes)

    def forward(
        self, spatial: Float[Tensor, "bt c h w"], clip: Clip, embedding: Float[Tensor, "bt e"] | None = None
    ) -> Float[Tensor, "bt c h w"]:
        """Return mix * spatial + (1 - mix) * (spatial + residual) = spatial + (1 - mix) * residual."""
        volume = rearrange(spatial, "(b t) c h w -> b c t h w", t=clip.num_frames)
        hidden = self.conv1.after_norm(volume, self.norm1)
        if self.embedding is not None and embedding is not None:
            embedded = self.embedding(functional.silu(_per_frame(embedding, clip)))
            hidden = hidden + rearrange(embedded, "b t c -> b c t 1 1")
        if self.context is not None:
            hidden = hidden + self.context(clip.context)
        hidden = self.conv2.after_norm(hidden, self.norm2)
        weight = rearrange(self.mix.temporal_weight(clip), "b t -> b 1 t 1 1")
        blended = torch.addcmul(volume, hidden.to(volume.dtype), weight.to(volume.dtype))
        return rearrange(blended, "b c t h w -> (b t) c h w")


def _per_frame(embedding: Tensor, clip: Clip) -> Tensor:
    """Add the embedding of the context's noise level to that of the latents'."""
    per_frame = rearrange(embedding, "(b t) e -> b t e", t=clip.num_frames)
    return per_frame if clip.level is None else per_frame + clip.level[:, None]
