"""The command line: one clear line and exit code 2 for what a user can mend."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.cli import outcome
from training.__main__ import main

System = Any
ROOT = Path(__file__).parents[2]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = outcome(partial(main, arguments))
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    errors = [line for line in text.strip().splitlines() if line.startswith("error: ")]
    if not errors:
        # What the command line itself refuses comes in a frame that breaks lines.
        return " ".join(text.translate(str.maketrans("", "", "│╭╮╰╯─")).split())
    assert len(errors) == 1, text
    return errors[0]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["tiny-keyframe", "--out", "x"], "unknown preset 'tiny-keyframe'; did you mean 'tiny-keyframes'?"),
        (["tiny-image", "--out", "{tmp}/none"], "tiny-image trains on latent shards; give their folder with --shards"),
        (["tiny-image", "--out", "{tmp}/none", "--shards", "{tmp}"], "is no shard set: it has no config.json"),
        (["tiny-image", "--out", "{tmp}/none", "--shards", "{shards}"], "no checkpoint at"),
        (["tiny-image", "--out", "{out}", "--shards", "{shards}"], "hold no clips of 1 or more frames of 64x128"),
        (["tiny-image", "--out", "{out}", "--shards", "{foreign}"], "were made with autoencoder ffffffffffff"),
        (["tiny-autoencoder", "--out", "{tmp}/none"], "trains on videos; give their folder with --corpus"),
        (["tiny-autoencoder", "--out", "{tmp}/none", "--corpus", "{empty}"], "no usable video at"),
        (["tiny-image", "--out", "x", "--batch-size", "7", "--virtual-shards", "4"], "batch_size=7 does not divide"),
        (["tiny-image", "--out", "x", "--cluster.max-workers", "3"], "max_workers=3 in one process"),
        (["tiny-keyframes", "--out", "x", "--cluster.max-workers", "3"], "max_workers=3 exceeds virtual_shards=2"),
        (["tiny-image", "--out", "x", "--optimizer.learning-rate", "-1"], "learning_rate=-1.0 must be positive"),
        (["tiny-upsampler-image", "--out", "x", "--data.label-dropout", "2"], "label_dropout=2.0 is no probability"),
    ],
)
def test_bad_arguments_give_one_line_and_code_two(
    arguments: list[str],
    cause: str,
    system: System,
    make_shards: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.mp4").write_text("no video")
    places = {
        "tmp": tmp_path,
        "out": system.inputs.out,
        "shards": system.inputs.shards,
        "foreign": make_shards(tmp_path / "foreign", "f" * 64),
        "empty": tmp_path / "empty",
    }
    assert cause in error_of([argument.format(**places) for argument in arguments], capsys)


def test_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tiny-image", "--out", "x", "--optimizer.learning-rat", "1e-4"])
    assert caught.value.code == 2
    assert "--optimizer.learning-rate" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tiny-keyframes", "--out", str(tmp_path / "new"), "--dry-run", "--steps", "77"])
    assert '"steps": 77' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_module_runs_as_a_command(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "training", "tiny-image", "--out", str(tmp_path), "--shards", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert finished.stderr.strip().splitlines()[-1].startswith("error: ")
