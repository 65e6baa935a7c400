"""What decides the bytes of a shard set, and presets for the systems of the paper."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ClipForm:
    """One form of clip to cut from every source.

    Attributes:
        num_frames: frames of a clip.
        fps: frames per second, a whole number or a fraction such as 15/8.
        stride_s: seconds between the starts of clips; 0 is back to back.
    """

    num_frames: int
    fps: str
    stride_s: float = 0.0

    def __post_init__(self) -> None:
        try:
            rate = Fraction(self.fps)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"fps={self.fps!r} is no frame rate; write 30, 7.5 or 15/2") from None
        if self.num_frames < 1 or rate <= 0 or self.stride_s < 0:
            raise ValueError(f"clip form {self} needs num_frames >= 1, fps > 0 and stride_s >= 0")

    @property
    def rate(self) -> Fraction:
        """Frame rate, exact."""
        return Fraction(self.fps)

    @property
    def stride(self) -> Fraction:
        """Seconds between starts, exact."""
        return Fraction(self.stride_s) or self.num_frames / self.rate


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where a source is cut into shots; no clip spans two.

    Attributes:
        detect: look for hard cuts, fades and dissolves at several frame rates; else each source is one shot.
        transnet: weights of TransNetV2 (safetensors, at this path on every machine); the network then does the looking.
        threshold: how much a frame must stand out from its neighbours; not used by the network.
        min_shot_s: shorter shots are left out.
    """

    detect: bool = False
    transnet: str = ""
    threshold: float = 3.0
    min_shot_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which clips are left out; each refusal is a row with its reason and score.

    Attributes:
        max_upscale: a source may be enlarged by this factor at most, else `too_small`.
        max_pixels: a larger frame is `too_large`: more likely a bomb than a video.
        measure: decode a few frames per clip at planning time and store scores.
        min_motion: mean optical flow between measured frames, pixels at 64 rows; below is `static`.
        luminance: (lowest, highest) mean luminance, 0 to 255; outside is `dark` or `bright`.
        min_sharpness: variance of the Laplacian at 128 rows; below is `blurred`.
        max_text: share of the frame that overlaid text may cover; above is `text`.
        max_duplicate_bits: perceptual hashes of two clips that differ in at most this many of 256 bits are `duplicate`;
            -1 compares none.
    """

    max_upscale: float = 2.0
    max_pixels: int = 8192 * 4320
    measure: bool = False
    min_motion: float = 0.02
    luminance: tuple[float, float] = (4.0, 250.0)
    min_sharpness: float = 2.0
    max_text: float = 0.2
    max_duplicate_bits: int = 6


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Everything about preprocessing that decides bytes, except the autoencoder and the corpus.

    Attributes:
        clips: forms to cut.
        sizes: (height, width) to choose from by the source's aspect; pixels.
        seed: of the permutation that deals sources to groups.
        shard_bytes: size of a group of sources, bytes of latents.
        min_groups: small corpora are split into about this many groups all the same.
        precision: arithmetic of the encoder.
        tiling: encode large frames in overlapping tiles, for less memory; not the same bytes as without.
        faces: a YuNet face detector (ONNX, at this path on every machine); faces it finds are blurred before encoding.
        mean_only: store the mean without the variance: half the size, no resampling in training.
        cuts, filters: see there.
    """

    clips: tuple[ClipForm, ...]
    sizes: tuple[tuple[int, int], ...]
    seed: int = 0
    shard_bytes: int = 128 * MIB
    min_groups: int = 8
    precision: str = "float32"
    tiling: bool = False
    faces: str = ""
    mean_only: bool = False
    cuts: Cuts = field(default_factory=Cuts)
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        if not self.clips or not self.sizes:
            raise ValueError("clips and sizes must not be empty")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={self.precision!r} is neither float32 nor bfloat16")
        if self.shard_bytes < 1 or self.min_groups < 1:
            raise ValueError(f"shard_bytes={self.shard_bytes} and min_groups={self.min_groups} must be positive")
        if self.cuts.transnet and not self.cuts.detect:
            raise ValueError("cuts.transnet is given but cuts.detect is False; add --cuts.detect True")

    @property
    def digest(self) -> str:
        """Identify the config."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Who does the work; decides speed, not bytes.

    Attributes:
        decoders: decoder processes; 0 is one for every two CPUs.
        encoders: encoder actors; 0 is one per GPU, or without GPU one per CPU, but no more than one for eight groups.
        gpus_per_encoder: may be a fraction; without GPU it is not used.
        decoder_memory_bytes: address space of a decoder process.
        decoder_timeout_s: a decoder that is silent for longer is killed.
    """

    decoders: int = 0
    encoders: int = 0
    gpus_per_encoder: float = 1.0
    decoder_memory_bytes: int = 4096 * MIB
    decoder_timeout_s: float = 120.0


def tiny() -> PreprocessConfig:
    """Clips of the tiny model preset."""
    return PreprocessConfig(clips=(ClipForm(num_frames=8, fps="4", stride_s=1.0),), sizes=((64, 128),))


def synthetic_driving() -> PreprocessConfig:
    """Clips for all stages of the synthetic-driving system: 12 frames at 15/8 fps, of which training takes 8."""
    # Five frames of the faster rates are one gap of the slower: 2 -> 5 frames.
    gaps = (ClipForm(num_frames=5, fps="15/2", stride_s=0.8), ClipForm(num_frames=5, fps="30", stride_s=0.8))
    return PreprocessConfig(clips=(ClipForm(num_frames=12, fps="15/8"), *gaps), sizes=((128, 256),))


def driving() -> PreprocessConfig:
    """The paper's driving models: 10 key frames at 2 fps, 5 frames at 7.5 and 30 fps, 128x256. Source: table 6, H.1."""
    return PreprocessConfig(clips=_cascade(10, "2"), sizes=((128, 256),), cuts=Cuts(detect=True))


def mountain_biking() -> PreprocessConfig:
    """The paper's mountain biking models: 8 key frames at 15/8 fps, 128x256. Source: table 6, I.2."""
    return PreprocessConfig(clips=_cascade(8, "15/8"), sizes=((128, 256),), cuts=Cuts(detect=True))


def text_to_video() -> PreprocessConfig:
    """The paper's text-to-video models: 8 key frames at 2 fps, 320x512, with the aspects around it. Source: table 6."""
    return PreprocessConfig(
        clips=_cascade(8, "2"),
        sizes=((320, 512), (384, 384), (512, 320)),
        cuts=Cuts(detect=True),
        filters=Filters(measure=True),
    )


def _cascade(num_keyframes: int, fps: str) -> tuple[ClipForm, ...]:
    # Five frames of the faster rates are one gap of the slower: 2 -> 5 frames.
    return (
        ClipForm(num_frames=num_keyframes, fps=fps, stride_s=1.0),
        ClipForm(num_frames=5, fps="15/2", stride_s=2.0),
        ClipForm(num_frames=5, fps="30", stride_s=2.0),
    )


PRESETS: dict[str, Callable[[], PreprocessConfig]] = {
    "tiny": tiny,
    "synthetic-driving": synthetic_driving,
    "driving": driving,
    "mountain-biking": mountain_biking,
    "text-to-video": text_to_video,
}
