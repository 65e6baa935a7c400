"""Learning rates."""

import pytest

from training.config import OptimizerConfig
from training.schedule import learning_rate


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1.0, 1.0, 1 - 0.8 * 0.146447, 0.6, 0.2 + 0.8 * 0.146447]),
    ],
)
def test_rate_follows_warmup_and_decay(decay: str, rates: list[float]) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay=decay, final_share=0.2)  # type: ignore[arg-type]
    assert [learning_rate(config, step, 6) for step in range(6)] == pytest.approx(rates, abs=1e-5)
