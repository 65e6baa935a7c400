"""P5, P6 and P8: SIGKILL anywhere, any number of workers, any order of listing: the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from infra.cluster import connect
from preprocessing import dataset
from preprocessing.arguments import Job
from preprocessing.config import Resources
from preprocessing.encoder import find_autoencoder
from preprocessing.run import execute
from preprocessing.sources import find_sources
from tests.benchmarks.preprocessing_gates import SMALL, run_small
from tests.preprocessing.conftest import write_video
from tests.preprocessing.test_crash import content, in_child

VICTIMS = ("driver", "worker", "raylet")
LONGEST_RUN_S = 1800.0


@dataclass(kw_only=True)
class Kills:
    """What many killed and resumed runs came to."""

    different: int = 0
    twice: int = 0
    ray_runs: int = 0
    where: str = ""


def corpus_of(folder: Path) -> Path:
    """Four good videos and a broken one."""
    corpus = folder / "kills"
    if not corpus.exists():
        for i in range(4):
            write_video(corpus / f"{i}.mp4", 24, seed=i)
        (corpus / "broken.mp4").write_text("no video")
    return corpus


def kills(folder: Path, vae: Path, forks: int, ray_runs: int) -> Kills:
    """Kill runs, resume them, compare with an undisturbed one.

    Args:
        folder: for the runs.
        vae: autoencoder.
        forks: runs in one process, two thirds of them killed before or after a durable call, the others at random.
        ray_runs: runs of the command on Ray; driver, a worker and the raylet die in turn at a random moment.
    """
    torch.set_num_threads(1)
    corpus, whole = corpus_of(folder), folder / "whole"
    started = time.monotonic()
    ended, points = in_child(lambda: run_small(corpus, whole, vae), 0)
    length_s = time.monotonic() - started
    assert ended == 0
    expected, rng, result = content(whole), np.random.default_rng(0), Kills()
    for number in range(forks):
        shards = folder / f"killed-{number}"
        if number % 3:
            in_child(lambda shards=shards: run_small(corpus, shards, vae), int(rng.integers(1, 2 * points + 1)))  # type: ignore[misc]
        else:
            _kill_fork(corpus, shards, vae, float(rng.uniform(0, length_s)))
        result.twice = max(result.twice, _shards_without_record(shards))
        in_child(lambda shards=shards: run_small(corpus, shards, vae), 0)  # type: ignore[misc]
        result.different += content(shards) != expected
        shutil.rmtree(shards)
    done = []
    for number in range(ray_runs):
        victim = VICTIMS[number % len(VICTIMS)]
        shards = folder / f"ray-killed-{number}"
        if _kill_on_ray(corpus, shards, vae, victim, rng):
            done.append(victim)
        result.twice = max(result.twice, _shards_without_record(shards))
        assert subprocess.run(_command(corpus, shards, vae), capture_output=True, check=False).returncode == 3
        result.different += content(shards) != expected
    result.ray_runs, result.where = len(done), ", ".join(f"{done.count(v)} {v}" for v in VICTIMS if v in done) or "none"
    return result


def digests(folder: Path, vae: Path, workers: Sequence[int]) -> int:
    """P8: how many different results come of some numbers of workers, of no Ray, and of a shuffled listing."""
    corpus, seen = corpus_of(folder), []
    run_small(corpus, folder / "digest-serial", vae)
    seen.append(content(folder / "digest-serial"))
    found = find_sources(str(corpus))
    with connect(num_cpus=max(workers)):
        for number in workers:
            shards = folder / f"digest-{number}"
            resources = Resources(decoders=number, encoders=number)
            job = Job(corpus=str(corpus), shards=str(shards), checkpoint=str(vae), config=SMALL, resources=resources)
            shuffled = [found[i] for i in np.random.default_rng(number).permutation(len(found))]
            execute(job, shuffled, find_autoencoder(job.checkpoint), dataset)
            seen.append(content(shards))
    return len({tuple(sorted(one.items())) for one in seen})


def _kill_fork(corpus: Path, shards: Path, vae: Path, after_s: float) -> None:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run_small(corpus, shards, vae)
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _command(corpus: Path, shards: Path, vae: Path) -> list[str]:
    line = [sys.executable, "-m", "preprocessing", "run", str(corpus), str(shards), "--checkpoint", str(vae)]
    # The settings of the undisturbed run.
    saved = ["--job", str(corpus.parent / "whole" / "job.json")]
    return [*line, *saved, "--resources.encoders", "1", "--resources.decoders", "1"]


def _kill_on_ray(corpus: Path, shards: Path, vae: Path, victim: str, rng: np.random.Generator) -> bool:
    """Start a run, kill a process of it after some of its groups, wait for its end; False if it had ended before."""
    groups = int(rng.integers(_groups(corpus.parent / "whole")))
    run = subprocess.Popen(_command(corpus, shards, vae), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LONGEST_RUN_S
    killed = False
    while run.poll() is None and time.monotonic() < deadline and not killed:
        time.sleep(0.05)
        if not (shards / "config.json").exists() or _groups(shards) < groups:
            continue
        time.sleep(float(rng.uniform(0, 1)))
        if run.poll() is None and victim == "driver":
            run.kill()
            killed = True
        elif run.poll() is None:
            killed = _kill_child(run.pid, "raylet" if victim == "raylet" else "ray::MapWorker", rng)
    try:
        run.wait(LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        run.kill()
    return killed


def _kill_child(driver: int, name: str, rng: np.random.Generator) -> bool:
    own = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and (words[0].startswith(name) or words[0].endswith("/" + name)):
            own.append(process)
    if not own:
        return False
    own[int(rng.integers(len(own)))].kill()
    return True


def _groups(shards: Path) -> int:
    """Groups that are committed."""
    return len(list((shards / "ledger").glob("group-*.json")))


def _shards_without_record(shards: Path) -> int:
    written = len(list((shards / "data").rglob("shard-*.parquet"))) if (shards / "data").exists() else 0
    return written - _groups(shards)
