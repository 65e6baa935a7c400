import math

import pytest
import torch
from scipy.stats import entropy

from pipelines.metrics.inception_score import inception_score
from pipelines.randomness import generator


def probabilities(n: int, classes: int) -> torch.Tensor:
    return torch.softmax(2 * torch.randn((n, classes), generator=generator(n, classes)), dim=1)


@pytest.mark.parametrize(("n", "classes", "num_splits"), [(40, 7, 1), (100, 5, 10), (23, 4, 3)])
def test_score_equals_a_loop_with_scipy(n, classes, num_splits):
    rows = probabilities(n, classes)
    scores = []
    for part in torch.tensor_split(rows.double(), num_splits):
        marginal = part.mean(0).numpy()
        scores.append(math.exp(sum(entropy(row.numpy(), marginal) for row in part) / len(part)))
    score = inception_score(rows, num_splits)
    mean = sum(scores) / num_splits
    assert score.mean == pytest.approx(mean, rel=1e-6)
    assert score.std == pytest.approx(math.sqrt(sum((each - mean) ** 2 for each in scores) / num_splits), abs=1e-6)


def test_sure_and_diverse_samples_score_the_number_of_classes():
    assert inception_score(torch.eye(6), num_splits=1).mean == pytest.approx(6.0)


def test_classes_that_never_occur_do_not_count():
    assert inception_score(torch.eye(6)[:4], num_splits=1).mean == pytest.approx(4.0)


def test_samples_that_are_all_alike_score_one():
    assert inception_score(probabilities(1, 8).expand(20, 8), num_splits=2).mean == pytest.approx(1.0)


def test_unusable_probabilities_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.randn(20, 3, generator=generator("logits")), num_splits=2)
    with pytest.raises(ValueError, match="use 1 to 5"):
        inception_score(probabilities(5, 3), num_splits=6)
