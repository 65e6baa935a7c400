from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from pipelines.video_decode import probe
from pipelines.video_io import contact_sheet, read_clip, write_mp4

REAL = Path(__file__).parents[1] / "data" / "driving" / "highway_cars_1.mp4"


def moving_square(count: int) -> torch.Tensor:
    frames = torch.full((count, 32, 48, 3), 90, dtype=torch.uint8)
    for i in range(count):
        frames[i, 8:20, 2 + 3 * i : 14 + 3 * i, 0] = 220
    return frames


def test_write_mp4_is_deterministic_playable_and_keeps_rate_and_tags(tmp_path: Path) -> None:
    frames = moving_square(9)
    for name in ("a", "b"):
        write_mp4(tmp_path / f"{name}.mp4", frames, Fraction(24000, 1001), metadata={"title": "a road", "seed": "7"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.pix_fmt, stream.average_rate) == ("yuv420p", Fraction(24000, 1001))
        assert container.metadata["title"] == "a road"
        assert container.metadata["seed"] == "7"
    read = read_clip(str(tmp_path / "a.mp4"), num_frames=9)
    assert (read.float() - frames.float()).abs().mean() < 3


def test_write_mp4_refuses_odd_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_mp4(tmp_path / "a.mp4", torch.zeros(2, 15, 16, 3, dtype=torch.uint8), 8)
    assert not list(tmp_path.iterdir())


def test_read_clip_resizes_and_refuses_to_run_over_the_end() -> None:
    info = probe(str(REAL))
    clip = read_clip(str(REAL), num_frames=5, fps=2, start_s=1.0, size=(64, 128), info=info)
    assert clip.shape == (5, 64, 128, 3)
    with pytest.raises(ValueError, match="lasts"):
        read_clip(str(REAL), num_frames=50, fps=2)


def test_contact_sheet_shows_first_and_last_frame() -> None:
    frames = moving_square(9)
    png = np.frombuffer(contact_sheet([frames, frames], columns=3), np.uint8)
    sheet = np.asarray(cv2.imdecode(png, cv2.IMREAD_COLOR))[..., ::-1]
    assert sheet.shape == (64, 144, 3)
    np.testing.assert_array_equal(sheet[:32, :48], frames[0].numpy())
    np.testing.assert_array_equal(sheet[32:, 96:], frames[8].numpy())


def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    """x264 has read stale memory for pictures this small."""
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 255, (8, 6, 10, 3), np.uint8).repeat(8, 1).repeat(8, 2)[:, :, :-2].copy())
    seen = set()
    for _ in range(40):
        rng.bytes(int(rng.integers(100, 200_000)))
        write_mp4(tmp_path / "a.mp4", frames, 8)
        seen.add((tmp_path / "a.mp4").read_bytes())
    assert len(seen) == 1
