"""What runs on one source inside the sandbox: look at it for the plan, and decode its clips."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipelines.video_decode import VideoError, VideoInfo, decode, fit, probe
from preprocessing import cuts
from preprocessing.config import Cuts, PreprocessConfig
from preprocessing.faces import blur_faces
from preprocessing.measure import measure, perceptual_hash
from preprocessing.windows import choose_size, cut_windows

Request = tuple[int, tuple[int, ...], tuple[int, int]]
"""A clip to decode: its place in the group, the pts of its frames, its (height, width)."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What was seen of a source.

    Attributes:
        digest: sha256 of its content.
        info: its frames.
        shots: (time of first, time of last frame) of each shot, seconds.
        scores: of each clip, by the pts of its frames; empty unless the config asks for them.
        hashes: perceptual hash of each clip, likewise.
    """

    digest: str
    info: VideoInfo
    shots: tuple[tuple[Fraction, Fraction], ...]
    scores: Mapping[tuple[int, ...], Mapping[str, float]] = field(default_factory=dict)
    hashes: Mapping[tuple[int, ...], bytes] = field(default_factory=dict)


def look(path: str, config: PreprocessConfig) -> Iterator[Sight]:
    """Digest a source, list its frames, find its shots, measure its clips; yields once.

    Raises:
        VideoError: if it is no usable video.
    """
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    info = probe(path)
    if info.height * info.width > config.filters.max_pixels:
        raise VideoError("too_large", f"{info.height}x{info.width} exceeds {config.filters.max_pixels} pixels")
    shots = [(info.start, info.end)]
    if config.cuts.detect:
        shots = _shots(path, info, config.cuts)
    sight = Sight(digest=digest, info=info, shots=tuple(shots))
    yield _measured(path, sight, config) if config.filters.measure else sight


def _shots(path: str, info: VideoInfo, settings: Cuts) -> list[tuple[Fraction, Fraction]]:
    if not settings.transnet:
        frames = np.stack([cuts.shrink(image) for _, image in decode(path, info, info.pts)])
        return cuts.find_shots(frames, info, settings)
    from preprocessing import transnet  # noqa: PLC0415 (torch, which decoding does not need)

    frames = np.stack([transnet.shrink(image) for _, image in decode(path, info, info.pts)])
    return cuts.between(transnet.find_transitions(frames, settings.transnet), info, settings.min_shot_s)


def _measured(path: str, sight: Sight, config: PreprocessConfig) -> Sight:
    size = choose_size(sight.info, config.sizes)
    clips = {window.pts for form in config.clips for window in cut_windows(sight.info, sight.shots, form, size)}
    samples = {pts: [pts[k] for k in sorted({0, min(1, len(pts) - 1), len(pts) // 2, len(pts) - 1})] for pts in clips}
    requests = [(place, tuple(samples[pts]), size) for place, pts in enumerate(sorted(clips))]
    scores, hashes = {}, {}
    for place, frames in decode_clips(path, sight.info, requests):
        pts = sorted(clips)[place]
        scores[pts], hashes[pts] = measure(list(frames)), perceptual_hash(frames[len(frames) // 2])
    return replace(sight, scores=scores, hashes=hashes)


def decode_clips(
    path: str, info: VideoInfo, requests: Sequence[Request], faces: str = ""
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode all clips of a source in one pass.

    Args:
        path: of the source.
        info: of the source.
        requests: the clips; frames that several share are decoded and scaled once.
        faces: detector whose finds are blurred, at the source's full size.

    Yields:
        (place, frames (t, H, W, 3) uint8), a clip as soon as its last frame is there.
    """
    open_clips = sorted(requests, key=lambda request: (request[1][-1], request[0]))
    first_use = {place: pts[0] for place, pts, _ in requests}
    wanted = sorted({time for _, pts, _ in requests for time in pts})
    sizes = sorted({size for _, _, size in requests})
    uses = {size: {time for _, pts, own in requests if own == size for time in pts} for size in sizes}
    ready: dict[tuple[int, tuple[int, int]], np.ndarray] = {}
    for time, decoded in decode(path, info, wanted):
        image = blur_faces(decoded, faces) if faces else decoded
        for size in sizes:
            if time in uses[size]:
                ready[time, size] = fit(image, *size, info)
        while open_clips and open_clips[0][1][-1] <= time:
            place, pts, size = open_clips.pop(0)
            yield place, np.stack([ready[t, size] for t in pts])
            oldest = min((first_use[p] for p, _, _ in open_clips), default=time + 1)
            ready = {key: frame for key, frame in ready.items() if key[0] >= oldest}
