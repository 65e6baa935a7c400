import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from infra.cli import ExitCode
from pipelines.shards import open_shards
from preprocessing import card, export, inspect_clip
from preprocessing.arguments import Job, read_job
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.sealed import seal, unseal
from preprocessing.verify import find_faults, repair

CONFIG = PreprocessConfig(
    clips=(ClipForm(num_frames=4, fps="4"), ClipForm(num_frames=3, fps="8", stride_s=1.0)),
    sizes=((32, 64),),
    min_groups=3,
)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    vae_folder: Path,
    make_video: Callable[..., Path],
    run_job: Callable[[Job], ExitCode],
) -> Path:
    corpus, shards = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("shards")
    for i in range(4):
        make_video(corpus / f"{i}.mp4", 24, seed=i)
    make_video(corpus / "short.mp4", 2, seed=9)
    (corpus / "text.mp4").write_text("no video")
    shutil.copy(corpus / "0.mp4", corpus / "copy.mp4")
    assert run_job(Job(corpus=str(corpus), shards=str(shards), checkpoint=str(vae_folder), config=CONFIG)) == 3
    return shards


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def content(shards: Path) -> dict[str, bytes]:
    files = [p for p in shards.rglob("*") if p.is_file() and p.name != "job.json" and "ledger" not in p.parts]
    return {str(p.relative_to(shards)): p.read_bytes() for p in files}


def mend(shards: Path, run_job: Callable[[Job], ExitCode]) -> ExitCode:
    return repair(str(shards), list(find_faults(str(shards))), lambda: run_job(read_job(str(shards))))


def test_a_whole_set_has_no_faults(whole: Path) -> None:
    assert list(find_faults(str(whole))) == []


def test_every_flipped_bit_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    assert card.main([str(copy)]) == ExitCode.DONE
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    assert len(files) > 14
    for trial in range(120):
        path = files[trial % len(files)]
        sound = path.read_bytes()
        bit = int(rng.integers(8 * len(sound)))
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        faults = list(find_faults(str(copy)))
        assert str(path.relative_to(copy)) in {fault.path for fault in faults}, (path, bit)
        path.write_bytes(sound)


def test_file_faults_are_told_apart(copy: Path) -> None:
    shard, other, *_ = sorted((copy / "data").rglob("*.parquet"))
    shard.unlink()
    other.write_bytes(other.read_bytes()[:-100])
    (other.parent / "shard-00099-0123456789abcdef.parquet").write_bytes(b"x")
    (copy / "data" / ".tmp-abc").write_bytes(b"half")
    (copy / "ledger" / "group-00077.json").write_text("{}")
    (copy / "ledger" / "group-abc.json").write_text("{}")
    (copy / "plan" / "clips (1).parquet").write_bytes(b"x")
    faults = list(find_faults(str(copy)))
    assert len(faults) == 7
    assert {"ledger/group-abc.json", "plan/clips (1).parquet"} <= {f.path for f in faults if f.kind == "extra"}
    found = {fault.kind: fault.path for fault in faults}
    assert found["missing"] == str(shard.relative_to(copy))
    assert found["damaged"] == str(other.relative_to(copy))
    assert found["leftover"] == "data/.tmp-abc"


def test_repair_restores_every_byte_and_touches_only_damaged_groups(
    whole: Path, copy: Path, run_job: Callable[[Job], ExitCode]
) -> None:
    shards = sorted((copy / "data").rglob("*.parquet"))
    records = {p.name: p.stat().st_mtime_ns for p in (copy / "ledger").iterdir()}
    shards[0].write_bytes(b"rubbish")
    (copy / "data" / "foreign.bin").write_bytes(b"x")
    (copy / "index.parquet").unlink()
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("0.7", "0.8"))
    group = next(fault.group for fault in find_faults(str(copy)) if fault.kind == "damaged")
    assert mend(copy, run_job) == ExitCode.DONE_WITH_QUARANTINE
    assert content(copy) == content(whole)
    assert list(find_faults(str(copy))) == []
    again = {p.name for p in (copy / "ledger").iterdir() if p.stat().st_mtime_ns != records[p.name]}
    assert again == {f"group-{group:05d}.json"}


def test_a_record_of_other_clips_is_foreign(copy: Path) -> None:
    path = sorted((copy / "ledger").iterdir())[1]
    values = unseal(path.read_bytes(), "record")
    values["files"][0]["clips"][0]["clip_id"] = "0" * 32
    path.write_bytes(seal(values))
    assert [fault.kind for fault in find_faults(str(copy)) if fault.path.startswith("ledger")] == ["foreign"]


