"""The gates of preprocessing that need neither Ray nor a server: each function returns a figure."""

import io
import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.cli import ExitCode
from pipelines import video_decode
from pipelines.shard_format import Bucket, LatentClip, ShardConfig
from pipelines.shard_writer import write_shards
from pipelines.shards import open_shards
from pipelines.video_decode import fit, probe
from pipelines.video_encode import encode_mp4
from preprocessing import looks
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.encoder import find_autoencoder
from preprocessing.export import write_webdataset
from preprocessing.plan import Looked, make_plan
from preprocessing.run import execute
from preprocessing.sources import Source, find_sources
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene
from preprocessing.windows import cut_windows
from tests.preprocessing.conftest import SerialEngine, write_video
from tests.preprocessing.test_golden import GOLDEN

try:
    import webdataset
except ImportError:
    webdataset = None

SMALL = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),), min_groups=4)


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of this process in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def fast_source(folder: Path) -> Path:
    """A drive at 30 frames a second, 360x640, 8 s."""
    path = folder / "fast.mp4"
    if not path.exists():
        drive = Drive(draw_scene(2, 3), 8.0, 180, 320)
        frames = np.stack([drive.frame(i / 30).image for i in range(240)]).repeat(2, 1).repeat(2, 2)
        encode_mp4(path, frames, Fraction(30), quality=23)
    return path


def decode_bound(folder: Path) -> float:
    """P2: CPU time of decode-everything-then-stride over ours, 30 -> 2 fps; both give the same frames."""
    path = str(fast_source(folder))
    config = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="2"),), sizes=((128, 224),))
    [sight] = looks.look(path, config)
    plan = make_plan([Looked(source=Source(uri=path, name="a", size_bytes=1), sight=sight)], config)
    requests = [(i, clip.window.pts, (128, 224)) for i, clip in enumerate(plan.clips)]
    wanted = {pts for clip in plan.clips for pts in clip.window.pts}

    def everything() -> list[np.ndarray]:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        return [fit(image, 128, 224) for pts, image in frames if pts in wanted]

    ours = np.concatenate(
        [frames for _, frames in sorted(looks.decode_clips(path, sight.info, requests), key=lambda x: x[0])]
    )
    np.testing.assert_array_equal(ours, np.stack(everything()))
    ratios = []
    for _ in range(5):
        theirs = cpu_s(everything)
        ratios.append(theirs / cpu_s(lambda: list(looks.decode_clips(path, sight.info, requests))))
    return statistics.median(ratios)


def decode_passes(folder: Path) -> float:
    """P3: frames that come out of the decoder for many windows, rates and sizes, over the frames of the source."""
    path = str(fast_source(folder))
    forms = tuple(ClipForm(num_frames=5, fps=fps, stride_s=0.5) for fps in ("2", "15/2", "10", "30"))
    info = probe(path)
    requests: list[looks.Request] = []
    for form in forms:
        for size in ((128, 224), (64, 112)):
            windows = cut_windows(info, [(info.start, info.end)], form, size)
            requests += [(len(requests) + i, window.pts, size) for i, window in enumerate(windows)]
    count = 0
    real = video_decode._frames

    def counted(*arguments: object) -> object:
        nonlocal count
        for frame in real(*arguments):  # type: ignore[arg-type]
            count += 1
            yield frame

    video_decode._frames = counted  # type: ignore[assignment]
    clips = len(list(looks.decode_clips(path, info, requests)))
    video_decode._frames = real
    assert clips == len(requests) > 50
    return count / len(info.pts)


def run_small(corpus: Path | str, shards: Path | str, vae: Path) -> ExitCode:
    """A run without Ray."""
    job = Job(corpus=str(corpus), shards=str(shards), checkpoint=str(vae), config=SMALL)
    return execute(job, find_sources(job.corpus), find_autoencoder(job.checkpoint), SerialEngine())


