"""`python -m preprocessing synthesize OUT`: draw a synthetic driving corpus."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from infra.cli import ExitCode, parse
from preprocessing.synthetic.corpus import CorpusSettings, is_complete, synthesize

# Size, rate and length of a clip.
PRESETS: dict[str, tuple[int, int, str, float]] = {
    "tiny": (64, 128, "8", 8.0),
    "standard": (128, 256, "10", 8.0),
    "smooth": (128, 256, "30", 8.0),
}


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Draw a corpus of driving clips with exact labels; running it again does nothing.

    Attributes:
        out: folder to write `000000.mp4` ... and `labels.parquet` to.
        clips: how many.
        seed: of the corpus.
        preset: tiny (64x128, 8 fps), standard (128x256, 10 fps) or smooth (128x256, 30 fps), 8 s each.
        height, width, fps, seconds: override the preset; fps may be a fraction such as 15/2.
        noise: camera noise, standard deviation as a share of white.
        workers: processes; 0 is one per CPU.
    """

    out: Annotated[Path, tyro.conf.Positional]
    clips: int = 300
    seed: int = 0
    preset: Literal["tiny", "standard", "smooth"] = "standard"
    height: int | None = None
    width: int | None = None
    fps: str | None = None
    seconds: float | None = None
    noise: float = 0.004
    workers: int = 0

    def settings(self) -> CorpusSettings:
        """Resolve the preset."""
        height, width, fps, seconds = PRESETS[self.preset]
        return CorpusSettings(
            clips=self.clips,
            seed=self.seed,
            height=self.height or height,
            width=self.width or width,
            fps=self.fps or fps,
            seconds=self.seconds or seconds,
            noise=self.noise,
        )


def main(arguments: Sequence[str]) -> ExitCode:
    """Draw the corpus, with a progress bar on a terminal."""
    command = parse(Synthesize, arguments, program="python -m preprocessing synthesize")
    settings = command.settings()
    if is_complete(command.out, settings):
        print(f"nothing to do: {command.out} holds these {settings.clips} clips already")
        return ExitCode.DONE
    command.out.mkdir(parents=True, exist_ok=True)
    foreign = sorted(
        {path.name for path in command.out.glob("*.mp4")} - {f"{i:06d}.mp4" for i in range(settings.clips)}
    )
    if foreign:
        raise ValueError(f"{command.out} holds other videos, such as {foreign[0]}; give an empty folder")
    workers = command.workers or os.cpu_count() or 1
    for _ in tqdm(synthesize(command.out, settings, workers), total=settings.clips, unit="clip", disable=None):
        pass
    (command.out / "synthesize.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
    print(f"{settings.clips} clips of {settings.num_frames} frames {settings.height}x{settings.width} in {command.out}")
    return ExitCode.DONE
