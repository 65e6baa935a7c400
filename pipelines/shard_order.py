"""The order in which training visits clips: a pure function of seed and epoch, so that a position is one integer."""

from collections.abc import Sequence

import numpy as np

from pipelines.shards import ClipRef


def epoch_order(
    refs: Sequence[ClipRef], *, seed: int, epoch: int, buffer_groups: int = 4, lanes: int = 1
) -> list[ClipRef]:
    """Shuffle clips so that few row groups are open at a time.

    Shards are permuted, then row groups within each; then clips are shuffled inside a sliding buffer of row groups.
    With `lanes` > 1, place i of the order belongs to lane i % lanes and each row group to one lane, so that ranks that
    take whole lanes never fetch the same row group; the order itself does not depend on the number of ranks.

    Args:
        refs: the clips of one bucket, possibly filtered; their own order does not matter.
        seed: of the run.
        epoch: from 0.
        buffer_groups: row groups mixed with each other; memory is buffer_groups * 8 MiB a lane.
        lanes: independent streams, a multiple of any number of ranks that will read; clips left over after the shortest
            lane are dropped, so every rank sees equally many.

    Raises:
        ValueError: if there are no clips or fewer row groups than lanes.
    """
    if not refs:
        raise ValueError("no clips to order; the bucket is empty or the filter refuses all")
    rng = np.random.default_rng([seed, epoch])
    groups = _shuffled_groups(refs, rng)
    if lanes > len(groups):
        raise ValueError(f"lanes={lanes} exceeds the {len(groups)} row groups; use at most that many")
    streams = [_mix(part, buffer_groups, rng) for part in _deal(groups, lanes)]
    return [ref for step in zip(*streams, strict=False) for ref in step]


def _shuffled_groups(refs: Sequence[ClipRef], rng: np.random.Generator) -> list[list[ClipRef]]:
    shards: dict[int, dict[int, list[ClipRef]]] = {}
    for ref in sorted(refs):
        shards.setdefault(ref.shard, {}).setdefault(ref.row_group, []).append(ref)
    order = []
    for shard in rng.permutation(list(shards)):
        groups = shards[int(shard)]
        order += [groups[int(group)] for group in rng.permutation(list(groups))]
    return order


def _deal(groups: list[list[ClipRef]], lanes: int) -> list[list[list[ClipRef]]]:
    parts: list[list[list[ClipRef]]] = [[] for _ in range(lanes)]
    sizes = [0] * lanes
    for group in groups:
        lane = sizes.index(min(sizes))
        parts[lane].append(group)
        sizes[lane] += len(group)
    return parts


def _mix(groups: list[list[ClipRef]], buffer_groups: int, rng: np.random.Generator) -> list[ClipRef]:
    mixed: list[ClipRef] = []
    buffer: list[ClipRef] = []
    for i, group in enumerate(groups):
        buffer += group
        if i + 1 < buffer_groups and i + 1 < len(groups):
            continue
        rng.shuffle(buffer)
        # Hand out one group's worth, keep the rest to be mixed with the next.
        count = len(group) if i + 1 < len(groups) else len(buffer)
        mixed += buffer[:count]
        buffer = buffer[count:]
    return mixed
