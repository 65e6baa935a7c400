"""`python -m preprocessing verify SHARDS [--repair]`: compare every byte with plan and ledger; encode damage again."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from infra import storage
from infra.cli import ExitCode, parse
from pipelines.shard_format import ShardConfig
from pipelines.shard_writer import index_bytes, success_json
from preprocessing.finish import CARD_FILES, QUARANTINE, SUCCESS, all_rejections, quarantine_bytes, shard_files
from preprocessing.ledger import GroupRecord, committed_groups, forget_group, read_record
from preprocessing.plan_store import PLAN_FILES, PlanReader, PlanSummary, read_summary
from preprocessing.sealed import unseal
from preprocessing.text import distinct_captions, part_numbers


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is not as plan and ledger say.

    Attributes:
        kind: missing, damaged, extra, leftover, uncommitted, ledger, foreign, index, plan, config, job or card.
        path: of the file, within the shard set.
        group: the group to encode again, None if none has to be.
    """

    kind: str
    path: str
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a shard set bit by bit.

    Attributes:
        shards: folder or s3:// prefix.
        repair: delete what does not belong and encode damaged groups again.
        checkpoint: the autoencoder for repairs; default the one that the set was made with, from its job.json.
    """

    shards: Annotated[str, tyro.conf.Positional]
    repair: bool = False
    checkpoint: str | None = None


def main(arguments: Sequence[str]) -> ExitCode:
    """Print each fault; repair if asked to."""
    command = parse(Verify, arguments, program="python -m preprocessing verify")
    faults = list(find_faults(command.shards))
    for fault in faults:
        print(f"{fault.kind}: {fault.path}")
    if not faults:
        print(f"{command.shards}: every byte is as planned and committed")
        return ExitCode.DONE
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(fault.kind for fault in faults).items()))
    if not command.repair:
        print(f"{len(faults)} faults ({kinds}); run again with --repair")
        return ExitCode.INCOMPLETE
    from preprocessing.run import main_repair  # noqa: PLC0415 (checking alone needs no encoder)

    return repair(command.shards, faults, lambda: main_repair(command.shards, command.checkpoint))


def repair(shards: str, faults: Sequence[Fault], encode: Callable[[], ExitCode]) -> ExitCode:
    """Take back what is damaged, then encode it again.

    Raises:
        ValueError: if the plan is damaged: it is what everything else is compared with.
    """
    for fault in faults:
        if fault.kind == "plan":
            raise ValueError(f"{shards}/{fault.path} is damaged; plan and encode into an empty folder")
        if fault.kind == "card":
            print(f"{fault.path} is deleted; make it anew with `python -m preprocessing card`")
    storage.delete(storage.join(shards, SUCCESS))
    for fault in faults:
        if fault.group is not None:
            forget_group(shards, fault.group)
        if fault.kind not in ("missing", "uncommitted", "index"):
            storage.delete(storage.join(shards, fault.path))
    return encode()


def find_faults(shards: str) -> Iterator[Fault]:
    """Compare every file with the plan, the ledger and its digest.

    Raises:
        ValueError: if there is no plan to compare with.
    """
    try:
        summary = read_summary(shards)
    except ValueError:
        yield Fault(kind="plan", path="plan/plan.json")
        return
    if summary is None:
        raise ValueError(f"{shards} is no shard set: it has no plan; make one with `python -m preprocessing run`")
    broken = list(_plan_faults(shards, summary))
    yield from broken
    if broken:
        return
    records: list[GroupRecord] = []
    yield from _ledger_faults(shards, summary, records)
    yield from _file_faults(shards, records)
    yield from _caption_faults(shards)
    yield from _notes_faults(shards)
    yield from _summary_faults(shards, summary, records)


def _plan_faults(shards: str, summary: PlanSummary) -> Iterator[Fault]:
    for name, digest in summary.files.items():
        if _digest(shards, f"plan/{name}") != digest:
            yield Fault(kind="plan", path=f"plan/{name}")
    try:
        text = storage.read_bytes(storage.join(shards, "config.json")).decode()
        if ShardConfig.from_json(text).to_json() != text:
            yield Fault(kind="config", path="config.json")
    except FileNotFoundError:
        if committed_groups(shards):
            yield Fault(kind="config", path="config.json")
    except (ValueError, TypeError, KeyError):
        yield Fault(kind="config", path="config.json")


def _ledger_faults(shards: str, summary: PlanSummary, records: list[GroupRecord]) -> Iterator[Fault]:
    """Groups without a sound record; sound ones are added to `records`."""
    plan = PlanReader(shards)
    committed = committed_groups(shards)
    for group in sorted(set(range(summary.groups)) | committed):
        path = f"ledger/group-{group:05d}.json"
        if group >= summary.groups:
            yield Fault(kind="extra", path=path)
        elif group not in committed:
            yield Fault(kind="uncommitted", path=path, group=group)
        else:
            try:
                record = read_record(shards, group)
            except ValueError:
                yield Fault(kind="ledger", path=path, group=group)
                continue
            planned = sorted(clip.clip_id for clip in plan.clips(group))
            held = [str(clip["clip_id"]) for file in record.files for clip in file.clips]
            if sorted(held + [rejection.clip_id for rejection in record.rejected]) != planned:
                yield Fault(kind="foreign", path=path, group=group)
            else:
                records.append(record)


def _file_faults(shards: str, records: Sequence[GroupRecord]) -> Iterator[Fault]:
    expected = {file.path: (file, record.group) for record in records for file in record.files}
    present = {file.relative: file.size_bytes for file in storage.list_files(shards)}
    for path, (file, group) in sorted(expected.items()):
        if path not in present:
            yield Fault(kind="missing", path=path, group=group)
        elif present[path] != file.size_bytes or _digest(shards, path) != file.digest:
            yield Fault(kind="damaged", path=path, group=group)
    known = {"config.json", "job.json", *CARD_FILES, "index.parquet", QUARANTINE, SUCCESS}
    known |= {f"plan/{name}" for name in PLAN_FILES}
    for path in sorted(present):
        if path.rpartition("/")[2].startswith(".tmp-"):
            yield Fault(kind="leftover", path=path)
        elif path not in expected and path not in known and not _is_checked_elsewhere(path):
            yield Fault(kind="extra", path=path)


def _is_checked_elsewhere(path: str) -> bool:
    return bool(re.fullmatch(r"ledger/group-\d{5,}\.json|captions/part-\d{5}-[0-9a-f]{16}\.parquet", path))


def _caption_faults(shards: str) -> Iterator[Fault]:
    """Parts of the captions that are missing, too many, or not what their name says."""
    try:
        config = ShardConfig.from_json(storage.read_bytes(storage.join(shards, "config.json")).decode())
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return
    wanted = part_numbers(distinct_captions(shards)) if config.preprocessing.get("text_encoder") else set()
    seen: set[int] = set()
    for file in storage.list_files(storage.join(shards, "captions")):
        path = f"captions/{file.relative}"
        if not _is_checked_elsewhere(path):
            continue
        number, digest = int(file.relative[5:10]), file.relative[11:27]
        if number not in wanted or number in seen:
            yield Fault(kind="extra", path=path)
        elif not _digest(shards, path).startswith(digest):
            yield Fault(kind="damaged", path=path)
        seen.add(number)
    for number in sorted(wanted - seen):
        yield Fault(kind="missing", path=f"captions/part-{number:05d}")


def _notes_faults(shards: str) -> Iterator[Fault]:
    """job.json, and the card if there is one; both know their digests."""
    path = "job.json"
    try:
        unseal(storage.read_bytes(storage.join(shards, path)), path)
    except (FileNotFoundError, ValueError):
        if committed_groups(shards):
            yield Fault(kind="job", path=path)
    present = [name for name in CARD_FILES if storage.exists(storage.join(shards, name))]
    if not present:
        return
    try:
        files = unseal(storage.read_bytes(storage.join(shards, "stats.json")), "stats.json")["files"]
    except (FileNotFoundError, ValueError):
        yield Fault(kind="card", path="stats.json")
        return
    for name, digest in files.items():
        if _digest(shards, name) != digest:
            yield Fault(kind="card", path=name)


def _summary_faults(shards: str, summary: PlanSummary, records: Sequence[GroupRecord]) -> Iterator[Fault]:
    """Tables that follow from the ledger, compared with what it gives now."""
    if len(records) < summary.groups:
        return
    config = ShardConfig.from_json(storage.read_bytes(storage.join(shards, "config.json")).decode())
    if any(record.config_digest != config.digest for record in records):
        yield Fault(kind="config", path="config.json")
        return
    files = shard_files(records)
    expected = {
        "index.parquet": index_bytes(files),
        QUARANTINE: quarantine_bytes(all_rejections(shards, records)),
        SUCCESS: success_json(files, config).encode(),
    }
    for name, content in expected.items():
        if _digest(shards, name) != hashlib.sha256(content).hexdigest():
            yield Fault(kind="index", path=name)


def _digest(shards: str, path: str) -> str:
    try:
        return hashlib.sha256(storage.read_bytes(storage.join(shards, path))).hexdigest()
    except FileNotFoundError:
        return ""
