"""Rebuild the checkpoint that ships, from nothing, with the public commands; safe to repeat.

`python -m infra.world --out world` draws the corpora, trains every network of the synthetic-driving system in order and
puts the result into `pipelines/pretrained/`. Every step goes on where it stopped, so it may be killed at any time.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from infra.cli import ExitCode, IncompleteError, run_command

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "pipelines" / "pretrained" / "synthetic_driving"
PARTS = ("backbone", "boxes", "decoder", "temporal", "upsampler")
REAL_CLIPS = ROOT / "tests" / "data" / "driving"
HELD_OUT = "highway_cars_1.mp4"
REPEATS = "abcde"
"""The autoencoder sees each real clip five times as often: they are a fiftieth of the frames otherwise."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Draw the corpora, train all networks, and put the checkpoint where `--checkpoint synthetic-driving` finds it.

    Attributes:
        out: folder for corpora, shards, runs and the checkpoint.
        minutes: longest time for each training; default its preset's number of steps, which gives the shipped weights.
        ship: put the result into the package.
    """

    out: Path = Path("world")
    minutes: float | None = None
    ship: bool = True


def lines(world: World) -> list[Sequence[str]]:
    """List the commands in order; the comment of each says what it reads."""
    out, corpus, checkpoint = world.out, world.out / "corpus", world.out / "checkpoint"
    limit = () if world.minutes is None else ("--minutes", str(world.minutes))

    def draw(folder: Path, clips: int, seed: int, *options: str) -> Sequence[str]:
        given = ("--clips", str(clips), "--seed", str(seed), "--preset", "smooth", *options)
        return ("preprocessing", "synthesize", str(folder), *given)

    def train(name: str, *source: str) -> Sequence[str]:
        own = ("--out", str(checkpoint), "--run-dir", str(out / "runs"))
        return ("training", f"synthetic-driving-{name}", *source, *own, *limit)

    def shards(name: str) -> Sequence[str]:
        return ("--shards", str(out / "shards" / name))

    def encode(name: str) -> Sequence[str]:
        frozen = ("--preset", "synthetic-driving", "--checkpoint", str(checkpoint))
        return ("preprocessing", "run", str(corpus / name), str(out / "shards" / name), *frozen)

    return [
        draw(corpus / "sparse", 600, 0, "--fps", "15/8", "--seconds", "8"),
        draw(corpus / "smooth", 64, 1, "--seconds", "6.4"),
        draw(out / "large", 40, 2, "--height", "512", "--width", "1024", "--fps", "15/2", "--seconds", "1.0667"),
        train("autoencoder", "--corpus", str(out / "frames")),
        encode("sparse"),
        train("image", *shards("sparse")),
        train("boxes", *shards("sparse"), "--backbone", str(checkpoint / "backbone")),
        train("prediction", *shards("sparse")),
        encode("smooth"),
        train("interpolation", *shards("smooth")),
        train("decoder", "--corpus", str(corpus / "smooth")),
        train("upsampler-image", "--corpus", str(out / "large")),
        train("upsampler", "--corpus", str(out / "large")),
    ]


def run(world: World) -> ExitCode:
    """Carry the commands out."""
    started = time.monotonic()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{world.out.absolute() / 'mlflow.db'}")
    todo = lines(world)
    for number, line in enumerate(todo, start=1):
        if line[1] == "synthetic-driving-autoencoder":
            link_frames(world.out)
        print(f"[{number}/{len(todo)}] python -m {' '.join(line)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *line], cwd=ROOT, check=False).returncode
        if code not in (ExitCode.DONE, ExitCode.DONE_WITH_QUARANTINE):
            raise IncompleteError(f"`python -m {' '.join(line)}` ended with code {code}; run the same command again")
    if world.ship:
        ship(world.out / "checkpoint", SHIPPED)
    print(f"done in {(time.monotonic() - started) / 60:.0f} min")
    return ExitCode.DONE


def link_frames(out: Path) -> None:
    """Lay the drawn and the real clips side by side for the autoencoder."""
    frames = out / "frames"
    if frames.exists():
        return
    aside = out / ".frames"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(out / "corpus" / "sparse", aside / "sparse", copy_function=os.link)
    for repeat in REPEATS:
        (aside / "real" / repeat).mkdir(parents=True)
        for clip in sorted(REAL_CLIPS.glob("*.mp4")):
            if clip.name != HELD_OUT:
                shutil.copy(clip, aside / "real" / repeat)
    aside.rename(frames)


def ship(checkpoint: Path, target: Path) -> None:
    """Put the networks of a checkpoint into the package; the model card there stays."""
    for part in PARTS:
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(checkpoint / part, target / part)
    shutil.copy(checkpoint / "videoldm.json", target)


if __name__ == "__main__":
    run_command(lambda: run(tyro.cli(World, prog="python -m infra.world")))
