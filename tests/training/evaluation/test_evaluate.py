"""Whole evaluations, reproductions and galleries of a tiny random checkpoint: what runs, what is kept, what is said."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.networks import Networks
from pipelines.tiny_presets import tiny_driving
from pipelines.video_io import write_mp4
from preprocessing.synthetic.corpus import LABEL_SCHEMA
from tests.pipelines.random_checkpoint import write_checkpoint
from training import evaluate, reproduce
from training.evaluation import command, gallery
from training.evaluation.kept import KeptResults
from training.evaluation.measuring import Job, Measurer
from training.evaluation.reference import find_videos, halves, longest_clip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_driving(), boxes=True)


def write_videos(folder: Path, *, frames: int, fps: str, size: tuple[int, int], clips: int = 4) -> None:
    """Labelled videos of noise that moves."""
    drawn = np.random.default_rng(frames)
    rows = []
    for clip in range(clips):
        still = drawn.integers(0, 255, (*size, 3), dtype=np.uint8)
        moving = np.stack([np.roll(still, shift, axis=1) for shift in range(frames)])
        write_mp4(folder / f"{clip:06d}.mp4", torch.from_numpy(moving), Fraction(fps))
        row = dict.fromkeys(LABEL_SCHEMA.names)
        box = {"vehicle": 0, "box": [0.2, 0.2, 0.6, 0.7]}
        rows.append(
            row
            | {
                "file": f"{clip:06d}.mp4",
                "caption": "a road",
                "fps": fps,
                "night": clip % 2,
                "crowdedness": 1 + 3 * clip,
            }
            | {"boxes": [[box, {**box, "box": [0.7, 0.1, 0.9, 0.8]}]] * frames}
        )
    pq.write_table(pa.Table.from_pylist(rows, LABEL_SCHEMA), folder / "labels.parquet")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_videos(folder / "keyframes", frames=16, fps="2", size=(16, 32))
    write_videos(folder / "fine", frames=18, fps="30", size=(16, 32))
    write_videos(folder / "large", frames=8, fps="30", size=(64, 128))
    return folder


def arguments(checkpoint: str, corpus: Path, out: Path) -> command.Arguments:
    return command.Arguments(
        checkpoint=checkpoint,
        corpus=corpus / "keyframes",
        fine_corpus=corpus / "fine",
        out=out,
        kept=str(out / "kept"),
        parts=("decoder",),
        clips=2,
        frames=14,
        weights=out / "none",
        resamples=4,
        workers=0,
    )


def test_reproduce_prints_every_row_and_takes_up_what_was_kept(
    checkpoint: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["--checkpoint", checkpoint, "--corpus", str(corpus), "--real", str(corpus / "keyframes")]
    line += ["--out", str(tmp_path), "--weights", str(tmp_path / "none"), "--workers", "0", "--resamples", "4"]
    line += [
        "--clips",
        "2",
        "--variants",
        "2",
        "--rollouts",
        "1",
        "--steps",
        "1",
    ]
    line += ["--reader", str(tmp_path / "none")]
    # In place of a training on real clips: the image model as it is, under the same temporal layers.
    shutil.copytree(checkpoint, tmp_path / "trained/another-image-model")
    assert reproduce.main(line) == 0
    text = capsys.readouterr().out
    assert all(f"W{number}" in text for number in range(1, 10))
    assert "FVD need i3d-kinetics400" in text
    assert "`make weights` fetches it" in text
    # Without networks there are still frames to compare.
    found = {(f["name"], f["of"]) for f in json.loads((tmp_path / "main/evaluation.json").read_text())["figures"]}
    assert {
        ("PSNR", "decoder, temporal"),
        ("PSNR", "interpolation, blending"),
        ("PSNR", "upsampler, temporal"),
    } <= found
    assert {("flicker", "video model"), ("flicker", "image model per frame")} <= found
    assert (tmp_path / "main/index.html").read_text().count("<video") > 10

    def refuse(*_: object) -> None:
        raise AssertionError("a job was carried out again")

    monkeypatch.setattr(Measurer, "run", refuse)
    document = tmp_path / "results.md.txt"
    document.write_text(f"kept\n{reproduce.MARKER}\nold\n")
    assert reproduce.main([*line, "--document", str(document)]) == 0
    assert capsys.readouterr().out == text
    written = document.read_text()
    assert written.startswith("kept\n")
    assert "old" not in written.splitlines()
    assert "W9" in written


def test_what_is_kept_is_kept_by_all_that_made_it(checkpoint: str, corpus: Path, tmp_path: Path) -> None:
    given = arguments(checkpoint, corpus, tmp_path)
    networks = Networks(checkpoint)
    scope = command.plan(given, networks)
    kept = KeptResults(str(tmp_path), networks.manifest, scope.settings, {"reader": "a"})
    decoded = next(job for job in scope.jobs if job.kind == "decoder")
    clip = replace(decoded, kind="clip")

    def key(job: Job, **changes: object) -> str:
        networks_read = {"reader": str(changes.pop("reader", "a"))}
        settings = replace(scope.settings, **changes)  # type: ignore[arg-type]
        return KeptResults(str(tmp_path), networks.manifest, settings, networks_read).key(job)

    assert kept.key(decoded) == key(decoded) == key(decoded, seed=9) == key(decoded, threads=7, weights=Path("x"))
    assert key(clip) != key(clip, seed=9)
    assert key(decoded) != key(decoded, reader="b")
    assert key(decoded) != key(replace(decoded, way="per frame"))
    assert key(decoded) != key(replace(decoded, window=replace(decoded.window, start_s=0.1)))
    other = corpus / "other.mp4"
    other.write_bytes(Path(decoded.window.path).read_bytes())
    moved = replace(decoded, window=replace(decoded.window, path=str(other)))
    assert key(decoded) == key(moved)
    other.unlink()
    changed = replace(networks.manifest, files={**networks.manifest.files, "decoder/model.safetensors": "0" * 64})
    assert KeptResults(str(tmp_path), changed, scope.settings, {"reader": "a"}).key(decoded) != key(decoded)
    assert KeptResults(str(tmp_path), changed, scope.settings, {"reader": "a"}).key(scope.jobs[0]) == key(scope.jobs[0])


@pytest.mark.ray
@pytest.mark.slow
def test_ray_measures_what_one_process_measures(
    checkpoint: str, corpus: Path, tmp_path: Path, shared_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(checkpoint, corpus, tmp_path)
    here = command.measure(replace(given, kept=None), evaluate.runner(0))[0]
    monkeypatch.setenv("RAY_ADDRESS", shared_cluster)
    on_ray = command.measure(replace(given, kept=None), evaluate.runner(1))[0]
    assert on_ray.figures == here.figures
    assert len(here.figures) > 4


def test_halves_share_no_video(corpus: Path) -> None:
    videos = find_videos(corpus / "keyframes")
    assert longest_clip(videos, Fraction(2), 14) == 14
    assert longest_clip(videos, Fraction(2), 99) == 16
    one, other = halves(videos, count=9, num_frames=8, fps=Fraction(2))
    assert len(one) == len(other) == 4
    assert not {w.path for w in one} & {w.path for w in other}
    assert one[0].scene.crowdedness == 1
    assert one[0].boxes[0] == pytest.approx((0.2, 0.2, 0.6, 0.7))
    with pytest.raises(ValueError, match="no two sets"):
        halves(videos, count=2, num_frames=40, fps=Fraction(2))


def test_gallery_makes_every_picture_once(
    checkpoint: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", checkpoint, "--corpus", str(corpus), "--real", str(corpus / "keyframes")]
    line += ["--out", str(tmp_path), "--steps", "1", "--minutes", "0.2", "--threads", "1"]
    assert gallery.main(line) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {f"{name}.webp" for name in (*gallery.PICTURES, "scenes-moving", "interpolation-moving")}
    sheet = cv2.imdecode(np.frombuffer((tmp_path / "scenes.webp").read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (4 * (20 + 128), 6 * 256 + 5 * 2, 3)
    done, moving = cv2.imreadanimation(str(tmp_path / "scenes-moving.webp"))
    assert done
    assert len(moving.frames) == 6
    capsys.readouterr()
    assert gallery.main(line) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no picture 'sunset'"):
        gallery.main([*line, "--only", "sunset"])
