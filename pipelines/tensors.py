"""Axes, value ranges and the tensor types of the public functions.

Axes: b clips, t frames, c colours (3), H W pixels, z latent channels, h w latent size, k context channels,
l text tokens, d token width. Clips are always `b t ...`; a network that knows only images sees `(b t) ...`.
"""

from jaxtyping import Float, UInt8
from torch import Tensor

Frames = Float[Tensor, "b t 3 H W"]
"""Decoded frames in [-1, 1]."""

Latents = Float[Tensor, "b t z h w"]
"""Latent frames, already shifted and scaled to about unit variance; pixel-space models use z = 3 colours."""

Moments = Float[Tensor, "b t zz h w"]
"""Mean and log-variance of the autoencoder's posterior, unscaled, concatenated over channels (zz = 2 z)."""

Context = Float[Tensor, "b t k h w"]
"""Known frames for a denoiser: masked latents and their mask (k = z + 1), or low-resolution frames (k = 3)."""

Tokens = Float[Tensor, "b l d"]
"""Cross-attention tokens: text, scene or boxes."""

Timestep = Float[Tensor, " b"]
"""Noise level of each clip, as the network expects it: an index in [0, num_timesteps) or 0.25 ln sigma (EDM)."""

VideoFrames = UInt8[Tensor, "t H W 3"]
"""Frames at the edges (files, HTTP): RGB, 0 to 255."""
