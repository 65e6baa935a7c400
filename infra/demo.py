"""The main job end to end, made of the public commands: corpus -> shards -> training -> service -> MP4.

It starts from the checkpoint that ships, shows what that makes, and fine-tunes it for some minutes on real clips.
`python -m infra.demo --out out --minutes 3` runs it; everything it makes lies below the folder it is given.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tyro
from openai import OpenAI, OpenAIError

from infra import demo_page
from infra.cli import ExitCode, IncompleteError, run_command
from infra.ports import free_port
from infra.world import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
REAL_CLIPS = ROOT / "tests" / "data" / "driving"
SERVICE_START_S = 180
CHECKPOINT = "synthetic-driving"
STAGES = ("prediction", "interpolation")
STEPS = "10"
"""Denoising steps: what more would add cannot be seen at this size."""
ON_RAY = ("--cluster.launcher", "ray", "--cluster.max-workers", "2", "--cluster.engine", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the main job and write out/demo.mp4, a contact sheet and a page that shows every step.

    Attributes:
        out: folder for everything the demo makes; emptied first.
        minutes: time for the two trainings together.
    """

    out: Path = Path("out")
    minutes: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the demo: what the reader sees, what runs, and how long that takes on two cores."""

    title: str
    run: Callable[[IO[str]], None]
    expected_s: float


def steps(demo: Demo) -> list[Step]:
    """List the steps in order; each is one public command or the service's client."""
    out, checkpoint, training_s = demo.out, demo.out / "checkpoint", demo.minutes * 60
    real_samples = [str(out / "corpus/real" / path.name) for path in sorted(REAL_CLIPS.glob("*.mp4"))[:2]]
    shipped = ("--checkpoint", CHECKPOINT)

    def commands(*rounds: Sequence[Sequence[str]]) -> Callable[[IO[str]], None]:
        def run_all(log: IO[str]) -> None:
            for lines in rounds:
                _modules(lines, log)

        return run_all

    def show(scene: str) -> tuple[str, ...]:
        target = ("--out", str(out / f"{scene}.mp4"), "--sheet", str(out / f"{scene}.png"))
        sampling = ("--scene", scene, "--stages", "prediction", "--steps", STEPS)
        return ("pipelines", "generate", *shipped, *sampling, *target)

    def training(name: str, *options: str) -> Step:
        paths = ("--shards", str(out / "shards"), "--out", str(checkpoint), "--run-dir", str(out / "runs"))
        time = ("--minutes", f"{demo.minutes / 2:.3f}", "--optimizer.learning-rate", "2e-4")
        line = ("training", f"synthetic-driving-{name}", *paths, *time, *options)
        return Step(title=f"fine-tune {name}", run=commands([line]), expected_s=40 + training_s / 2)

    draw = ("preprocessing", "synthesize", str(out / "corpus/synthetic"), "--clips", "6", "--preset", "smooth")
    again = ("pipelines", "reconstruct", *real_samples, *shipped, "--out", str(out / "again.png"))
    sheets = [
        ("pipelines", "sheet", *real_samples, "--out", str(out / "real.png")),
        ("pipelines", "sheet", *_synthetic_samples(out), "--out", str(out / "synthetic.png")),
    ]
    encode = ("preprocessing", "run", str(out / "corpus"), str(out / "shards"), "--preset", CHECKPOINT, *shipped)
    return [
        Step(
            title="show what ships: driving by day and by night",
            run=commands([show("day"), show("night")]),
            expected_s=40,
        ),
        Step(
            title="draw synthetic drives beside the real clips, and look at both",
            run=commands([draw, again], sheets),
            expected_s=30,
        ),
        Step(title="encode both corpora into latent shards (Ray Data)", run=commands([encode]), expected_s=60),
        training("image", "--backbone", str(checkpoint / "backbone")),
        training("prediction", "--initialise-from", "prediction", "--virtual-shards", "2", *ON_RAY),
        Step(title="serve a clip (Ray Serve)", run=lambda log: _ask(demo, checkpoint, log), expected_s=120),
        Step(title="write the page", run=lambda log: demo_page.write(out), expected_s=5),
    ]


