"""What a plan will cost: shards, bytes and hours."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipelines.shard_format import Bucket
from preprocessing.config import MIB, PreprocessConfig
from preprocessing.encoder import AutoencoderFile, load_encoder
from preprocessing.plan_store import PlanSummary


def show_forecast(summary: PlanSummary, seconds: float, device: str) -> None:
    """Print the forecast of a plan; `seconds` are those of one encoder, measured on `device`."""
    print(f"sources       {summary.sources} ({summary.rejected} unusable, {summary.refused} sources or clips left out)")
    print(f"clips         {summary.clips} ({summary.seconds_of_video / 3600:.2f} h of video)")
    print(f"captions      {summary.captions} distinct")
    print(f"shards        {summary.shards} in {summary.groups} groups")
    print(f"latents       {summary.latent_bytes / MIB:.1f} MiB")
    print(f"encoding      {seconds / 3600:.3f} h for one encoder on this machine's {device}")
    print(f"corpus        {summary.corpus_digest[:16]}")


def encoding_seconds(counts: Sequence[tuple[Bucket, int]], vae: AutoencoderFile, config: PreprocessConfig) -> float:
    """Seconds that one encoder takes for clips of some buckets, from encoding one clip of each size here."""
    encode = load_encoder(vae.folder, config.precision, here(), tiling=config.tiling)
    frames = Counter[tuple[int, int]]()
    for bucket, count in counts:
        frames[bucket.height, bucket.width] += count * bucket.num_frames
    # A CPU gains nothing from a batch, a GPU does.
    batch = 1 if here() == "cpu" else max(bucket.num_frames for bucket, _ in counts)
    return sum(count * _seconds_per_frame(encode, (batch, *size, 3)) for size, count in frames.items())


def here() -> str:
    """The device that this machine would encode on."""
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def _seconds_per_frame(encode: object, shape: tuple[int, ...]) -> float:
    assert callable(encode)
    frames = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    encode(frames)
    start = time.perf_counter()
    encode(frames)
    return (time.perf_counter() - start) / shape[0]
