"""P1: frames per CPU-second of a run on Ray, against the bare encoder on frames already in memory."""

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from infra.cluster import connect
from pipelines.checkpoint import PRETRAINED
from pipelines.video_encode import encode_mp4
from preprocessing import dataset
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig, Resources
from preprocessing.encoder import find_autoencoder, load_encoder
from preprocessing.identity import shard_config
from preprocessing.run import make_or_read_plan
from preprocessing.sources import find_sources
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene

VAE = PRETRAINED / "synthetic_driving" / "backbone" / "vae"
SIZE = (128, 256)
LARGE = (256, 512)
CLIP_FRAMES, SOURCE_FRAMES, GROUP_FRAMES = 8, 80, 400
WATCH_S = 2.0
ROUNDS = 5
ENCODERS = os.cpu_count() or 1
"""One for each core: what Ray itself takes by the clock is a sum for a whole cluster."""

T = TypeVar("T")


def efficiency(folder: Path, frames: int, size: tuple[int, int]) -> tuple[float, float]:
    """CPU time per frame of the bare encoder over that of all processes of a run, and the former in milliseconds.

    A run over one group has the same start and end as a run over many: the difference is what the other groups cost.
    The bare encoder is measured before, between and after the two. Machines change their speed within minutes, so this
    is done in rounds; the medians over them are returned.

    Args:
        folder: for corpus and shards.
        frames: a multiple of ROUNDS * GROUP_FRAMES.
        size: (height, width) of sources and clips.
    """
    more = frames // GROUP_FRAMES // ROUNDS
    groups = ROUNDS * (more + 2)
    job = Job(
        corpus=str(make_corpus(folder, groups * GROUP_FRAMES, size)),
        shards=str(folder / f"throughput-shards-{size[1]}"),
        checkpoint=str(VAE),
        config=PreprocessConfig(clips=(ClipForm(num_frames=CLIP_FRAMES, fps="10"),), sizes=(size,), min_groups=groups),
    )
    vae = find_autoencoder(job.checkpoint)
    with connect():
        config = shard_config(job, vae, make_or_read_plan(job, find_sources(job.corpus), vae, dataset))

        def encode(groups: Sequence[int]) -> int:
            resources = Resources(encoders=ENCODERS)
            rows = dataset.encode_groups(job.shards, groups, config, vae.folder, job.config, resources)
            return CLIP_FRAMES * sum(row["clips"] for row in rows)

        figures, bares = [], []
        for first in range(0, groups, more + 2):
            bare = [bare_cpu_s(vae.folder, size)]
            few_s, few = tree_cpu_s(lambda first=first: encode([first]))
            bare.append(bare_cpu_s(vae.folder, size))
            many_s, many = tree_cpu_s(lambda first=first: encode(range(first + 1, first + more + 2)))
            bare.append(bare_cpu_s(vae.folder, size))
            assert many - few == more * GROUP_FRAMES, f"{many} and {few} frames were encoded"
            bares.append(statistics.median(bare))
            figures.append(bares[-1] * (many - few) / (many_s - few_s))
    return statistics.median(figures), statistics.median(bares) * 1e3


def make_corpus(folder: Path, frames: int, size: tuple[int, int]) -> Path:
    """Videos of 80 frames at 10 frames a second, ten cut out of each rendered drive."""
    corpus, (height, width) = folder / f"throughput-{size[1]}", size
    for i in range(frames // SOURCE_FRAMES):
        if i % 10 == 0:
            drive = Drive(draw_scene(0, i // 10), SOURCE_FRAMES / 10, height + 32, width + 32)
            images = np.stack([drive.frame(k / 10).image for k in range(SOURCE_FRAMES)])
        top, left = i % 2 * 32, i % 10 // 2 * 8
        encode_mp4(corpus / f"{i:04d}.mp4", images[:, top : top + height, left : left + width], Fraction(10))
    return corpus


def bare_cpu_s(vae_folder: Path, size: tuple[int, int]) -> float:
    """CPU seconds per frame of the encoder alone, in fresh processes as many as the run has: page faults differ."""
    with multiprocessing.get_context("spawn").Pool(ENCODERS) as pool:
        return statistics.median(pool.map(_bare_cpu_s, [(vae_folder, size)] * ENCODERS, chunksize=1))


def _bare_cpu_s(given: tuple[Path, tuple[int, int]]) -> float:
    """CPU seconds per frame in this process, median over clips."""
    vae_folder, size = given
    encode = load_encoder(vae_folder, "float32", "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (CLIP_FRAMES, *size, 3), np.uint8)
    encode(frames)
    spent = []
    for _ in range(20):
        start = time.process_time()
        encode(frames)
        spent.append(time.process_time() - start)
    return statistics.median(spent) / CLIP_FRAMES


def tree_cpu_s(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of a call in this process and all it starts, what ends meanwhile included, and its result."""
    used: dict[tuple[int, float], float] = {}
    ended, watching_s = threading.Event(), 0.0

    def look() -> float:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
        return sum(used.values())

    def watch() -> None:
        nonlocal watching_s
        while not ended.wait(WATCH_S):
            look()
        watching_s = time.thread_time()

    start = look()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    result = work()
    ended.set()
    watcher.join()
    return look() - start - watching_s, result