def run(demo: Demo) -> ExitCode:
    """Run every step with a line that says what happens and how long it still takes."""
    if demo.out.exists():
        shutil.rmtree(demo.out)
    (demo.out / "corpus").mkdir(parents=True)
    shutil.copytree(REAL_CLIPS, demo.out / "corpus" / "real")
    shutil.copytree(SHIPPED, demo.out / "checkpoint")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{demo.out.absolute() / 'mlflow.db'}"
    started = time.monotonic()
    todo = steps(demo)
    with (demo.out / "demo.log").open("w") as log:
        for number, step in enumerate(todo, start=1):
            left_s = sum(later.expected_s for later in todo[number - 1 :])
            print(f"[{number}/{len(todo)}] {step.title} (about {left_s / 60:.0f} min left)", flush=True)
            step.run(log)
    print(f"done in {(time.monotonic() - started) / 60:.1f} min: open {demo.out / 'index.html'}")
    return ExitCode.DONE


def _synthetic_samples(out: Path) -> list[str]:
    return [str(out / f"corpus/synthetic/{number:06d}.mp4") for number in range(2)]


def _modules(lines: Sequence[Sequence[str]], log: IO[str]) -> None:
    """Run commands beside each other: half of what a short one takes is imports, on one core."""
    with ThreadPoolExecutor(len(lines)) as pool:
        list(pool.map(lambda line: _module(line, log), lines))


def _module(line: Sequence[str], log: IO[str]) -> None:
    log.write(f"\n$ python -m {' '.join(line)}\n")
    log.flush()
    finished = subprocess.run([sys.executable, "-m", *line], stdout=log, stderr=log, cwd=ROOT, check=False)
    if finished.returncode not in (ExitCode.DONE, ExitCode.DONE_WITH_QUARANTINE):
        raise IncompleteError(f"`python -m {' '.join(line)}` ended with code {finished.returncode}; see {log.name}")


def _ask(demo: Demo, checkpoint: Path, log: IO[str]) -> None:
    with _service(checkpoint, demo.out / "service", log) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="demo", timeout=120)
        try:
            # No scene: real clips have no labels, so words such as "day" would ask for a drawn one.
            wish = {"seed": 1, "stages": STAGES, "num_inference_steps": int(STEPS)}
            video = client.videos.create_and_poll(prompt="a drive", extra_body=wish)
            if video.status != "completed":
                raise IncompleteError(f"the service could not make the clip: {video.error}; see {log.name}")
            client.videos.download_content(video.id).write_to_file(demo.out / "demo.mp4")
        except OpenAIError as err:
            raise IncompleteError(f"the service did not answer: {err}; see {log.name}") from err
    _module(("pipelines", "sheet", str(demo.out / "demo.mp4"), "--out", str(demo.out / "demo.png")), log)


@contextmanager
def _service(checkpoint: Path, state: Path, log: IO[str]) -> Iterator[str]:
    port = free_port()
    # One clip is asked for: its stages work one after the other, so each may use two cores.
    where = ("--port", str(port), "--state", str(state))
    line = ["serving", "--checkpoint", str(checkpoint), *where, "--worker.num-threads", "2"]
    log.write(f"\n$ python -m {' '.join(line)}\n")
    log.flush()
    server = subprocess.Popen([sys.executable, "-m", *line], stdout=log, stderr=log, cwd=ROOT)
    try:
        _wait_ready(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_ready(url: str, server: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.monotonic() + SERVICE_START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise IncompleteError(f"the service ended with code {server.returncode}; see {log.name}")
        with suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=5):
            return
        time.sleep(0.5)
    raise IncompleteError(f"the service was not ready after {SERVICE_START_S} s; see {log.name}")


if __name__ == "__main__":
    run_command(lambda: run(tyro.cli(Demo, prog="python -m infra.demo")))
