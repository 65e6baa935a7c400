"""Scores of clips from a few frames each, and near-duplicates over a corpus. Pure functions."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from preprocessing.config import Filters

HASH_BITS = 256
# Hashes that differ in fewer bits than there are bands agree in one band at least.
_BANDS = 16


def measure(frames: Sequence[np.ndarray]) -> dict[str, float]:
    """Score a clip.

    Args:
        frames: its first two, its middle and its last frame, or fewer, (H, W, 3) uint8 RGB.

    Returns:
        motion: mean optical flow between the first two frames, pixels at 64 rows; luminance: mean, 0 to 255; contrast:
        its standard deviation; sharpness: variance of the Laplacian at 128 rows; text: share of the frame with strong
        edges that stay in place.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    last = grey[-1].astype(np.float32)
    return {
        "motion": _motion(_rows(grey[0], 64), _rows(grey[1], 64)) if len(grey) > 1 else 0.0,
        "luminance": float(last.mean()),
        "contrast": float(last.std()),
        "sharpness": float(cv2.Laplacian(_rows(grey[len(grey) // 2], 128), cv2.CV_32F).var()),
        "text": _standing_edges(grey),
    }


def refusal(scores: Mapping[str, float], filters: Filters) -> tuple[str, float] | None:
    """Say why a clip is left out, as (reason, score), or None."""
    low, high = filters.luminance
    tests = (
        ("static", scores["motion"], scores["motion"] < filters.min_motion),
        ("dark", scores["luminance"], scores["luminance"] < low),
        ("bright", scores["luminance"], scores["luminance"] > high),
        ("blurred", scores["sharpness"], scores["sharpness"] < filters.min_sharpness),
        ("text", scores["text"], scores["text"] > filters.max_text),
    )
    return next(((reason, score) for reason, score, is_met in tests if is_met), None)


def perceptual_hash(frame: np.ndarray) -> bytes:
    """Hash a frame by the signs of its 256 slowest cosines about their median: 32 bytes."""
    grey = cv2.cvtColor(cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    waves = cv2.dct(grey.astype(np.float32))[:16, :16].ravel()
    return np.packbits(waves > np.median(waves)).tobytes()


def duplicates(hashes: Sequence[bytes], sources: Sequence[str], max_bits: int) -> dict[int, tuple[int, int]]:
    """Find clips that look like an earlier one of another source.

    Args:
        hashes: of the clips, in their order.
        sources: of the clips; two clips of one source are never duplicates.
        max_bits: largest number of differing bits, below _BANDS.

    Returns:
        For each duplicate (the clip it repeats, differing bits); what is repeated is itself no duplicate.

    Raises:
        ValueError: if max_bits is too large for the search to be complete.
    """
    if max_bits >= _BANDS:
        raise ValueError(f"max_duplicate_bits={max_bits} must be below {_BANDS}")
    found: dict[int, tuple[int, int]] = {}
    if max_bits < 0:
        return found
    buckets: dict[tuple[int, bytes], list[int]] = {}
    width = HASH_BITS // 8 // _BANDS
    for i, own in enumerate(hashes):
        bands = [(band, own[band * width : (band + 1) * width]) for band in range(_BANDS)]
        near = sorted({j for band in bands for j in buckets.get(band, ()) if sources[j] != sources[i]})
        match = next(((j, bits) for j in near if (bits := _differing_bits(own, hashes[j])) <= max_bits), None)
        if match:
            found[i] = match
            continue
        for band in bands:
            buckets.setdefault(band, []).append(i)
    return found


def _differing_bits(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def _rows(grey: np.ndarray, rows: int) -> np.ndarray:
    width = max(round(grey.shape[1] * rows / grey.shape[0]), 16)
    return cv2.resize(grey, (width, rows), interpolation=cv2.INTER_AREA)


def _motion(a: np.ndarray, b: np.ndarray) -> float:
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(a, b, np.zeros((*a.shape, 2), np.float32))
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean())


def _standing_edges(grey: Sequence[np.ndarray]) -> float:
    """Share of 8x8 blocks (at 128 rows) in which edges are dense, strong and at the same place in all frames."""
    edges = [np.abs(cv2.Sobel(_rows(image, 128), cv2.CV_32F, 1, 0)) > 90 for image in grey]
    standing = np.logical_and.reduce(edges).astype(np.float32)
    rows, columns = standing.shape[0] // 8, standing.shape[1] // 8
    blocks = standing[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).mean((1, 3))
    return float((blocks > 0.25).mean())
