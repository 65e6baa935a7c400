"""Some forty files of a few kilobytes, each with the verdict it must get."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from preprocessing import looks
from preprocessing.config import ClipForm, Filters, PreprocessConfig
from preprocessing.plan import Looked, make_plan
from preprocessing.sandbox import Sandbox, SandboxError
from preprocessing.sources import Source

CONFIG = PreprocessConfig(
    clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 48),), filters=Filters(max_pixels=2048 * 2048)
)
Make = Callable[[Path], object]


def images(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    levels = (np.arange(count) % 22 * 11).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()
    frames[:, : height // 2, : width // 3] ^= 96
    return frames


def encode(
    path: Path, codec: str = "libx264", *, count: int = 20, rate: int = 10, pixels: str = "yuv420p",
    form: str | None = None, size: tuple[int, int] = (32, 48), audio: bool = False, **options: Any,
) -> None:  # fmt: skip
    front = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", format=form, container_options=front) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        sound: Any = out.add_stream("aac", rate=8000) if audio else None
        for image in images(count, *size):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
        if sound:
            _tone(out, sound)


def _tone(out: Any, stream: Any) -> None:
    for i in range(10):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 1024 * i
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def vfr(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(np.cumsum([60, 140] * 12).tolist(), images(24), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        _tone(out, out.add_stream("aac", rate=8000))


def rotated(path: Path) -> None:
    encode(path, form="mp4")
    content = bytearray(path.read_bytes())
    unity = [65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
    at = content.find(b"".join(v.to_bytes(4, "big") for v in unity), content.find(b"tkhd"))
    turned = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turned)
    path.write_bytes(content)


def cut_at(share: float, **options: Any) -> Make:
    def make(path: Path) -> None:
        encode(path, form="mp4", count=40, **options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def flipped(seed: int) -> Make:
    """Bytes changed in the middle of the coded pictures."""

    def make(path: Path) -> None:
        encode(path, form="mp4", count=40, movflags="faststart", crf="10")
        content = bytearray(path.read_bytes())
        start = content.find(b"mdat") + 700
        for at in np.random.default_rng(seed).integers(start, len(content) - 100, 25).tolist():
            content[at] ^= 0x5A
        path.write_bytes(content)

    return make


def only_head(path: Path) -> None:
    """The index is whole, of the pictures nothing is there."""
    encode(path, form="mp4", movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: content.find(b"mdat") + 4])


def overwritten(mark: bytes, after: int, length: int) -> Make:
    """Zeros over a part of the file that begins `after` bytes behind a mark."""

    def make(path: Path) -> None:
        encode(path, form="mp4", movflags="faststart")
        content = bytearray(path.read_bytes())
        start = content.find(mark) + after
        end = min(start + length, len(content))
        content[start:end] = bytes(end - start)
        path.write_bytes(content)

    return make


def cut_after(size: int, codec: str) -> Make:
    def make(path: Path) -> None:
        encode(path, codec)
        path.write_bytes(path.read_bytes()[:size])

    return make


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 6000, np.uint8).tobytes())


OPEN: dict[str, Any] = {"x264-params": "open-gop=1:keyint=6:bframes=3"}
FRONT: dict[str, Any] = {"movflags": "faststart"}
# x265 with threads corrupts memory on pictures this small.
HEVC: dict[str, Any] = {"x265-params": "pools=none:frame-threads=1:log-level=none"}
# Name -> (how it is made, verdicts allowed, number of clips if it is good).
GOLDEN: dict[str, tuple[Make, set[str], int]] = {
    "plain.mp4": (encode, {"good"}, 2),
    "b_frames.mp4": (lambda p: encode(p, bf="3", g="8"), {"good"}, 2),
    "open_gop.mp4": (lambda p: encode(p, **OPEN), {"good"}, 2),
    "all_intra.mp4": (lambda p: encode(p, g="1"), {"good"}, 2),
    "vfr.mp4": (vfr, {"good"}, 2),
    "rotated.mp4": (rotated, {"good"}, 2),
    "odd.mkv": (lambda p: encode(p, "ffv1", pixels="yuv444p", size=(33, 49)), {"good"}, 2),
    "444.mkv": (lambda p: encode(p, pixels="yuv444p"), {"good"}, 2),
    "422.mkv": (lambda p: encode(p, pixels="yuv422p"), {"good"}, 2),
    "10bit.mkv": (lambda p: encode(p, pixels="yuv420p10le"), {"good"}, 2),
    "hevc.mp4": (lambda p: encode(p, "libx265", size=(128, 192), **HEVC), {"good"}, 2),
    "vp9.webm": (lambda p: encode(p, "libvpx-vp9"), {"good"}, 2),
    "vp8.webm": (lambda p: encode(p, "libvpx"), {"good"}, 2),
    "av1.mp4": (lambda p: encode(p, "libsvtav1", size=(64, 96)), {"good"}, 2),
    "mpeg4.avi": (lambda p: encode(p, "mpeg4"), {"good"}, 2),
    "mpeg2.ts": (lambda p: encode(p, "mpeg2video", rate=25, count=50), {"good"}, 2),
    "h264.ts": (lambda p: encode(p, form="mpegts"), {"good"}, 2),
    "h264.mov": (encode, {"good"}, 2),
    "mjpeg.mov": (lambda p: encode(p, "mjpeg", pixels="yuvj420p"), {"good"}, 2),
    "prores.mov": (lambda p: encode(p, "prores_ks", pixels="yuv422p10le"), {"good"}, 2),
    "raw.y4m": (lambda p: encode(p, "wrapped_avframe", form="yuv4mpegpipe"), {"good"}, 2),
    "with_sound.mp4": (lambda p: encode(p, audio=True), {"good"}, 2),
    "sixty.mp4": (lambda p: encode(p, rate=60, count=120), {"good"}, 2),
    "one_frame.mp4": (lambda p: encode(p, count=1), {"good"}, 0),
    "short.mp4": (lambda p: encode(p, count=5), {"good"}, 0),
    "slow.mp4": (lambda p: encode(p, rate=2, count=20), {"good"}, 0),
    "wrong_name.avi": (lambda p: encode(p, form="mp4"), {"good"}, 2),
    "text.mp4": (lambda p: p.write_text("no video " * 400), {"open"}, 0),
    "empty.mp4": (lambda p: p.write_bytes(b""), {"open"}, 0),
    "zeros.mp4": (lambda p: p.write_bytes(bytes(5000)), {"open"}, 0),
    "picture.mp4": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300)), {"open", "no_frames", "decode"}, 0),
    "page.mp4": (lambda p: p.write_text("<html><h1>404 Not Found</h1></html>\n" * 90), {"open"}, 0),
    "archive.mp4": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 9), {"open"}, 0),
    "noise.mkv": (noise, {"open", "no_video", "no_frames"}, 0),
    "head.mkv": (cut_after(60, "libx264"), {"open", "no_video", "no_frames"}, 0),
    "head.webm": (cut_after(90, "libvpx"), {"open", "no_video", "no_frames"}, 0),
    "only_head.mp4": (only_head, {"truncated", "no_frames", "open"}, 0),
    "no_pictures.mp4": (overwritten(b"mdat", 4, 10**6), {"decode", "no_frames"}, 0),
    "no_codec.mp4": (overwritten(b"stsd", 4, 80), {"open", "no_video", "no_frames", "decode"}, 0),
    "no_moov.mp4": (cut_at(0.5), {"open"}, 0),
    "audio_only.mp4": (audio_only, {"no_video"}, 0),
    "too_large.mp4": (lambda p: encode(p, size=(2160, 3840), count=2, preset="ultrafast"), {"too_large"}, 0),
    "cut_10.mp4": (cut_at(0.1, **FRONT), {"open", "no_video", "decode"}, 0),
    **{f"cut_{k}0.mp4": (cut_at(k / 10, **FRONT), {"truncated"}, 0) for k in (4, 5, 6, 7, 8, 9)},
    **{f"flipped_{k}.mp4": (flipped(k), {"decode", "missing_frame", "no_frames", "good"}, 8) for k in range(3)},
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Any:
    box = Sandbox(memory_bytes=4 * 2**30, timeout_s=60)
    yield box
    box.close()


def verdict(path: Path, sandbox: Sandbox) -> tuple[str, int]:
    """What planning and decoding say of a file, and how many clips came out."""
    try:
        [sight] = sandbox.stream(looks.look, str(path), CONFIG)
        plan = make_plan([Looked(source=Source(uri=str(path), name=path.name, size_bytes=1), sight=sight)], CONFIG)
        requests = [(place, clip.window.pts, (32, 48)) for place, clip in enumerate(plan.clips)]
        clips = list(sandbox.stream(looks.decode_clips, str(path), sight.info, requests)) if requests else []
    except SandboxError as err:
        return err.reason, 0
    assert all(frames.shape == (4, 32, 48, 3) for _, frames in clips)
    return "good", len(clips)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_each_file_gets_its_verdict(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    make, allowed, clips = GOLDEN[name]
    make(tmp_path / name)
    found, count = verdict(tmp_path / name, sandbox)
    assert found in allowed
    if allowed == {"good"}:
        assert count == clips


def test_the_frames_are_the_right_ones_whatever_the_codec(tmp_path: Path, sandbox: Sandbox) -> None:
    for name in ("plain.mp4", "b_frames.mp4", "vp9.webm", "mpeg4.avi", "h264.ts", "mjpeg.mov", "10bit.mkv"):
        GOLDEN[name][0](tmp_path / name)
        [sight] = sandbox.stream(looks.look, str(tmp_path / name), CONFIG)
        plan = make_plan([Looked(source=Source(uri=name, name=name, size_bytes=1), sight=sight)], CONFIG)
        requests = [(place, clip.window.pts, (32, 48)) for place, clip in enumerate(plan.clips)]
        clips = dict(sandbox.stream(looks.decode_clips, str(tmp_path / name), sight.info, requests))
        # 10 -> 4 fps: times 0, .25, .5, .75 fall on frames 0, 2 (of 2 and 3 the earlier), 5, 7; the second clip 10 on.
        for clip, expected in ((clips[0], [0, 2, 5, 7]), (clips[1], [10, 12, 15, 17])):
            assert [round(float(frame[20:, 20:].mean()) / 11) for frame in clip] == expected, name


def test_bytes_in_memory_are_read_like_files() -> None:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for image in images(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    from pipelines.video_decode import probe  # noqa: PLC0415

    assert len(probe(content).pts) == 20
