"""The ledger: `ledger/group-*.json`, whose presence is the commit of a group of sources."""

import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from infra import storage
from pipelines.shard_writer import ShardRecord
from preprocessing.rejection import Rejection
from preprocessing.sealed import seal, unseal


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """What a group became.

    Attributes:
        group: its number.
        files: its shards.
        rejected: its clips that could not be read or encoded.
        config_digest: of the ShardConfig it was encoded with.
        worker: who wrote it; the only part that may differ between runs.
    """

    group: int
    files: tuple[ShardRecord, ...]
    rejected: tuple[Rejection, ...]
    config_digest: str
    worker: str = ""

    @property
    def num_clips(self) -> int:
        """Clips written."""
        return sum(len(file.clips) for file in self.files)


def commit_group(
    shards: str,
    group: int,
    files: Sequence[tuple[ShardRecord, bytes]],
    rejected: Sequence[Rejection],
    config_digest: str,
) -> GroupRecord:
    """Publish a group's shards under their content digests, then its ledger record.

    A second attempt at a group writes the same files again, which changes nothing.
    """
    for file, content in files:
        storage.write_atomic(storage.join(shards, file.path), content)
    record = GroupRecord(
        group=group,
        files=tuple(file for file, _ in files),
        rejected=tuple(rejected),
        config_digest=config_digest,
        worker=f"{platform.node()} {os.getpid()}",
    )
    storage.put_if_absent(_path(shards, group), seal(asdict(record)))
    return record


def committed_groups(shards: str) -> set[int]:
    """Numbers of the groups that are done."""
    files = storage.list_files(storage.join(shards, "ledger"), ".json")
    names = (re.fullmatch(r"group-(\d{5,})\.json", file.relative) for file in files)
    return {int(name[1]) for name in names if name}


def read_records(shards: str) -> list[GroupRecord]:
    """All records, by group."""
    return [read_record(shards, group) for group in sorted(committed_groups(shards))]


def read_sound_records(shards: str) -> list[GroupRecord]:
    """All records that are not damaged."""
    records = []
    for group in sorted(committed_groups(shards)):
        with suppress(ValueError):
            records.append(read_record(shards, group))
    return records


def read_record(shards: str, group: int) -> GroupRecord:
    """Read one record.

    Raises:
        ValueError: if it is damaged.
    """
    values = unseal(storage.read_bytes(_path(shards, group)), f"{shards}: ledger record {group}")
    files = tuple(ShardRecord(**{**file, "clips": tuple(file["clips"])}) for file in values.pop("files"))
    rejected = tuple(Rejection(**row) for row in values.pop("rejected"))
    return GroupRecord(files=files, rejected=rejected, **values)


def forget_group(shards: str, group: int) -> None:
    """Take a commit back, so that the next run does the group again."""
    storage.delete(_path(shards, group))


def _path(shards: str, group: int) -> str:
    return storage.join(shards, "ledger", f"group-{group:05d}.json")
