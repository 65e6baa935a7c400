"""Gradient sums: the same bits for every number of workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import destroy_process_group, init_process_group

from training.reduction import Workers, combine, local_sums, owned_nodes

ELEMENTS = 1003


def gradient(shard: int) -> torch.Tensor:
    """Numbers of very different size, so that another order of additions gives other bits."""
    generator = torch.Generator().manual_seed(shard)
    return torch.randn(ELEMENTS, generator=generator) * 10.0 ** torch.randint(-6, 6, (ELEMENTS,), generator=generator)


def total(num_shards: int, workers: Workers) -> torch.Tensor:
    return combine(local_sums(gradient, num_shards, workers), num_shards, workers)


def reference(num_shards: int) -> torch.Tensor:
    """Pairwise sum written out as a loop over levels; for powers of two it is the tree."""
    values = [gradient(shard) for shard in range(num_shards)]
    while len(values) > 1:
        values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
    return values[0]


Spawn = Callable[..., None]


def worker(rank: int, count: int, num_shards: int, exact: bool, folder: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count)
    torch.save(total(num_shards, Workers(rank=rank, count=count, exact=exact)), f"{folder}/{rank}.pt")
    destroy_process_group()


@given(num_shards=st.integers(1, 33), count=st.integers(1, 9))
def test_owned_nodes_of_all_workers_tile_the_shards(num_shards: int, count: int) -> None:
    count = min(count, num_shards)
    nodes = [
        node
        for rank in range(count)
        for node in owned_nodes(Workers(rank=rank, count=count).leaves(num_shards), num_shards)
    ]
    assert [leaf for start, stop in nodes for leaf in range(start, stop)] == list(range(num_shards))


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_sum_of_one_worker_equals_pairwise_sum(num_shards: int) -> None:
    assert torch.equal(total(num_shards, Workers()), reference(num_shards))


def test_sum_in_a_row_has_other_bits_than_the_tree() -> None:
    in_a_row = gradient(0)
    for shard in range(1, 8):
        in_a_row = in_a_row + gradient(shard)
    assert not torch.equal(in_a_row, reference(8))


@pytest.mark.parametrize(("count", "num_shards"), [(2, 4), (4, 4), (2, 8), (3, 4), (3, 8)])
def test_sum_of_many_workers_has_the_bits_of_one(count: int, num_shards: int, tmp_path: Path, spawn: Spawn) -> None:
    spawn(worker, count, count, num_shards, True, str(tmp_path))
    for rank in range(count):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), reference(num_shards)), f"rank {rank}"


def test_sum_across_small_buckets_has_the_same_bits(
    tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.reduction.BUCKET_ELEMENTS", 97)
    spawn(worker, 3, 3, 4, True, str(tmp_path))
    assert torch.equal(torch.load(tmp_path / "1.pt"), reference(4))


def test_fast_sum_is_close_to_the_exact_one(tmp_path: Path, spawn: Spawn) -> None:
    spawn(worker, 2, 2, 4, False, str(tmp_path))
    torch.testing.assert_close(torch.load(tmp_path / "0.pt"), reference(4), rtol=1e-5, atol=1e-5)


def test_sum_with_more_workers_than_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="5 workers share 4 virtual shards"):
        total(4, Workers(rank=0, count=5))
