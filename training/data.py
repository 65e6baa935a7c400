"""Which samples make up each global batch, and reading them ahead of time.

The order is a pure function of (seed, step): a run's place in the data is one integer, whatever the number of workers
and however often it restarts. No sample is skipped or repeated: each bucket is an endless row of shuffled epochs, and a
batch takes the next places of one bucket.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from pipelines.shard_order import epoch_order
from pipelines.shards import ClipRef

Item = TypeVar("Item")
Batch = TypeVar("Batch")


class Sample(NamedTuple):
    """One visit of one sample; its random numbers are keyed by id and epoch."""

    id: str
    epoch: int
    ref: ClipRef


class Source(Protocol[Item]):
    """Where samples come from."""

    @property
    def digest(self) -> str:
        """Identify the whole content."""

    @property
    def buckets(self) -> Sequence[Mapping[ClipRef, str]]:
        """Sample id by reference, for each group of samples of one shape."""

    def read(self, refs: Sequence[ClipRef]) -> list[Item]:
        """Read samples in the order asked for; called from several threads."""


class Order:
    """The sequence of global batches.

    Args:
        buckets: see Source.
        batch_size: samples of a global batch.
        seed: of the run.

    Raises:
        ValueError: if there is nothing to train on.
    """

    def __init__(self, buckets: Sequence[Mapping[ClipRef, str]], *, batch_size: int, seed: int) -> None:
        self._buckets = [bucket for bucket in buckets if bucket]
        if not self._buckets:
            raise ValueError(
                "the data holds no sample for this run; see the filters of the preset and the shards' card"
            )
        self._batch_size = batch_size
        self._seed = seed
        self._shares = [max(1, round(len(bucket) / batch_size)) for bucket in self._buckets]
        self._epoch = lru_cache(maxsize=2 * len(self._buckets))(self._shuffled)

    def batch(self, step: int) -> list[Sample]:
        """List the samples of one step; all are of one bucket."""
        bucket, turn = self._turn(step)
        size = len(self._buckets[bucket])
        places = range(turn * self._batch_size, (turn + 1) * self._batch_size)
        refs = [(self._epoch(bucket, place // size)[place % size], place // size) for place in places]
        return [Sample(self._buckets[bucket][ref], epoch, ref) for ref, epoch in refs]

    def epochs(self, step: int) -> float:
        """Passes over the data before `step`."""
        return step * self._batch_size / sum(len(bucket) for bucket in self._buckets)

    def _turn(self, step: int) -> tuple[int, int]:
        """Bucket of a step, and how many steps before it had the same bucket.

        Every cycle visits each bucket as often as it holds batches, in a shuffled order.
        """
        cycle, place = divmod(step, sum(self._shares))
        slots = np.repeat(np.arange(len(self._shares)), self._shares)
        slots = np.random.default_rng([self._seed, cycle, 1]).permutation(slots)
        bucket = int(slots[place])
        return bucket, cycle * self._shares[bucket] + int((slots[:place] == bucket).sum())

    def _shuffled(self, bucket: int, epoch: int) -> list[ClipRef]:
        return epoch_order(list(self._buckets[bucket]), seed=self._seed + bucket, epoch=epoch)


class Reader(Generic[Item, Batch]):
    """Iterates over (step, virtual shards of this worker), reading several steps ahead in threads.

    Attributes:
        waited_s: seconds the training thread has waited for data.
    """

    def __init__(
        self,
        source: Source[Item],
        order: Order,
        collate: Callable[[Sequence[Sample], Sequence[Item]], Batch],
        *,
        shards: range,
        num_shards: int,
        start: int = 0,
        ahead: int = 4,
    ) -> None:
        self.waited_s = 0.0
        self._source = source
        self._order = order
        self._collate = collate
        self._shards = shards
        self._num_shards = num_shards
        self._steps = count(start)
        self._pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="reader")
        self._pending: deque[tuple[int, Future[dict[int, Batch]]]] = deque()
        for _ in range(ahead):
            self._request()

    def __iter__(self) -> Iterator[tuple[int, dict[int, Batch]]]:
        return self

    def __next__(self) -> tuple[int, dict[int, Batch]]:
        step, future = self._pending.popleft()
        started = time.perf_counter()
        batches = future.result()
        self.waited_s += time.perf_counter() - started
        self._request()
        return step, batches

    def close(self) -> None:
        """Drop what was read ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self) -> None:
        step = next(self._steps)
        self._pending.append((step, self._pool.submit(self._read, step)))

    def _read(self, step: int) -> dict[int, Batch]:
        samples = self._order.batch(step)
        size = len(samples) // self._num_shards
        own = samples[self._shards.start * size : self._shards.stop * size]
        items = self._source.read([sample.ref for sample in own])
        return {
            shard: self._collate(own[place : place + size], items[place : place + size])
            for shard, place in zip(self._shards, range(0, len(own), size), strict=True)
        }
