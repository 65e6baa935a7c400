"""P1: frames per CPU-second of a whole run on Ray, against the bare encoder on frames already in memory."""

import time
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from infra.cluster import connect
from pipelines.presets import tiny
from pipelines.shard_format import ShardConfig
from preprocessing import dataset
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig, Resources
from preprocessing.encoder import find_autoencoder, load_encoder
from preprocessing.identity import shard_config
from preprocessing.run import make_or_read_plan
from preprocessing.sources import find_sources
from preprocessing.synthetic.corpus import CorpusSettings, synthesize

SIZE = (64, 128)


def efficiency(folder: Path, frames: int) -> float:
    """CPU time per frame of the bare encoder over that of everything a run does, from its first commit to its last."""
    vae_folder = folder / "throughput-vae"
    torch.manual_seed(0)
    AutoencoderKL(**tiny().autoencoder).save_pretrained(vae_folder)
    corpus = folder / "throughput"
    settings = CorpusSettings(
        clips=frames // 80, seed=0, height=SIZE[0], width=SIZE[1], fps="10", seconds=8.0, noise=0.0
    )
    corpus.mkdir()
    for _ in synthesize(corpus, settings, 2):
        pass
    config = PreprocessConfig(
        clips=(ClipForm(num_frames=8, fps="10"),), sizes=(SIZE,), min_groups=max(frames // 400, 4)
    )
    job = Job(corpus=str(corpus), shards=str(folder / "throughput-shards"), checkpoint=str(vae_folder), config=config)
    vae, sources = find_autoencoder(job.checkpoint), find_sources(job.corpus)
    bare = [bare_cpu_s(vae_folder)]
    with connect():
        summary = make_or_read_plan(job, sources, vae, dataset)
        config_of_shards: ShardConfig = shard_config(job, vae, summary)
        rows = dataset.encode_groups(
            job.shards, range(summary.groups), config_of_shards, vae.folder, config, Resources(encoders=1)
        )
        first = next(rows)
        done, start = 0, tree_cpu_s()
        for row in rows:
            done += row["clips"]
        spent = tree_cpu_s() - start
    bare.append(bare_cpu_s(vae_folder))
    assert first["clips"] + done == summary.clips
    return min(bare) * done * 8 / spent


def bare_cpu_s(vae_folder: Path) -> float:
    """CPU seconds per frame of the encoder alone, median over clips."""
    encode = load_encoder(vae_folder, "float32", "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (8, *SIZE, 3), np.uint8)
    encode(frames)
    spent = []
    for _ in range(25):
        start = time.process_time()
        encode(frames)
        spent.append(time.process_time() - start)
    return float(np.median(spent)) / 8


def tree_cpu_s() -> float:
    """CPU seconds of this process and all it has started."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total
