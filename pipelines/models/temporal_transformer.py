"""The temporal transformer: attention over the frames of a clip, and from all its positions to its tokens.

Source: Blattmann et al. 2023, section 3.1, appendix D and table 6.
"""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.models import lean
from pipelines.models.attention import attend_over_frames, attend_to_tokens
from pipelines.models.temporal import Clip, Mix, TemporalConfig, zeroed


class FeedForward(nn.Module):
    """LayerNorm, GEGLU feed-forward of four times the width, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = zeroed(nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n c"]:
        """Add the feed-forward network's output to the tokens."""
        return lean.feed_forward(tokens, self.norm, self.proj_in, self.proj_out)


class FrameAttention(nn.Module):
    """LayerNorm, self-attention over the frames at each position, residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.proj_out = zeroed(nn.Linear(width, width))

    def forward(self, tokens: Float[Tensor, "b t n c"], bias: Float[Tensor, "t t"] | None) -> Float[Tensor, "b t n c"]:
        """Let each position look at itself in the other frames."""
        query, key, value = lean.norm_project(tokens, self.norm, self.query, self.key, self.value)
        return tokens + self.proj_out(attend_over_frames(query, key, value, self.heads, bias))


class TokenAttention(nn.Module):
    """LayerNorm, cross-attention to the clip's tokens, residual."""

    def __init__(self, width: int, heads: int, token_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(token_dim, width, bias=False)
        self.value = nn.Linear(token_dim, width, bias=False)
        self.proj_out = zeroed(nn.Linear(width, width))

    def forward(self, tokens: Float[Tensor, "b t n c"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b t n c"]:
        """Let all positions of a clip look at the clip's one set of tokens."""
        if context.shape[1] == 1:
            # All attention goes to the one token, whatever the query.
            return tokens + self.proj_out(self.value(context))[:, None]
        (query,) = lean.norm_project(tokens, self.norm, self.query)
        return tokens + self.proj_out(attend_to_tokens(query, self.key(context), self.value(context), self.heads))


class TemporalBlock(nn.Module):
    """Input projection, attention over frames, attention to tokens, feed-forward (paper 1.4: T6, appendix D)."""

    def __init__(self, config: TemporalConfig, *, width: int, heads: int) -> None:
        super().__init__()
        self.input = FeedForward(width)
        self.frames = FrameAttention(width, heads)
        dim = config.cross_attention_dim
        self.tokens = None if dim is None else TokenAttention(width, heads, dim)
        self.output = FeedForward(width)

    def forward(self, tokens: Float[Tensor, "b t n c"], clip: Clip) -> Float[Tensor, "b t n c"]:
        """Apply the four sub-layers, each with its residual."""
        tokens = self.frames(self.input(tokens), clip.attention_bias)
        if self.tokens is not None:
            tokens = self.tokens(tokens, clip.tokens)
        return self.output(tokens)


class TemporalTransformer(nn.Module):
    """The temporal blocks that follow the blocks of one spatial transformer, with one position MLP and one mix."""

    def __init__(self, config: TemporalConfig, *, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.position = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), zeroed(nn.Linear(4 * width, width)))
        self.blocks_per_layer = config.attention_blocks
        self.blocks = nn.ModuleList(
            TemporalBlock(config, width=width, heads=heads) for _ in range(depth * self.blocks_per_layer)
        )
        self.mix = Mix(config.num_frames)

    def forward(self, index: int, spatial: Float[Tensor, "bt n c"], clip: Clip) -> Float[Tensor, "bt n c"]:
        """Blend the output of spatial block `index` with the temporal blocks applied to it."""
        tokens = rearrange(spatial, "(b t) n c -> b t n c", t=clip.num_frames)
        hidden = tokens + self.embed_positions(tokens)
        for block in self.blocks[index * self.blocks_per_layer :][: self.blocks_per_layer]:
            hidden = block(hidden, clip)
        weight = rearrange(self.mix.temporal_weight(clip), "b t -> b t 1 1")
        return torch.lerp(tokens, hidden.to(tokens.dtype), weight.to(tokens.dtype)).flatten(0, 1)

    def embed_positions(self, tokens: Float[Tensor, "b t n c"]) -> Float[Tensor, "t 1 c"]:
        """Embed frame indices counted from the clip's start: sinusoids as for the noise level, then an MLP."""
        indices = torch.arange(tokens.shape[1], device=tokens.device)
        waves = get_timestep_embedding(indices, tokens.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.position(waves.to(tokens.dtype))[:, None]
