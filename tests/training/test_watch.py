"""Watching for slow workers."""

import numpy as np

from training.watch import StragglerWatch


def test_slow_worker_is_named_within_ten_steps() -> None:
    rng = np.random.default_rng(0)
    for slow in range(4):
        watch = StragglerWatch()
        named = [
            watch.slow_workers([(1.5 if rank == slow else 1.0) * rng.normal(1, 0.03) for rank in range(4)])
            for _ in range(10)
        ]
        assert named[-1] == [slow]


def test_even_workers_raise_no_alarm_in_a_thousand_steps() -> None:
    rng = np.random.default_rng(1)
    watch = StragglerWatch()
    assert not any(watch.slow_workers([float(s) for s in rng.gamma(100, 0.01, 4)]) for _ in range(1000))


def test_one_slow_step_is_no_straggler() -> None:
    watch = StragglerWatch()
    alarms = [watch.slow_workers([1.0, 9.0 if step == 12 else 1.0]) for step in range(30)]
    assert not any(alarms)
