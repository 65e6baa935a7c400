"""`python -m training gallery --checkpoint CHECKPOINT`: pictures of what a checkpoint makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from infra import storage
from infra.cli import ExitCode
from pipelines.conditions import Wish
from pipelines.generation_plan import Request
from pipelines.networks import BOXES, UPSAMPLER, Networks
from pipelines.pixels import to_float, to_uint8
from pipelines.scenes import parse_scene
from pipelines.tensors import VideoFrames
from pipelines.video_io import read_clip
from training.evaluation import makers
from training.evaluation.pictures import Row, animation, sheet, with_boxes
from training.evaluation.reference import Window, find_videos, halves, large_boxes
from training.upsampling import shrink

SCENES = ("day,empty", "day,crowded", "night,empty", "night,crowded")
SEEDS = (1, 2, 3)
MAX_BYTES = 6 * 2**20


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make the gallery's pictures; those that are there are left alone.

    Attributes:
        checkpoint: checkpoint folder, local or s3://.
        corpus: labelled clips that training has not seen, for boxes and upsampling: keyframes/ and large/ in it, as
            `make reproduce` draws them.
        real: folder of real videos.
        out: folder for the pictures.
        only: names of the pictures to make; default all that the checkpoint can.
        minutes: length of the roll-out.
        steps: denoising steps; default the checkpoint's.
        seed: of the first clip.
        again: replace pictures that are there.
        threads: CPU threads.
    """

    checkpoint: str
    corpus: Path = Path(".cache/reproduce")
    real: Path = Path("tests/data/driving")
    out: Path = Path("docs/gallery")
    only: tuple[str, ...] = ()
    minutes: float = 1.0
    steps: int | None = None
    seed: int = 1
    again: bool = False
    threads: int = 2


