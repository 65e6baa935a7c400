"""The temporal convolution block and the path by which known frames enter it.

Source: Blattmann et al. 2023, sections 3.1 and 3.2, appendices D and F.1.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.temporal import Clip, Mix, TemporalConfig, zeroed


class ContextPath(nn.Module):
    """Bring known frames to the resolution and width of one temporal convolution.

    Every temporal convolution has a path of its own. The paper leaves that open; private paths explain the parameter
    count it gives for the upsampler (449 M; ours has 448.8 M), one stack shared by a resolution does not.
    Source: Blattmann et al. 2023, section 3.2 and appendix F.1.
    """

    def __init__(self, config: TemporalConfig, *, channels: int, level: int) -> None:
        super().__init__()
        width = config.context_width
        self.downsample = nn.ModuleList([nn.Conv2d(config.context_channels, width, 3, padding=1)])
        self.downsample.extend(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(level))
        self.proj = nn.Conv2d(width, width, 1)
        # The paper concatenates the context to the convolution's input. A convolution of concatenated channels is the
        # sum of two; apart, the new one starts at zero and the other loads from a model without context.
        self.conv = zeroed(nn.Conv2d(width, channels, (3, 1), padding=(1, 0), bias=False))

    def forward(self, context: Float[Tensor, "b t k h w"]) -> Float[Tensor, "b c t hw"]:
        """Return what the context adds to the output of the temporal convolution."""
        num_frames = context.shape[1]
        hidden = rearrange(context, "b t k h w -> (b t) k h w")
        for conv in self.downsample:
            hidden = functional.silu(conv(hidden))
        return self.conv(rearrange(self.proj(hidden), "(b t) c h w -> b c t (h w)", t=num_frames))


class TemporalConvolution(nn.Module):
    """Residual block of two (3, 1, 1) convolutions over time, after a spatial residual block.

    The kernel spans time alone, so it is the two-dimensional convolution (3, 1) over (t, h w): the same numbers,
    and on CPU two to three times the speed of the three-dimensional operator.
    """

    def __init__(
        self, config: TemporalConfig, *, channels: int, embedding_dim: int, groups: int, eps: float, level: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.embedding = nn.Linear(embedding_dim, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))
        self.mix = Mix(config.num_frames)
        self.context = ContextPath(config, channels=channels, level=level) if config.context_channels else None

    def forward(
        self, spatial: Float[Tensor, "bt c h w"], embedding: Float[Tensor, "bt e"], clip: Clip
    ) -> Float[Tensor, "bt c h w"]:
        """Return mix * spatial + (1 - mix) * (spatial + residual) = spatial + (1 - mix) * residual."""
        hidden = rearrange(spatial, "(b t) c h w -> b c t (h w)", t=clip.num_frames)
        hidden = self.conv1(functional.silu(self.norm1(hidden)))
        hidden = hidden + self.embed(embedding, clip)
        if self.context is not None:
            hidden = hidden + self.context(clip.context)
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        weight = rearrange(self.mix.temporal_weight(clip), "b t -> b t 1 1")
        residual = rearrange(hidden, "b c t n -> b t c n") * weight
        return spatial + residual.reshape(spatial.shape)

    def embed(self, embedding: Float[Tensor, "bt e"], clip: Clip) -> Float[Tensor, "b c t 1"]:
        """Project the embedding of the noise level, and of the context's noise level if there is one."""
        per_frame = rearrange(embedding, "(b t) e -> b t e", t=clip.num_frames)
        if clip.level is not None:
            per_frame = per_frame + clip.level[:, None]
        return rearrange(self.embedding(functional.silu(per_frame)), "b t c -> b c t 1")
