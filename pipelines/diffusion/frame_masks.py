"""Which frames a model is given, and the context tensor that tells it.

c_S = (m_S z, m_S): the known latents with zeros elsewhere, and a channel that is 1 on known frames, so k = z + 1
(Blattmann et al. 2023, sections 3.2 and 3.3). With no frame known it is all zeros: the unconditional side of guidance.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from pipelines.diffusion.noise import NoiseSchedule
from pipelines.tensors import Context, Latents, Timestep

Mask = Float[Tensor, "b t"]
"""1 on frames that are given, 0 on frames to be made."""

# The paper does not publish p_S. Two given frames serve every window of a roll-out but the first, one serves the first,
# and none is what context guidance compares with.
NUM_CONTEXT_PROBABILITIES = (0.2, 0.4, 0.4)


def prediction_mask(num_context: Int[Tensor, " b"], num_frames: int) -> Mask:
    """m_S: the first S frames of each clip are given.

    Args:
        num_context: S of each clip.
        num_frames: frames of the clip, T.

    Raises:
        ValueError: If a clip has nothing left to predict.
    """
    if bool((num_context < 0).any()) or bool((num_context >= num_frames).any()):
        raise ValueError(f"num_context={num_context.tolist()} for {num_frames} frames; use 0 to {num_frames - 1}")
    frame = torch.arange(num_frames, device=num_context.device)
    return (rearrange(frame, "t -> 1 t") < rearrange(num_context, "b -> b 1")).float()


def interpolation_mask(b: int, num_frames: int) -> Mask:
    """Both ends of each window are given, the frames between them are made.

    Raises:
        ValueError: If there is nothing between the ends.
    """
    if num_frames < 3:
        raise ValueError(f"num_frames={num_frames} leaves nothing between two key frames; use 3 or more (the paper: 5)")
    mask = torch.zeros(b, num_frames)
    mask[:, [0, -1]] = 1.0
    return mask


def draw_num_context(
    generators: Sequence[torch.Generator], probabilities: Sequence[float] = NUM_CONTEXT_PROBABILITIES
) -> Int[Tensor, " b"]:
    """Draw S ~ Categorical(p_S) for each clip from its own generator (paper, section 3.2).

    Raises:
        ValueError: If `probabilities` is no distribution.
    """
    if not probabilities or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise ValueError(f"probabilities={tuple(probabilities)}; use non-negative numbers that sum to 1")
    weights = torch.tensor(probabilities, dtype=torch.float64)
    return torch.cat([torch.multinomial(weights, 1, generator=own) for own in generators])


def drop_context(mask: Mask, probability: float, generators: Sequence[torch.Generator]) -> Mask:
    """Take all given frames from some clips: an interpolation model has no S = 0 to learn its unconditional side from.

    Args:
        mask: frames given.
        probability: of dropping, per clip.
        generators: one per clip.
    """
    kept = torch.stack([(torch.rand((), generator=own) >= probability).float() for own in generators])
    return mask * rearrange(kept, "b -> b 1").to(mask)


def masked_context(latents: Latents, mask: Mask) -> Context:
    """c_S = (m_S z, m_S); what stands in frames that are not given does not matter, even if it is not finite."""
    channel = rearrange(mask.to(latents), "b t -> b t 1 1 1")
    known = torch.where(channel > 0, latents, 0.0)
    _, _, _, h, w = latents.shape
    return torch.cat([known, repeat(channel, "b t 1 1 1 -> b t 1 h w", h=h, w=w)], dim=2)


def noisy_context(latents: Latents, mask: Mask, level: Timestep, noise: Latents, schedule: NoiseSchedule) -> Context:
    """c_S with noise of a known level on the given frames, against drift when a model is fed its own output.

    The paper adds none in prediction; the model must then be told `level` as well. In sampling, a small constant level.

    Args:
        latents: clean latents.
        mask: frames given.
        level: timestep of `schedule` whose noise is added, per clip.
        noise: unit noise.
        schedule: of the augmentation, usually the model's own (paper, appendix H.2).
    """
    return masked_context(schedule.add_noise(latents, level, noise), mask)


def draw_levels(max_level: int, generators: Sequence[torch.Generator]) -> Timestep:
    """Draw the noise level of context or low-resolution frames, uniform on 0 ... max_level (the paper: 250), per clip.

    Source: Blattmann et al. 2023, appendices H.1 and H.2; Ho et al. 2022 (arXiv 2106.15282), section 4.
    """
    draws = [torch.randint(max_level + 1, (1,), generator=own) for own in generators]
    return torch.cat(draws).float()
