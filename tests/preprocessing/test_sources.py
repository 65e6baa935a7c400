import json
import threading
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.cli import ExitCode
from preprocessing import run
from preprocessing.arguments import Job, parse_job, read_job
from preprocessing.config import PRESETS, ClipForm, PreprocessConfig
from preprocessing.labels import BoxLabels, FrameBoxes, crop_boxes, crowdedness
from preprocessing.look_stage import LookAtSources
from preprocessing.sources import find_sources, listing_digest
from preprocessing.synthetic.corpus import CorpusSettings, synthesize
from tests.preprocessing.conftest import InProcess


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "deep/a.MOV", "deep/notes.txt", ".hidden.mp4", "NOTICE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    return tmp_path


def test_a_folder_is_searched_in_depth_for_videos(folder: Path) -> None:
    assert [source.name for source in find_sources(str(folder))] == ["b.mp4", "deep/a.MOV"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "txt"])
def test_manifests_bring_captions_labels_and_consent(folder: Path, form: str) -> None:
    columns = ("path", "caption", "night", "crowdedness", "licence", "consent", "fog")
    values = [("b.mp4", "a road", 1, 7, "MIT", "false", 0.5), ("s3://bucket/c.mp4", None, None, None, None, None, 0.0)]
    rows: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in values]
    path = folder / f"corpus.{form}"
    if form == "csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(str(row["path"]) for row in rows) + "\n\n")
    first, second = find_sources(str(path))
    assert first.uri == str(folder / "b.mp4")
    assert second.uri == "s3://bucket/c.mp4"
    if form != "txt":
        assert (first.caption, first.night, first.crowdedness, first.licence, first.consent) == (
            "a road",
            1,
            7,
            "MIT",
            False,
        )
        assert (second.caption, second.night, second.consent) == ("", None, True)
    if form in ("jsonl", "parquet"):
        assert first.labels == {"fog": 0.5}


def test_unusable_corpora_are_one_clear_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "bad.parquet").write_bytes(b"no parquet")
    (folder / "twice.txt").write_text("a.mp4\na.mp4\n")
    (folder / "nameless.csv").write_text("caption\nx\n")
    for name, message in (
        ("empty", "holds no videos"), ("missing", "no corpus"), ("gone.csv", "no manifest"),
        ("bad.parquet", "no readable"), ("twice.txt", "twice"), ("nameless.csv", "row 1 names no video"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            find_sources(str(folder / name))


def test_listing_digest_follows_names_sizes_and_labels(folder: Path) -> None:
    sources = find_sources(str(folder))
    assert listing_digest(sources) == listing_digest(sources[::-1])
    (folder / "b.mp4").write_bytes(b"longer than before")
    assert listing_digest(find_sources(str(folder))) != listing_digest(sources)


def test_labels_of_a_synthetic_corpus_are_joined(tmp_path: Path) -> None:
    settings = CorpusSettings(clips=2, seed=4, height=48, width=64, fps="8", seconds=1.0, noise=0.0)
    list(synthesize(tmp_path / "drives", settings, 1))
    rows = pq.read_table(tmp_path / "drives" / "labels.parquet").to_pylist()
    for source, row in zip(find_sources(str(tmp_path)), rows, strict=True):
        assert source.name == f"drives/{row['file']}"
        assert (source.night, source.caption, source.licence) == (row["night"], row["caption"], "Apache-2.0")
        assert source.labels["fog"] == row["fog"]
        boxes = BoxLabels().of(source.uri)
        assert boxes is not None
        own = boxes.at([Fraction(0), Fraction(1, 2), Fraction(99)])
        assert [len(frame) for frame in own] == [len(row["boxes"][i]) for i in (0, 4, 7)]


def test_boxes_follow_the_cut() -> None:
    boxes = (((0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.5, 0.4), (0.0, 0.2, 0.1, 0.3)),)
    # 100x200 to 64x64: the middle half of the width is kept.
    [(whole, moved)] = crop_boxes(boxes, (100, 200), (64, 64))
    assert whole == (0.0, 0.0, 1.0, 1.0)
    assert moved == pytest.approx((0.0, 0.1, 0.5, 0.4))
    assert crop_boxes(boxes, (100, 200), (32, 64)) == boxes
    assert crowdedness((((0.0, 0.0, 1.0, 1.0),) * 3, ())) == 2
    assert FrameBoxes(Fraction(2), [[[0, 0, 1, 1]], []]).at([Fraction(1, 2)]) == ((),)


def test_the_command_line_changes_any_field_of_a_preset() -> None:
    job = parse_job(["in", "out", "--checkpoint", "c", "--preset=driving", "--sizes", "64", "96", "--seed", "3"], "run")
    assert (job.corpus, job.shards, job.checkpoint) == ("in", "out", "c")
    assert job.config.sizes == ((64, 96),)
    assert job.config.clips == PRESETS["driving"]().clips
    assert job.config.seed == 3
    with pytest.raises(ValueError, match="did you mean driving"):
        parse_job(["in", "out", "--checkpoint", "c", "--preset", "drivin"], "run")


def test_a_run_can_be_repeated_from_its_saved_job_and_refuses_changes(
    tmp_path: Path,
    vae_folder: Path,
    make_video: Callable[..., Path],
    run_job: Callable[[Job], ExitCode],
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus, shards = tmp_path / "corpus", tmp_path / "shards"
    make_video(corpus / "a.mp4", 20)
    config = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),))
    job = Job(corpus=str(corpus), shards=str(shards), checkpoint=str(vae_folder), config=config)
    assert run_job(job) == ExitCode.DONE
    assert read_job(str(shards)) == job
    line = [str(corpus), str(shards), "--checkpoint", str(vae_folder), "--job", str(shards / "job.json")]
    assert run.main_run(line) == ExitCode.DONE
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another config"):
        run.main_run([*line, "--seed", "9"])
    make_video(corpus / "b.mp4", 20, seed=1)
    with pytest.raises(ValueError, match="another state of the corpus"):
        run.main_run(line)
    other = [str(tmp_path / "corpus"), str(tmp_path / "corpus"), "--checkpoint", str(vae_folder)]
    with pytest.raises(ValueError, match="holds other files"):
        run.main_run(other)


