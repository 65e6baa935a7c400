"""Inception score: whether a classifier is sure of every sample and finds many classes among them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation of the score over splits of the samples."""

    mean: float
    std: float


def inception_score(probabilities: Float[Tensor, "n classes"], num_splits: int = 10) -> InceptionScore:
    """exp of the mean KL divergence of p(class | sample) from p(class), per split; 1 to the number of classes.

    Args:
        probabilities: one distribution over classes per sample, in an order that has nothing to do with the classes.
        num_splits: parts, of equal size up to one sample, that are scored on their own.

    Raises:
        ValueError: If rows are no distributions, or there are fewer samples than splits.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.
    """
    if not 1 <= num_splits <= len(probabilities):
        raise ValueError(f"num_splits={num_splits} for {len(probabilities)} samples; use 1 to {len(probabilities)}")
    exact = probabilities.detach().double()
    if bool((exact < 0).any()) or not torch.allclose(exact.sum(dim=1), torch.ones(len(exact)).to(exact), atol=1e-4):
        raise ValueError("probabilities have negative entries or rows that do not sum to 1; apply a softmax to logits")
    scores = torch.stack([_score(part) for part in exact.tensor_split(num_splits)])
    return InceptionScore(mean=scores.mean().item(), std=scores.std(correction=0).item())


def _score(probabilities: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    marginal = probabilities.mean(dim=0, keepdim=True)
    # xlogy makes 0 log 0 = 0; where the marginal is 0, so is every probability.
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return divergence.sum(dim=1).mean().exp()