def peak_memory(folder: Path, vae: Path) -> float:
    """P4: peak memory of a run over 200 sources against one over 2, each in its own process."""
    peaks = []
    for count in (2, 200):
        corpus = folder / f"memory-{count}"
        for i in range(count):
            write_video(corpus / f"{i}.mp4", 24, seed=i)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, '.');"
            "from tests.benchmarks.preprocessing_gates import run_small; from tests.peak import peak_bytes;"
            f"run_small(Path({str(corpus)!r}), Path({str(folder / f'memory-shards-{count}')!r}), Path({str(vae)!r}));"
            "print('peak', peak_bytes())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    return peaks[1] / peaks[0]


def read_cost(folder: Path) -> tuple[str, float, float]:
    """P11: our CPU time to read latents and labels, over that of WebDataset and of an Arrow tensor column.

    Without the webdataset package a bare tarfile loop stands for it; the name of the reader is returned too.
    """
    bucket = Bucket(num_frames=8, height=320, width=512, rate="2")
    config = ShardConfig(
        autoencoder="x", autoencoder_digest="y", latent_kind="kl_moments", latent_channels=4, downsampling=8,
        scaling_factor=1.0, shift_factor=0.0, buckets=(bucket,),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    clips = [
        LatentClip(clip_id=f"{i:032d}", moments=rng.normal(size=(8, 8, 40, 64)).astype(np.float16), fps=2.0)
        for i in range(256)
    ]
    write_shards(folder / "read", config, {bucket: [clips]})
    shards = open_shards(str(folder / "read"))
    write_webdataset(folder / "tars", shards, shards.buckets[bucket])
    tar_path = folder / "tars" / "00000.tar"
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([clip.moments for clip in clips]))
    pq.write_table(pa.table({"latent": tensors}), folder / "read.parquet", row_group_size=25, compression="none")

    def ours() -> None:
        refs = shards.buckets[bucket]
        for i in range(0, len(refs), 25):
            assert shards.read(refs[i : i + 25])

    def tar_reader() -> None:
        with tarfile.open(tar_path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                content = file.read()
                assert np.load(io.BytesIO(content)).size if member.name.endswith(".npy") else json.loads(content)

    def webdataset_reader() -> None:
        samples = webdataset.WebDataset(str(tar_path), shardshuffle=False).decode()
        assert sum(sample["latent.npy"].size > 0 for sample in samples) == len(clips)

    reader, name = (tar_reader, "bare tarfile loop") if webdataset is None else (webdataset_reader, "WebDataset")

    def tensor_reader() -> None:
        file = pq.ParquetFile(folder / "read.parquet")
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, use_threads=False)["latent"].combine_chunks()
            assert column.to_numpy_ndarray().size

    rounds = [[cpu_s(call) for call in (ours, reader, tensor_reader)] for _ in range(5)]
    own, tar_s, tensor_s = (min(column) for column in zip(*rounds, strict=True))
    return name, own / tar_s, own / tensor_s


def worst_time_error(folder: Path) -> float:
    """P14: worst distance of a frame from its time, in source frames (half is the limit)."""
    worst = 0.0
    for name, rate in (("film", Fraction(24000, 1001)), ("sport", Fraction(60000, 1001)), ("pal", Fraction(25))):
        path = folder / f"{name}.mp4"
        encode_mp4(path, np.zeros((120, 16, 16, 3), np.uint8), rate)
        worst = max(worst, _time_error(probe(str(path)), rate))
    GOLDEN["vfr.mp4"][0](folder / "vfr.mp4")
    return max(worst, _time_error(probe(str(folder / "vfr.mp4")), None))


def _time_error(info: video_decode.VideoInfo, rate: Fraction | None) -> float:
    worst = Fraction(0)
    gaps = [(b - a) * info.time_base for a, b in zip(info.pts[:-1], info.pts[1:], strict=True)]
    for fps in (Fraction(15, 8), Fraction(2), Fraction(15, 2), Fraction(30)):
        times = [info.start + k / fps for k in range(int((info.end - info.start) * fps) + 1)]
        for time_, pts in zip(times, info.nearest(times), strict=True):
            gap = 1 / rate if rate else max(gaps)
            worst = max(worst, (abs(pts * info.time_base - time_) - (info.time_base if rate else 0)) / gap)
    return float(worst)
