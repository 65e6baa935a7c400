import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.config import Filters
from preprocessing.measure import duplicates, measure, perceptual_hash, refusal
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene


def drive(clip: int = 5, size: tuple[int, int] = (128, 256)) -> list[np.ndarray]:
    own = Drive(draw_scene(3, clip), 3.0, *size)
    return [own.frame(time).image for time in (0.0, 0.25, 1.0, 2.0)]


def test_a_drive_is_kept_and_moves() -> None:
    scores = measure(drive())
    assert refusal(scores, Filters()) is None
    assert scores["motion"] > 0.3


def test_what_should_be_left_out_is() -> None:
    frames = drive()
    rng = np.random.default_rng(0)
    soft = [cv2.GaussianBlur(frame, (0, 0), 12) for frame in frames]
    letters = rng.choice([0, 255], (40, 100, 1)).repeat(3, 2).repeat(2, 1).astype(np.uint8)
    titled = [frame.copy() for frame in frames]
    for frame in titled:
        frame[20:60, 20:220], frame[70:110, 20:220] = letters, letters
    cases = {
        "static": [frames[0]] * 4,
        "dark": [(frame * 0.01 + rng.integers(0, 3, frame.shape)).astype(np.uint8) for frame in frames],
        "bright": [np.maximum(frame, 253) for frame in frames],
        "blurred": soft,
        "text": titled,
    }
    for reason, clip in cases.items():
        found = refusal(measure(clip), Filters(min_motion=0.02 if reason == "static" else -1.0))
        assert found is not None, reason
        assert found[0] == reason


def test_the_hash_survives_coding_and_size_and_tells_scenes_apart() -> None:
    own = perceptual_hash(drive()[1])
    noisy = np.clip(drive()[1].astype(int) + np.random.default_rng(0).integers(-6, 7, (128, 256, 3)), 0, 255).astype(
        np.uint8
    )
    assert set(duplicates([own, perceptual_hash(noisy)], ["a", "b"], 12)) == {1}
    others = [perceptual_hash(drive(clip)[1]) for clip in range(6, 12)]
    assert duplicates([own, *others], list("abcdefg"), 12) == {}


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.integers(0, 255), max_size=14, unique=True), limit=st.integers(0, 15), seed=st.integers(0, 99))
def test_no_near_duplicate_is_missed(flips: list[int], limit: int, seed: int) -> None:
    own = np.random.default_rng(seed).bytes(32)
    other = bytearray(own)
    for bit in flips:
        other[bit // 8] ^= 1 << bit % 8
    expected = {1: (0, len(flips))} if len(flips) <= limit else {}
    assert duplicates([own, bytes(other)], ["a", "b"], limit) == expected
    assert duplicates([own, bytes(other)], ["a", "a"], limit) == {}


def test_a_search_that_could_miss_is_refused() -> None:
    with pytest.raises(ValueError, match="below 16"):
        duplicates([b"0" * 32], ["a"], 16)
