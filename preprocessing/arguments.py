"""The command line of `plan` and `run`: a preset, of which every field can be changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro

from infra import storage
from infra.cli import read_json
from pipelines.configs import from_json
from preprocessing.config import PRESETS, PreprocessConfig, Resources
from preprocessing.sealed import SEAL, unseal


@dataclass(frozen=True, kw_only=True)
class Job:
    """Turn a corpus of videos into latent shards; the same line again goes on where it stopped.

    `--preset NAME` (tiny, synthetic-driving, driving, mountain-biking, text-to-video) or `--job JOB_JSON` (as an
    earlier run saved it) says what the other settings start from.

    Attributes:
        corpus: folder, s3:// prefix, or manifest (Parquet, CSV, JSON lines, or addresses in a .txt).
        shards: folder or s3:// prefix to write to.
        checkpoint: checkpoint folder, or a diffusers vae/ folder, with the frozen autoencoder.
        dry_run: show the plan's forecast and write nothing.
        track: record the run in MLflow (MLFLOW_TRACKING_URI).
        metrics_port: answer Prometheus at this port of this machine while the run lasts; 0 does not.
        config: what decides the bytes.
        resources: who does the work.
    """

    corpus: Annotated[str, tyro.conf.Positional]
    shards: Annotated[str, tyro.conf.Positional]
    checkpoint: str
    dry_run: bool = False
    track: bool = False
    metrics_port: int = 0
    config: Annotated[PreprocessConfig, tyro.conf.arg(name="")]
    resources: Resources = field(default_factory=Resources)


def parse_job(arguments: Sequence[str], command: str) -> Job:
    """Parse a command line; exits with 2 on misuse.

    Raises:
        ValueError: if the preset or the job file is unknown.
    """
    rest = list(arguments)
    saved = _take(rest, "--job")
    preset = _take(rest, "--preset") or "tiny"
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset {preset!r}; {hint}")
    default = Job(corpus=tyro.MISSING, shards=tyro.MISSING, checkpoint=tyro.MISSING, config=PRESETS[preset]())
    if saved:
        values = read_json(Path(saved))
        values.pop(SEAL, None)
        default = from_json(Job, values, where=saved)
    return tyro.cli(
        Job, args=rest, prog=f"python -m preprocessing {command}", default=default, config=(tyro.conf.AvoidSubcommands,)
    )


def read_job(shards: str, checkpoint: str | None = None) -> Job:
    """Read the job that made a shard set.

    Args:
        shards: the set; it may have been moved since.
        checkpoint: replaces the job's.

    Raises:
        ValueError: if there is none.
    """
    try:
        values = unseal(storage.read_bytes(storage.join(shards, "job.json")), "job.json")
    except (FileNotFoundError, ValueError) as err:
        raise ValueError(
            f"{shards} has no sound job.json that says how it was made ({err}); "
            "give the `run` line again that made it, which writes it anew"
        ) from err
    job = from_json(Job, values, where=f"{shards}/job.json")
    return replace(job, shards=shards, checkpoint=checkpoint or job.checkpoint)


def _take(arguments: list[str], flag: str) -> str | None:
    """Take `flag VALUE` or `flag=VALUE` out of the arguments."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            del arguments[i]
            return arguments.pop(i)
        if argument.startswith(flag + "="):
            return arguments.pop(i).partition("=")[2]
    return None