@dataclass(frozen=True)
class Maker:
    """What makes the pictures."""

    networks: Networks
    arguments: Arguments

    def clip(self, request: Request, seed: int) -> VideoFrames:
        """A generated clip."""
        request = replace(request, num_steps=self.arguments.steps)
        return to_uint8(makers.generate(self.networks, request, seed)[0])

    def windows(self, part: str, frames: int, fps: Fraction) -> list[Window]:
        """Clips of a part of the corpus."""
        return halves(find_videos(self.arguments.corpus / part), count=8, num_frames=frames, fps=fps)[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the system's frames."""
        config = self.networks.first_config()
        return config.height, config.width

    @property
    def steps(self) -> tuple[str, ...]:
        """Stages that make key frames."""
        return tuple(step for step in ("keyframes", "prediction") if step in self.networks.stage_names())


Pictures = Iterator[tuple[str, bytes]]


def scenes(maker: Maker) -> Pictures:
    """Day and night, empty and crowded."""
    key_frames = Request(steps=maker.steps)  # type: ignore[arg-type]
    rows = [
        Row(words, maker.clip(replace(key_frames, wish=Wish(scene=parse_scene(words))), maker.arguments.seed))
        for words in SCENES
    ]
    yield "scenes.webp", sheet(rows, columns=6, width=256)
    # Twice as fast as the road, so that the loop moves.
    yield "scenes-moving.webp", animation(rows, 2 * maker.networks.first_config().fps, across=2, width=256)


def smooth(maker: Maker) -> Pictures:
    """Key frames at 2 fps, interpolated twice to 30."""
    request = Request(wish=Wish(scene=parse_scene("day,busy")), steps=(*maker.steps, "interpolation"), num_frames=65)  # type: ignore[arg-type]
    clip = maker.clip(request, maker.arguments.seed)
    rows = [
        Row("key frames, half a second apart", clip[::16]),
        Row("what interpolation puts into the first gap", clip[:17:2]),
    ]
    yield "interpolation.webp", sheet(rows, columns=9, width=176)
    yield "interpolation-moving.webp", animation([Row("interpolated to 30 fps", clip)], 30, across=1, width=256)


def boxes(maker: Maker) -> Pictures:
    """One layout of boxes, several futures."""
    crowded = [w for w in map(large_boxes, maker.windows("keyframes", 8, Fraction(15, 8))) if len(w.boxes) > 1]
    if not crowded:
        raise ValueError(f"no clip of {str(maker.arguments.corpus)!r} begins with two vehicles; give more by --corpus")
    # Boxes lie from large to small: the clip that shows two vehicles best.
    window = max(crowded, key=lambda w: w.boxes[1][2] - w.boxes[1][0])
    given = window.boxes[: maker.networks.box_encoder.config.max_boxes]
    real = makers.read_window(replace(window, num_frames=1), maker.size)[0]
    rows = [Row("the boxes, drawn on the clip they were taken from", with_boxes(to_uint8(real), given))]
    for seed in range(maker.arguments.seed, maker.arguments.seed + len(SEEDS)):
        clip = maker.clip(Request(wish=Wish(boxes=given), steps=("image", "prediction"), num_frames=8), seed)
        rows.append(Row(f"a future, seed {seed}", torch.cat([with_boxes(clip[:1], given), clip[1:]])))
    yield "boxes.webp", sheet(rows, columns=6, width=256)


def rollout(maker: Maker) -> Pictures:
    """A minute of key frames."""
    request = Request(wish=Wish(scene=parse_scene("day,busy")), steps=maker.steps, minutes=maker.arguments.minutes)  # type: ignore[arg-type]
    clip = maker.clip(request, maker.arguments.seed)
    seconds = 60 * maker.arguments.minutes
    parts = torch.chunk(clip, 4)
    rows = [Row(f"from {seconds * i / 4:.0f} s", part) for i, part in enumerate(parts)]
    yield "rollout.webp", sheet(rows, columns=8, width=192)


def upsampling(maker: Maker) -> Pictures:
    """A real clip shrunk four times and brought back."""
    window = maker.windows("large", 4, Fraction(30))[0]
    height, width = maker.size
    large = makers.read_window(window, (4 * height, 4 * width))
    middle = large[..., height : 3 * height, width : 3 * width]
    small = shrink(middle)
    seed, steps = maker.arguments.seed, maker.arguments.steps
    again = makers.upsample(maker.networks, middle, "video", seed, steps)
    rows = [
        Row("low resolution, pixels repeated", to_uint8(small.repeat_interleave(4, 3).repeat_interleave(4, 4)[0, :2])),
        Row("upsampled four times", to_uint8(again[0, :2])),
        Row("the original", to_uint8(middle[0, :2])),
    ]
    yield "upsampling.webp", sheet(rows, columns=2, width=2 * width)


def real(maker: Maker) -> Pictures:
    """Real clips, and what comes back of them."""
    rows = []
    for path in sorted(maker.arguments.real.glob("*.mp4"))[:3]:
        clip = read_clip(str(path), num_frames=8, fps=8, size=maker.size)
        again = makers.reconstruct(maker.networks, to_float(clip)[None], "video")
        rows += [Row(f"{path.stem}, real", clip), Row("encoded and decoded", to_uint8(again[0]))]
    yield "real.webp", sheet(rows, columns=5, width=256)


def continued(maker: Maker) -> Pictures:
    """A real first frame, continued."""
    rows = []
    for path in sorted(maker.arguments.real.glob("*.mp4"))[:2]:
        picture = read_clip(str(path), num_frames=1, fps=8, size=maker.size)
        clip = maker.clip(Request(picture=picture, steps=("prediction",), num_frames=8), maker.arguments.seed)
        rows.append(Row(f"{path.stem}: a real first frame, continued", clip))
    yield "continued.webp", sheet(rows, columns=6, width=256)


PICTURES: Mapping[str, Callable[[Maker], Pictures]] = {
    "scenes": scenes,
    "boxes": boxes,
    "rollout": rollout,
    "interpolation": smooth,
    "upsampling": upsampling,
    "real": real,
    "continued": continued,
}


def needs(networks: Networks) -> dict[str, bool]:
    """Whether a checkpoint has what each picture needs."""
    held = networks.stage_names()
    found = dict.fromkeys(PICTURES, True)
    found["scenes"] = networks.condition_kind == "scene"
    found["boxes"] = networks.has(BOXES) and "prediction" in held
    found["rollout"] = found["continued"] = "prediction" in held
    found["interpolation"] = "interpolation" in held
    found["upsampling"] = networks.has(f"temporal/{UPSAMPLER}")
    return found


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line and make what is missing."""
    parsed = tyro.cli(Arguments, args=list(arguments), prog="python -m training gallery")
    unknown = [name for name in parsed.only if name not in PICTURES]
    if unknown:
        raise ValueError(f"no picture {unknown[0]!r}; there are {', '.join(PICTURES)}")
    torch.set_num_threads(parsed.threads)
    maker = Maker(Networks(parsed.checkpoint), parsed)
    parsed.out.mkdir(parents=True, exist_ok=True)
    can = needs(maker.networks)
    for name in tqdm(parsed.only or PICTURES, unit="picture", disable=None):
        if not can[name]:
            print(f"{name}: left out, the checkpoint has not what it needs")
        elif parsed.again or not (parsed.out / f"{name}.webp").exists():
            for file, data in PICTURES[name](maker):
                storage.write_atomic(str(parsed.out / file), data)
                print(f"{parsed.out / file}: {len(data) / 2**10:.0f} KiB")
    total = sum(path.stat().st_size for path in parsed.out.glob("*.webp"))
    if total > MAX_BYTES:
        raise ValueError(f"{parsed.out} holds {total / 2**20:.1f} MiB of pictures; the limit is {MAX_BYTES / 2**20:g}")
    return ExitCode.DONE
