"""The order of samples, and reading ahead."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards import ClipRef
from training.data import Order, Reader, Sample


def bucket(name: str, size: int) -> dict[ClipRef, str]:
    return {ClipRef(i // 7, i % 3, i): f"{name}{i}" for i in range(size)}


class Numbers:
    """A source whose items are the numbers in the references; can be told to block."""

    digest = "numbers"

    def __init__(self, sizes: Sequence[int]) -> None:
        self.buckets = [bucket("abc"[i], size) for i, size in enumerate(sizes)]
        self.gate = threading.Event()
        self.gate.set()

    def read(self, refs: Sequence[ClipRef]) -> list[int]:
        assert self.gate.wait(10)
        return [ref.row for ref in refs]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), batch_size=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_order_visits_each_bucket_in_whole_epochs(sizes: list[int], batch_size: int, seed: int) -> None:
    order = Order([bucket("abc"[i], size) for i, size in enumerate(sizes)], batch_size=batch_size, seed=seed)
    visits: dict[str, list[tuple[str, int]]] = {}
    for step in range(60):
        batch = order.batch(step)
        assert len(batch) == batch_size
        assert len({sample.id[0] for sample in batch}) == 1, "a batch mixes buckets"
        visits.setdefault(batch[0].id[0], []).extend((sample.id, sample.epoch) for sample in batch)
    for name, seen in visits.items():
        size = sizes["abc".index(name)]
        for epoch in range(len(seen) // size):
            part = seen[epoch * size : (epoch + 1) * size]
            assert {e for _, e in part} == {epoch}
            assert len({sample for sample, _ in part}) == size, "a sample is repeated or skipped within an epoch"


def test_order_is_a_function_of_seed_and_step() -> None:
    buckets = [bucket("a", 23), bucket("b", 10)]
    first, second, other = (Order(buckets, batch_size=4, seed=seed) for seed in (5, 5, 6))
    backwards = [first.batch(step) for step in reversed(range(20))][::-1]
    assert backwards == [second.batch(step) for step in range(20)]
    assert backwards != [other.batch(step) for step in range(20)]


def test_order_visits_buckets_by_their_size() -> None:
    order = Order([bucket("a", 40), bucket("b", 10)], batch_size=5, seed=0)
    visits = Counter(order.batch(step)[0].id[0] for step in range(100))
    assert visits == {"a": 80, "b": 20}


def test_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        Order([{}], batch_size=4, seed=0)


def test_workers_together_read_the_global_batch() -> None:
    source = Numbers([31])
    order = Order(source.buckets, batch_size=8, seed=1)

    def pairs(samples: Sequence[Sample], items: Sequence[int]) -> list[tuple[str, int]]:
        return [(sample.id, item) for sample, item in zip(samples, items, strict=True)]

    readers = [
        Reader(source, order, pairs, shards=shards, num_shards=4, start=3) for shards in (range(0, 3), range(3, 4))
    ]
    for expected_step in (3, 4, 5):
        parts: dict[int, list[tuple[str, int]]] = {}
        for reader in readers:
            step, part = next(reader)
            assert step == expected_step
            parts |= part
        batch = order.batch(expected_step)
        assert [pair for shard in range(4) for pair in parts[shard]] == [(s.id, s.ref.row) for s in batch]
    for reader in readers:
        reader.close()


def test_reader_reads_ahead_of_the_loop() -> None:
    source = Numbers([31])
    order = Order(source.buckets, batch_size=2, seed=1)
    reader: Reader[int, Any] = Reader(
        source, order, lambda samples, items: items, shards=range(1), num_shards=1, ahead=3
    )
    next(reader)
    source.gate.clear()
    waiting = threading.Thread(target=lambda: [next(reader) for _ in range(6)])
    waiting.start()
    source.gate.set()
    waiting.join(10)
    assert not waiting.is_alive()
    reader.close()


def test_reader_hands_on_the_error_of_a_read() -> None:
    def fail(samples: object, items: object) -> None:
        raise ValueError("shard 7 is damaged")

    source = Numbers([5])
    reader: Reader[int, Any] = Reader(
        source, Order(source.buckets, batch_size=1, seed=0), fail, shards=range(1), num_shards=1
    )
    with pytest.raises(ValueError, match="shard 7"):
        next(reader)
    reader.close()
