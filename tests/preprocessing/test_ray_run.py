"""The real command on Ray: a run killed in between and run again ends like an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def corpus(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for i in range(6):
        make_video(tmp_path / "corpus" / f"{i}.mp4", 24, seed=i)
    (tmp_path / "corpus" / "text.mp4").write_text("no video")
    return tmp_path / "corpus"


def command(corpus: Path, shards: Path, vae: Path) -> list[str]:
    sizes = ["--sizes", "32", "64", "--min-groups", "6", "--resources.encoders", "1"]
    return [sys.executable, "-m", "preprocessing", "run", str(corpus), str(shards), "--checkpoint", str(vae), *sizes]


def content(shards: Path) -> dict[str, bytes]:
    files = [p for p in shards.rglob("*") if p.is_file() and p.name != "job.json" and "ledger" not in p.parts]
    return {str(p.relative_to(shards)): p.read_bytes() for p in files if not p.name.startswith(".tmp-")}


def test_run_is_exactly_once_over_a_kill_and_says_when_there_is_nothing_to_do(
    corpus: Path, vae_folder: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = command(corpus, tmp_path / "a", vae_folder)
    first = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 3, first.stderr
    again = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 3
    assert "nothing to do" in again.stdout
    killed = subprocess.Popen(command(corpus, tmp_path / "b", vae_folder), env=environment, stderr=subprocess.DEVNULL)
    ledger = tmp_path / "b" / "ledger"
    while killed.poll() is None and not (ledger.is_dir() and any(ledger.glob("group-*.json"))):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b" / "_SUCCESS.json").exists()
    last = subprocess.run(
        command(corpus, tmp_path / "b", vae_folder), env=environment, capture_output=True, text=True, check=False
    )
    assert last.returncode == 3, last.stderr
    assert content(tmp_path / "b") == content(tmp_path / "a")