def test_a_damaged_plan_is_not_repaired(copy: Path, run_job: Callable[[Job], ExitCode]) -> None:
    (copy / "plan" / "clips.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="plan"):
        mend(copy, run_job)
    with pytest.raises(ValueError, match="no plan"):
        list(find_faults(str(copy / "data")))


def test_the_card_accounts_for_every_source_and_clip(copy: Path) -> None:
    assert card.main([str(copy)]) == ExitCode.DONE
    stats = json.loads((copy / "stats.json").read_text())
    assert stats["sources"] == {
        "found": 7, "planned": 4, "left out": {"same_file": 1}, "unusable": {"open": 1}, "without clips": 1
    }  # fmt: skip
    clips = stats["clips"]
    assert clips["cut"] == clips["planned"] + sum(clips["left out"].values())
    assert clips["planned"] == clips["written"] + sum(clips["quarantined"].values())
    assert clips["written"] == len(open_shards(str(copy)))
    assert (copy / "card.png").read_bytes()[:4] == b"\x89PNG"
    assert list(find_faults(str(copy))) == []
    text = (copy / "card.md").read_text()
    for part in ("| **written** |", "](card.png)", "| unknown | ", "| faces blurred | no |", "seconds of a source:"):
        assert part in text
    assert sum(stats["histograms"]["clips of a source"].values()) == 4


def test_a_damaged_card_is_found_and_taken_away(copy: Path, run_job: Callable[[Job], ExitCode]) -> None:
    card.main([str(copy)])
    (copy / "card.md").write_text((copy / "card.md").read_text().replace("written", "wanted"))
    assert [(fault.kind, fault.path) for fault in find_faults(str(copy))] == [("card", "card.md")]
    mend(copy, run_job)
    card.main([str(copy)])
    assert list(find_faults(str(copy))) == []


def test_a_lost_job_is_written_anew_by_the_line_that_made_the_set(
    whole: Path, copy: Path, run_job: Callable[[Job], ExitCode]
) -> None:
    (copy / "job.json").write_text("{}")
    assert [fault.kind for fault in find_faults(str(copy))] == ["job"]
    with pytest.raises(ValueError, match="give the `run` line again"):
        mend(copy, run_job)
    run_job(replace(read_job(str(whole)), shards=str(copy)))
    assert list(find_faults(str(copy))) == []


def test_a_missing_clip_is_noticed_by_the_card(copy: Path) -> None:
    success = json.loads((copy / "_SUCCESS.json").read_text())
    path = copy / "plan" / "plan.json"
    path.write_bytes(seal({**unseal(path.read_bytes(), "plan"), "clips": success["clips"] + 1}))
    with pytest.raises(ValueError, match="1 clips"):
        card.collect(str(copy))


def test_inspect_shows_the_clip(copy: Path, tmp_path: Path, vae_folder: Path) -> None:
    shards = open_shards(str(copy))
    labels = list(shards.labels.values())[3]
    assert inspect_clip.main([str(copy), labels.clip_id, "--out", str(tmp_path / "a.mp4")]) == ExitCode.DONE
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    [clip] = shards.read([shards.find(labels.clip_id)])
    assert len(frames) == len(clip.times_s)
    assert (frames[0].height, frames[0].width) == (32, 64)
    with pytest.raises(ValueError, match="no clip"):
        inspect_clip.main([str(copy), "abc", "--out", str(tmp_path / "b.mp4")])


def test_webdataset_export_holds_every_clip_twice_the_same(copy: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert export.main([str(copy), str(tmp_path / name)]) == ExitCode.DONE
    shards = open_shards(str(copy))
    seen = {}
    for path in sorted((tmp_path / "a").rglob("*.tar")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".npy"):
                    file = tar.extractfile(member)
                    assert file is not None
                    seen[member.name.partition(".")[0]] = np.load(io.BytesIO(file.read()))
    assert len(seen) == len(shards)
    for clip_id, latent in seen.items():
        np.testing.assert_array_equal(latent, shards.read([shards.find(clip_id)])[0].moments)


def test_mds_export_reads_back_by_its_documented_layout(copy: Path, tmp_path: Path) -> None:
    assert export.main([str(copy), str(tmp_path / "mds"), "--form", "mds"]) == ExitCode.DONE
    shards, seen = open_shards(str(copy)), 0
    for index_path in (tmp_path / "mds").rglob("index.json"):
        for shard in json.loads(index_path.read_text())["shards"]:
            data = (index_path.parent / shard["raw_data"]["basename"]).read_bytes()
            assert len(data) == shard["raw_data"]["bytes"]
            count = int(np.frombuffer(data, np.uint32, 1)[0])
            offsets = np.frombuffer(data, np.uint32, count + 1, 4)
            for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                first, second = np.frombuffer(data, np.uint32, 2, begin).tolist()
                labels = json.loads(data[begin + 8 : begin + 8 + first])
                latent = np.frombuffer(data[begin + 8 + first : end], np.float16).reshape(labels["shape"])
                assert end - begin == 8 + first + second
                np.testing.assert_array_equal(latent, shards.read([shards.find(labels["clip_id"])])[0].moments)
                seen += 1
    assert seen == len(shards)
