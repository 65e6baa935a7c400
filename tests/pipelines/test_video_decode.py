import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipelines import video_decode
from pipelines.video_decode import VideoError, decode, fit, probe
from pipelines.video_io import read_clip, write_mp4

REAL = Path(__file__).parents[1] / "data" / "driving" / "highway_cars_1.mp4"


def numbered(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Frames whose brightness tells their number: 10 levels apart, far above coding error."""
    levels = (torch.arange(count) % 22 * 11).to(torch.uint8)
    return levels[:, None, None, None].expand(count, height, width, 3).contiguous()


def decode_all(path: str) -> None:
    info = probe(path)
    list(decode(path, info, info.pts))


def number_of(image: np.ndarray) -> int:
    return round(float(image.mean()) / 11)


def video_stream(out: Any, codec: str, rate: int, **options: str) -> Any:
    return out.add_stream(codec, rate=rate, options=options)


def write_vfr(path: Path, times_ms: list[int], codec: str = "libx264", container: str = "mp4", **options: str) -> None:
    with av.open(str(path), "w", format=container) as out:
        stream = video_stream(out, codec, 1000, **options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(times_ms, numbered(len(times_ms)).numpy(), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_probe_lists_every_frame_of_a_real_clip_without_decoding_them() -> None:
    info = probe(str(REAL))
    with av.open(str(REAL)) as container:
        decoded = [frame.pts for frame in container.decode(video=0)]
    assert list(info.pts) == decoded
    assert (info.height, info.width, info.codec, info.rotation) == (144, 256, "h264", 0)
    assert info.fps == 8


def test_decode_picks_exactly_the_wanted_frames_across_key_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "5", "bf": "2", "crf": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image in numbered(21).numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    info = probe(str(path))
    assert len(info.key_pts) == 5
    for wanted in ([0], [20], [3, 4, 17], [1, 6, 11, 16], list(range(21)), [19, 2]):
        got = list(decode(str(path), info, [info.pts[i] for i in wanted]))
        assert [number_of(image) for _, image in got] == sorted(wanted)


def test_frames_nothing_refers_to_are_skipped_unless_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_vfr(
        path,
        [i * 40 for i in range(21)],
        crf="1",
        **{"x264-params": "bframes=3:b-pyramid=none:b-adapt=0:scenecut=0:weightp=0"},
    )
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert sum(video_decode._is_unreferenced(p, stream) for p in container.demux(stream) if p.size) > 8
    info = probe(str(path))
    for wanted in ([2, 9, 14], [20], [1, 2, 3]):
        got = list(decode(str(path), info, [info.pts[i] for i in wanted]))
        assert [number_of(image) for _, image in got] == wanted


def test_nearest_frame_of_a_variable_rate_is_within_half_a_source_frame(tmp_path: Path) -> None:
    times = [0, 33, 70, 170, 180, 190, 300, 420, 455, 500]
    write_vfr(tmp_path / "vfr.mp4", times, crf="1")
    info = probe(str(tmp_path / "vfr.mp4"))
    assert [round(float(pts * info.time_base) * 1000) for pts in info.pts] == times
    targets = [Fraction(k, 12) for k in range(6)]
    expected = [int(np.abs(np.array(times) - 1000 * float(t)).argmin()) for t in targets]
    clip = read_clip(str(tmp_path / "vfr.mp4"), num_frames=6, fps=12)
    assert [number_of(image) for image in clip.numpy()] == expected


def test_of_two_equally_near_frames_the_earlier_is_taken(tmp_path: Path) -> None:
    write_vfr(tmp_path / "a.mp4", [0, 100, 200, 300], crf="1")
    info = probe(str(tmp_path / "a.mp4"))
    half = [Fraction(50, 1000), Fraction(150, 1000), Fraction(250, 1000)]
    assert info.nearest(half) == info.pts[:3]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(60000, 1001), Fraction(25)])
@pytest.mark.parametrize("fps", [Fraction(15, 8), Fraction(2), Fraction(15, 2), Fraction(30)])
def test_worst_time_error_is_half_a_source_frame(tmp_path: Path, rate: Fraction, fps: Fraction) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, numbered(50, 16, 16), rate)
    info = probe(str(path))
    times = [info.start + k / fps for k in range(int((info.end - info.start) * fps) + 1)]
    errors = [abs(pts * info.time_base - time) for pts, time in zip(info.nearest(times), times, strict=True)]
    assert max(errors) <= 1 / (2 * rate) + info.time_base


def test_rotated_video_is_shown_upright(tmp_path: Path) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24] = 255
    write_mp4(tmp_path / "a.mp4", torch.from_numpy(np.stack([image] * 3)), 10, quality=1)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.find((65536).to_bytes(4, "big") + bytes(12) + (65536).to_bytes(4, "big"), content.find(b"tkhd"))
    # A quarter turn clockwise, as phones write it.
    matrix = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    info = probe(io.BytesIO(bytes(content)))
    assert (info.height, info.width) == (48, 32)
    [(_, shown)] = decode(io.BytesIO(bytes(content)), info, info.pts[:1])
    expected = np.rot90(image, -1)
    assert np.abs(shown.astype(int) - expected).mean() < 8


def test_wide_pixels_are_made_square() -> None:
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for image in numbered(3).numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    assert (probe(content).height, probe(content).width) == (32, 96)


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [
        ("libx264", "matroska", "yuv444p"),
        ("libx264", "mp4", "yuv420p10le"),
        ("mpeg4", "avi", "yuv420p"),
        ("libvpx-vp9", "webm", "yuv420p"),
        ("mpeg2video", "mpegts", "yuv420p"),
        ("libsvtav1", "mp4", "yuv420p"),
    ],
)
def test_other_codecs_and_containers_decode_to_the_right_frames(codec: str, container: str, pixels: str) -> None:
    content = io.BytesIO()
    with av.open(content, "w", format=container) as out:
        stream = video_stream(out, codec, 25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 80, 64, pixels, 2_000_000
        for image in numbered(12, 64, 80).numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    info = probe(content)
    assert len(info.pts) == 12
    got = [number_of(image) for _, image in decode(content, info, [info.pts[i] for i in (2, 7, 11)])]
    assert got == [2, 7, 11]


def test_unusable_files_say_why(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_mp4(tmp_path / "whole.mp4", numbered(40), 10)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.8)])
    for name, reason in (("text", "open"), ("empty", "open"), ("cut", "truncated")):
        with pytest.raises(VideoError) as caught:
            decode_all(str(tmp_path / f"{name}.mp4"))
        assert caught.value.reason == reason, name
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError) as caught:
        probe(sound)
    assert caught.value.reason == "no_video"


def test_fit_covers_and_cuts_evenly() -> None:
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 10:30] = 200
    assert (fit(image, 5, 10) == 200).all()
    np.testing.assert_array_equal(fit(image, 10, 40), image)
    checker = np.indices((8, 8)).sum(0)[..., None].repeat(3, 2) % 2 * 200
    assert (fit(checker.astype(np.uint8), 4, 4) == 100).all()
    assert fit(image, 20, 80).shape == (20, 80, 3)
