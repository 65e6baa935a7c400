"""The same work as others do it: a plain PyAV + diffusers + webdataset loop, naive Ray Data, Daft.

What is not installed is left out of the figures; none of it is a dependency.
"""

import importlib.util
import io
import shutil
import statistics
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from infra.cluster import connect
from pipelines.video_decode import fit
from preprocessing import looks
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.encoder import load_encoder
from preprocessing.plan import Looked, make_plan
from preprocessing.sources import Source
from tests.benchmarks.preprocessing_gates import cpu_s, fast_source
from tests.benchmarks.preprocessing_throughput import CLIP_FRAMES, SIZE, SOURCE_FRAMES, VAE, bare_cpu_s, tree_cpu_s
from tests.preprocessing.test_golden import GOLDEN


def has(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def decoded(path: str, size: tuple[int, int]) -> list[np.ndarray]:
    """All frames, as a plain loop reads them."""
    with av.open(path) as container:
        return [fit(frame.to_ndarray(format="rgb24"), *size) for frame in container.decode(video=0)]


def efficiency(folder: Path, frames: int) -> dict[str, float]:
    """P1: CPU of the bare encoder over that of the whole loop, per frame; corpus and autoencoder are those of P1."""
    videos = sorted((folder / f"throughput-{SIZE[1]}").glob("*.mp4"))[: frames // SOURCE_FRAMES]
    bare = bare_cpu_s(VAE, SIZE)
    plain = _plain_loop(videos, folder / "plain.tar")
    between = bare_cpu_s(VAE, SIZE)
    naive = _naive_ray(videos, folder / "naive")
    after = bare_cpu_s(VAE, SIZE)
    return {
        f"plain PyAV + diffusers + tar loop, {frames} frames": (bare + between) / 2 / plain,
        f"naive Ray Data, start-up excluded, {frames} frames": (between + after) / 2 / naive,
    }


def _plain_loop(videos: list[Path], out: Path) -> float:
    """CPU seconds a frame."""
    encode = load_encoder(VAE, "float32", "cpu")
    done = 0

    def loop() -> None:
        nonlocal done
        with tarfile.open(out, "w") as tar:
            for video in videos:
                frames = decoded(str(video), SIZE)
                for start in range(0, len(frames) - CLIP_FRAMES + 1, CLIP_FRAMES):
                    content = io.BytesIO()
                    np.save(content, encode(np.stack(frames[start : start + CLIP_FRAMES])))
                    member = tarfile.TarInfo(f"{video.stem}-{start}.npy")
                    member.size = content.tell()
                    content.seek(0)
                    tar.addfile(member, content)
                    done += CLIP_FRAMES

    return cpu_s(loop) / done


class Encoder:
    """The actor of naive Ray Data."""

    def __init__(self) -> None:
        self._encode = load_encoder(VAE, "float32", "cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode a batch of clips."""
        return {"id": batch["id"], "latent": np.stack([self._encode(clip.copy()) for clip in batch["frames"]])}


def read_clips(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All clips of a file."""
    frames = decoded(row["item"], SIZE)
    for start in range(0, len(frames) - CLIP_FRAMES + 1, CLIP_FRAMES):
        yield {"id": f"{row['item']}-{start}", "frames": np.stack(frames[start : start + CLIP_FRAMES])}


def _naive_ray(videos: list[Path], out: Path) -> float:
    """CPU seconds a frame, by the difference of a run over all videos and one over a few."""
    import ray  # noqa: PLC0415 (a peer)

    def run(some: Sequence[Path], into: Path) -> int:
        clips = ray.data.from_items([str(video) for video in some]).flat_map(read_clips, num_cpus=0.1)
        pool = ray.data.ActorPoolStrategy(size=1)
        clips.map_batches(Encoder, batch_size=4, compute=pool, num_cpus=0.1).write_parquet(str(into))
        return CLIP_FRAMES * ray.data.read_parquet(str(into)).count()

    few = max(len(videos) // 10, 1)
    with connect():
        few_s, few_frames = tree_cpu_s(lambda: run(videos[:few], out / "few"))
        many_s, many_frames = tree_cpu_s(lambda: run(videos[few:], out / "many"))
    return (many_s - few_s) / (many_frames - few_frames)


def decode_bound(folder: Path) -> dict[str, float]:
    """P2: CPU of others for one frame in fifteen, over ours, median of 5."""
    if not has("daft"):
        return {}
    import daft  # noqa: PLC0415 (a peer)

    path = str(fast_source(folder))
    config = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="2"),), sizes=((128, 224),))
    [sight] = looks.look(path, config)
    plan = make_plan([Looked(source=Source(uri=path, name="a", size_bytes=1), sight=sight)], config)
    requests = [(i, clip.window.pts, (128, 224)) for i, clip in enumerate(plan.clips)]

    def by_daft() -> None:
        frames = daft.read_video_frames(path, image_height=128, image_width=224, sample_interval_seconds=0.5)
        assert frames.count_rows() >= len(requests) * 4

    by_daft()
    ratios = [cpu_s(by_daft) / cpu_s(lambda: list(looks.decode_clips(path, sight.info, requests))) for _ in range(5)]
    return {"Daft read_video_frames, sample_interval_seconds=0.5": statistics.median(ratios)}


def broken_inputs(folder: Path) -> dict[str, float]:
    """P7: of one file for each way to be good or broken, the share of good ones that gives clips at all."""
    broken = [name for name, (_, allowed, _) in GOLDEN.items() if "good" not in allowed]
    good = [name for name, (_, allowed, clips) in GOLDEN.items() if allowed == {"good"} and clips]
    mixed = folder / "mixed"
    shutil.rmtree(mixed, ignore_errors=True)
    mixed.mkdir()
    for name in [*broken, *good]:
        GOLDEN[name][0](mixed / name)
    figures = {"plain loop that lets errors pass": _kept(mixed, good, lambda path: len(decoded(path, (32, 48))))}
    if has("daft"):
        import daft  # noqa: PLC0415 (a peer)

        def rows(paths: list[str]) -> int:
            return int(daft.read_video_frames(paths, image_height=32, image_width=48).count_rows())

        figures["Daft, one query over all files"] = _all_or_nothing(lambda: rows([str(p) for p in mixed.iterdir()]))
        figures["Daft, one query a file"] = _kept(mixed, good, lambda path: rows([path]))
    return figures


def _kept(mixed: Path, good: list[str], read: Callable[[str], int]) -> float:
    kept = 0
    for name in good:
        kept += _all_or_nothing(lambda name=name: read(str(mixed / name))) == 1.0  # type: ignore[misc]
    return kept / len(good)


def _all_or_nothing(read: Callable[[], int]) -> float:
    try:
        return float(read() > 0)
    except Exception:
        return 0.0
