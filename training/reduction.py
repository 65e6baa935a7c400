"""Sum gradients in one fixed order, whatever the number of workers.

A global batch is cut into V virtual shards. Their gradients are the leaves of one binary tree over [0, V); every worker
sums the whole subtrees it owns, the rest of the tree is summed after one exchange. One, two, three or V workers thus
do the same fp32 additions in the same order, and get the same bits. The exchange moves as many bytes as a ring
all-reduce: each worker receives its slice of every partial sum, finishes the tree there, and the slices are gathered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Node = tuple[int, int]
"""A node of the tree: the leaves [start, stop) below it."""

BUCKET_ELEMENTS = 2**24


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process's place among the workers; the default is a run of one process.

    Attributes:
        rank: from 0.
        count: number of workers; above 1, torch.distributed must be initialised with as many.
        exact: sum across workers in the fixed tree; False leaves the order to the backend's all-reduce, which differs
            from the exact sum by rounding (1e-7 relative in fp32) and may be faster.
    """

    rank: int = 0
    count: int = 1
    exact: bool = True

    def leaves(self, num_shards: int) -> range:
        """Virtual shards of this worker: consecutive, and as even as num_shards allows."""
        return range(self.rank * num_shards // self.count, (self.rank + 1) * num_shards // self.count)

    def share(self, values: Tensor) -> Tensor:
        """Add up a small tensor whose entries each come from one worker, zero elsewhere: exact in any order."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


def halves(node: Node) -> tuple[Node, Node]:
    """The two children of a node that has more than one leaf."""
    start, stop = node
    middle = start + (stop - start + 1) // 2
    return (start, middle), (middle, stop)


def owned_nodes(leaves: range, num_shards: int) -> list[Node]:
    """The largest nodes of the tree over [0, num_shards) that lie wholly within `leaves`, from left to right."""

    def visit(node: Node) -> list[Node]:
        start, stop = node
        if stop <= leaves.start or start >= leaves.stop:
            return []
        if leaves.start <= start and stop <= leaves.stop:
            return [node]
        left, right = halves(node)
        return visit(left) + visit(right)

    return visit((0, num_shards))


def tree_sum(node: Node, value: Callable[[Node], Tensor | None]) -> Tensor:
    """Sum below `node`: `value` gives the sum of a node it knows, None where the two halves are to be added.

    Depth first, so that at most one partial sum per level of the tree is held.
    """
    known = value(node)
    if known is not None:
        return known
    left, right = halves(node)
    return tree_sum(left, value).add_(tree_sum(right, value))


def local_sums(leaf: Callable[[int], Tensor], num_shards: int, workers: Workers) -> dict[Node, Tensor]:
    """Sum this worker's virtual shards as far as the tree allows without the others'.

    Args:
        leaf: gradient of a virtual shard of this worker, a fresh flat tensor; called once per shard, in order.
        num_shards: V, at least the number of workers.
        workers: who takes part.

    Raises:
        ValueError: if there are more workers than virtual shards.
    """
    if workers.count > num_shards:
        raise ValueError(
            f"{workers.count} workers share {num_shards} virtual shards; use at most {num_shards} workers, or a batch "
            "cut into more"
        )
    nodes = owned_nodes(workers.leaves(num_shards), num_shards)
    return {node: tree_sum(node, lambda n: leaf(n[0]) if n[1] - n[0] == 1 else None) for node in nodes}


def combine(partials: Mapping[Node, Tensor], num_shards: int, workers: Workers) -> Tensor:
    """Finish the tree from each worker's partial sums; every worker gets the whole sum."""
    if workers.count == 1:
        return partials[0, num_shards]
    if not workers.exact:
        total = torch.stack(list(partials.values())).sum(0)
        dist.all_reduce(total)
        return total
    own = list(partials.values())
    flat = torch.empty_like(own[0])
    for start in range(0, flat.numel(), BUCKET_ELEMENTS):
        piece = slice(start, min(start + BUCKET_ELEMENTS, flat.numel()))
        flat[piece] = _combine_bucket([partial[piece] for partial in own], num_shards, workers)
    return flat


def _combine_bucket(own: list[Tensor], num_shards: int, workers: Workers) -> Tensor:
    everyone = [
        owned_nodes(Workers(rank=rank, count=workers.count).leaves(num_shards), num_shards)
        for rank in range(workers.count)
    ]
    slots = max(len(nodes) for nodes in everyone)
    length = -(-own[0].numel() // workers.count)
    # sent[j, s] is worker j's slice of my s-th partial sum; received[j, s] is my slice of worker j's.
    sent = own[0].new_zeros(workers.count, slots, length)
    for slot, partial in enumerate(own):
        padded = torch.nn.functional.pad(partial, (0, length * workers.count - partial.numel()))
        sent[:, slot] = padded.view(workers.count, length)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    known = {node: received[rank, slot] for rank, nodes in enumerate(everyone) for slot, node in enumerate(nodes)}
    total = tree_sum((0, num_shards), known.get)
    gathered = total.new_empty(workers.count * length)
    dist.all_gather_into_tensor(gathered, total.contiguous())
    return gathered[: own[0].numel()]
