"""A run on Ray that is killed in between and run again, on another cluster, ends like one without Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infra.cli import ExitCode
from preprocessing.arguments import Job, parse_job
from preprocessing.run import main_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def corpus(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for i in range(6):
        make_video(tmp_path / "corpus" / f"{i}.mp4", 24, seed=i)
    (tmp_path / "corpus" / "text.mp4").write_text("no video")
    return tmp_path / "corpus"


def arguments(corpus: Path, shards: Path, vae: Path) -> list[str]:
    sizes = ["--sizes", "32", "64", "--min-groups", "6", "--resources.encoders", "1"]
    return [str(corpus), str(shards), "--checkpoint", str(vae), *sizes]


def content(shards: Path) -> dict[str, bytes]:
    files = [p for p in shards.rglob("*") if p.is_file() and p.name != "job.json" and "ledger" not in p.parts]
    return {str(p.relative_to(shards)): p.read_bytes() for p in files if not p.name.startswith(".tmp-")}


def test_run_is_exactly_once_over_a_kill_and_says_when_there_is_nothing_to_do(
    corpus: Path,
    vae_folder: Path,
    tmp_path: Path,
    run_job: Callable[[Job], ExitCode],
    shared_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    alone, shards = tmp_path / "alone", tmp_path / "shards"
    assert run_job(parse_job(arguments(corpus, alone, vae_folder), "run")) == ExitCode.DONE_WITH_QUARANTINE
    line = [sys.executable, "-m", "preprocessing", "run", *arguments(corpus, shards, vae_folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list((shards / "ledger").glob("group-*.json")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (shards / "_SUCCESS.json").exists()
    monkeypatch.setenv("RAY_ADDRESS", shared_cluster)
    assert main_run(arguments(corpus, shards, vae_folder)) == ExitCode.DONE_WITH_QUARANTINE
    assert content(shards) == content(alone)
    capsys.readouterr()
    assert main_run(arguments(corpus, shards, vae_folder)) == ExitCode.DONE_WITH_QUARANTINE
    assert "nothing to do" in capsys.readouterr().out