def test_a_corpus_without_a_single_clip_says_why_and_leaves_nothing(
    tmp_path: Path, vae_folder: Path, run_job: Callable[[Job], ExitCode]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.mp4").write_text("no video")
    config = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),))
    with pytest.raises(ValueError, match="1 open"):
        run_job(
            Job(corpus=str(tmp_path / "corpus"), shards=str(tmp_path / "s"), checkpoint=str(vae_folder), config=config)
        )
    assert not (tmp_path / "s").exists()


class Shop(BaseHTTPRequestHandler):
    """Serves a manifest and videos; `flaky.mp4` fails once, `broken.mp4` always."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        fails = self.path == "/broken.mp4" or (self.path == "/flaky.mp4" and self.asked.count(self.path) == 1)
        content = self.files.get(self.path)
        self.send_response(500 if fails else 404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_a_list_of_addresses_is_fetched_over_http(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "a.mp4", 12).read_bytes()
    monkeypatch.setattr("preprocessing.sources.RETRY_PAUSE_S", 0.01)
    with HTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        names = ["flaky.mp4", "broken.mp4", "gone.mp4", f"{at}/plain.mp4?key=1"]
        Shop.files = {"/list.txt": "\n".join(names).encode(), "/flaky.mp4": video, "/plain.mp4?key=1": video}
        Shop.files["/broken.mp4"] = video
        sources = {source.name: source for source in find_sources(f"{at}/list.txt")}
        assert sources.keys() == set(names)
        look = LookAtSources(PRESETS["tiny"](), InProcess())
        looked = {name: look.look(source) for name, source in sources.items()}
        server.shutdown()
    for name in ("flaky.mp4", f"{at}/plain.mp4?key=1"):
        assert looked[name].sight is not None, looked[name].rejection
    for name in ("broken.mp4", "gone.mp4"):
        rejection = looked[name].rejection
        assert rejection is not None
        assert (rejection.stage, rejection.reason) == ("fetch", "io")
