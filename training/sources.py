"""Where samples come from: latent shards for diffusion models, videos for autoencoders and pixel models."""

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from fsspec.core import url_to_fs
from jaxtyping import UInt8
from torch import Tensor

from pipelines.shard_format import Bucket, LatentClip
from pipelines.shards import ClipRef, ShardSet
from pipelines.video_decode import VideoError, probe
from pipelines.video_io import read_clip
from training.config import TrainConfig
from training.task import Inputs

DEFAULT_FPS = 2.0
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def held_out(source: str, percent: int) -> bool:
    """Say whether a source video is kept for validation; a function of its name alone."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) % 100 < percent


class LatentSource:
    """Clips of a shard set.

    Args:
        shards: the set.
        use_bucket: which clip forms the run trains on.
        percent: share of the source videos kept for validation.
        validation: take those instead of the others.
    """

    def __init__(
        self, shards: ShardSet, *, use_bucket: Callable[[Bucket], bool], percent: int = 0, validation: bool = False
    ) -> None:
        self.shards = shards
        self.digest = shards.digest
        self.buckets = [
            {
                ref: shards.labels[ref].clip_id
                for ref in refs
                if held_out(shards.labels[ref].source, percent) == validation
            }
            for bucket, refs in shards.buckets.items()
            if use_bucket(bucket)
        ]

    def read(self, refs: Sequence[ClipRef]) -> list[LatentClip]:
        """See training.data.Source."""
        return self.shards.read(refs)


class VideoSource:
    """Short clips of the videos in a folder, scaled to one size: uint8 (t H W 3).

    Each video is one shard of the order, so that few are open at a time; its decoded frames are kept while in use.

    Args:
        uri: folder with videos, local or s3://.
        size: height and width of a frame.
        num_frames: frames of a clip; 1 for an image autoencoder.
        fps: frames per second taken of each video.
        percent: share of the videos kept for validation.
        validation: take those instead of the others.

    Raises:
        ValueError: if there is no usable video.
    """

    def __init__(
        self,
        uri: str,
        *,
        size: tuple[int, int],
        num_frames: int,
        fps: float,
        percent: int = 0,
        validation: bool = False,
    ) -> None:
        self._files, root = url_to_fs(uri)
        self._size, self._num_frames, self._fps = size, num_frames, Fraction(fps).limit_denominator(1001)
        found = sorted(path for path in self._files.find(root) if path.lower().endswith(VIDEO_SUFFIXES))
        self._paths = [path for path in found if held_out(path.removeprefix(root), percent) == validation]
        names = [path.removeprefix(root).lstrip("/") for path in self._paths]
        self.skipped: dict[str, str] = {}
        self.buckets = [
            {
                ClipRef(number, 0, row): f"{names[number]}#{row}"
                for number in range(len(names))
                for row in range(self._count(number, names[number]))
            }
        ]
        if not self.buckets[0] and not validation:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.skipped.items())[:3])
            raise ValueError(f"no usable video at {uri!r} ({reasons or 'no video file'}); give a folder with videos")
        stated = [f"{name} {self._files.size(path)}" for name, path in zip(names, self._paths, strict=True)]
        self.digest = hashlib.sha256("\n".join([*stated, str((size, num_frames, fps))]).encode()).hexdigest()
        # Four videos are mixed at a time by the order, and several steps are read ahead.
        self._frames = lru_cache(maxsize=16)(self._decode)

    def read(self, refs: Sequence[ClipRef]) -> list[UInt8[Tensor, "t H W 3"]]:
        """See training.data.Source."""
        clips = []
        for ref in refs:
            start = ref.row * self._num_frames
            clips.append(self._frames(ref.shard)[start : start + self._num_frames])
        return clips

    def _count(self, number: int, name: str) -> int:
        try:
            with self._files.open(self._paths[number], "rb") as file:
                info = probe(file)
        except VideoError as err:
            self.skipped[name] = str(err)
            return 0
        seconds = info.end - info.start + 1 / info.fps
        return max(0, int(seconds * min(self._fps, info.fps))) // self._num_frames

    def _decode(self, number: int) -> Tensor:
        with self._files.open(self._paths[number], "rb") as file:
            info = probe(file)
            fps = min(self._fps, info.fps)
            seconds = info.end - info.start + 1 / info.fps
            return read_clip(file, num_frames=int(seconds * fps), fps=fps, size=self._size, info=info)


def open_videos(config: TrainConfig, inputs: Inputs) -> tuple[VideoSource, VideoSource]:
    """Open the videos of a run: those to train on, and those held out (the same ones if none are).

    Raises:
        ValueError: if there is no folder or no usable video.
    """
    if inputs.corpus is None:
        raise ValueError(f"{config.name} trains on videos; give their folder with --corpus")
    data, uri = config.data, inputs.corpus

    def videos(validation: bool) -> VideoSource:
        return VideoSource(
            uri,
            size=(data.height, data.width),
            num_frames=data.num_frames,
            fps=data.fps[0] if data.fps else DEFAULT_FPS,
            percent=data.validation_percent,
            validation=validation,
        )

    source, held_out = videos(False), videos(True)
    return source, held_out if held_out.buckets[0] else source
