"""The same work as others do it: a plain PyAV + diffusers + webdataset loop, naive Ray Data, Daft.

What is not installed is left out of the figures; none of it is a dependency.
"""

import importlib.util
import io
import shutil
import statistics
import tarfile
from collections.abc import Callable, Iterator
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
from tests.benchmarks.preprocessing_throughput import SIZE, bare_cpu_s, tree_cpu_s
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
    videos = sorted((folder / "throughput").glob("*.mp4"))[: max(frames // 80, 2)]
    vae = folder / "throughput-vae"
    bare = bare_cpu_s(vae)
    figures = {"plain PyAV + diffusers + tar loop": _plain_loop(videos, vae, folder / "plain.tar", bare)}
    figures["naive Ray Data (start-up included)"] = _naive_ray(videos, vae, folder / "naive", bare)
    return figures


def _plain_loop(videos: list[Path], vae: Path, out: Path, bare: float) -> float:
    encode = load_encoder(vae, "float32", "cpu")
    done = 0

    def loop() -> None:
        nonlocal done
        with tarfile.open(out, "w") as tar:
            for video in videos:
                frames = decoded(str(video), SIZE)
                for start in range(0, len(frames) - 7, 8):
                    content = io.BytesIO()
                    np.save(content, encode(np.stack(frames[start : start + 8])))
                    member = tarfile.TarInfo(f"{video.stem}-{start}.npy")
                    member.size = content.tell()
                    content.seek(0)
                    tar.addfile(member, content)
                    done += 8

    spent = cpu_s(loop)
    return bare * done / spent


class Encoder:
    """The actor of naive Ray Data."""

    def __init__(self, vae: Path) -> None:
        self._encode = load_encoder(vae, "float32", "cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode a batch of clips."""
        return {"id": batch["id"], "latent": np.stack([self._encode(clip.copy()) for clip in batch["frames"]])}


def read_clips(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All clips of a file."""
    frames = decoded(row["item"], SIZE)
    for start in range(0, len(frames) - 7, 8):
        yield {"id": f"{row['item']}-{start}", "frames": np.stack(frames[start : start + 8])}


def _naive_ray(videos: list[Path], vae: Path, out: Path, bare: float) -> float:
    import ray  # noqa: PLC0415 (a peer)

    with connect():
        start = tree_cpu_s()
        clips = ray.data.from_items([str(video) for video in videos]).flat_map(read_clips, num_cpus=0.1)
        pool = ray.data.ActorPoolStrategy(size=1)
        latents = clips.map_batches(Encoder, fn_constructor_args=(vae,), batch_size=4, compute=pool, num_cpus=0.1)
        latents.write_parquet(str(out))
        spent = tree_cpu_s() - start
        done = ray.data.read_parquet(str(out)).count() * 8
    return bare * done / spent


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
