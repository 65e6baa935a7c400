"""`python -m training PRESET --shards SHARDS --out CHECKPOINT`: train one network of a system."""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from infra import storage
from infra.cli import ExitCode, IncompleteError, read_json, run_command
from pipelines.configs import from_json, to_json
from training.config import TrainConfig
from training.estimate import ESTIMATED, estimate, report
from training.leaving import on_sigterm
from training.presets import make_preset, preset_names
from training.reduction import Workers
from training.task import Inputs

if TYPE_CHECKING:
    from training.worker import Job, Outcome

# Imported only when asked for: measuring needs more than training.
COMMANDS = {
    "evaluate": ("training.evaluate", "sample a checkpoint, measure it against real clips, write a report"),
    "reproduce": ("training.reproduce", "measure a checkpoint as the paper does, print its tables beside ours"),
    "gallery": ("training.evaluation.gallery", "make pictures of what a checkpoint makes"),
    "preference": ("training.evaluation.preference_server", "ask people which of two systems' clips they prefer"),
    "reader": ("training.evaluation.train_reader", "train the network that reads labels and boxes off frames"),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train one network of a system and put it into a checkpoint folder; the same line again goes on.

    Attributes:
        out: checkpoint folder, read for what earlier runs made and written to at the end.
        shards: latent shards, for diffusion models.
        corpus: folder of videos, for autoencoders and pixel models.
        backbone: diffusers folder with another image network than the checkpoint's.
        run_dir: folder for the run's own checkpoints and records; default OUT.runs.
        minutes: longest training time; the run then ends as if it were done.
        dry_run: print the resolved configuration and what the run will take, and leave.
        export_only: train no further; put what the newest checkpoint holds into the checkpoint folder.
        tflops: arithmetic that one worker reaches, for the estimate: 1e12 operations a second.
        config: the run; every field can be changed.
    """

    out: str
    shards: str | None = None
    corpus: str | None = None
    backbone: str | None = None
    run_dir: str | None = None
    minutes: float | None = None
    dry_run: bool = False
    export_only: bool = False
    tflops: float = 0.05
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line and carry it out."""
    name, rest = _preset_name(arguments)
    if name in COMMANDS:
        code: ExitCode = importlib.import_module(COMMANDS[name][0]).main(rest)
        return code
    parsed = parse(arguments)
    if parsed.dry_run:
        print(json.dumps(to_json(parsed.config), indent=1))
        _print_estimate(parsed)
        return ExitCode.DONE
    return run(parsed)


def parse(arguments: Sequence[str]) -> Arguments:
    """Parse `PRESET [options]`; exits with 2 on misuse.

    Raises:
        ValueError: if the preset is unknown, or a value is not allowed.
    """
    name, rest = _preset_name(arguments)
    return tyro.cli(
        Arguments,
        args=list(rest),
        prog=f"python -m training {name}",
        default=Arguments(out=tyro.MISSING, config=_config(name)),
        config=(tyro.conf.AvoidSubcommands,),
    )


def run(parsed: Arguments) -> ExitCode:
    """Train, export, register."""
    # MLflow takes seconds to import, which --dry-run and --help need not spend.
    from training.worker import Job  # noqa: PLC0415

    # Ray's workers have a working folder of their own.
    given = {name: getattr(parsed, name) for name in ("out", "shards", "corpus", "backbone")}
    inputs = Inputs(**{name: storage.absolute(uri) for name, uri in given.items() if uri is not None})
    run_dir = storage.absolute(parsed.run_dir or f"{parsed.out.rstrip('/')}.runs")
    job = Job(
        config=parsed.config,
        inputs=inputs,
        run_uri=storage.join(run_dir, parsed.config.name),
        seconds=parsed.minutes * 60 if parsed.minutes is not None else None,
    )
    if parsed.export_only:
        print(f"{parsed.config.name}: step {_export(job)}, written to {parsed.out}")
        return ExitCode.DONE
    outcome = _train(job)
    if outcome.error is not None:
        raise ValueError(outcome.error)
    if not outcome.is_done:
        raise IncompleteError(f"stopped at step {outcome.step}; run the same command again to go on")
    _export(job)
    print(f"{parsed.config.name}: step {outcome.step}, loss {outcome.loss:.4f}, written to {parsed.out}")
    return ExitCode.DONE_WITH_QUARANTINE if outcome.put_aside else ExitCode.DONE


def _export(job: "Job") -> int:
    from training.export import export, local_copy  # noqa: PLC0415
    from training.recorder import register  # noqa: PLC0415

    with local_copy(job.inputs.out) as folder:
        exported = export(job, folder)
        if job.config.track:
            for part in exported.parts:
                name = f"{job.config.model.name}-{part.replace('/', '-')}"
                register(job.run_uri, name, folder / part, exported.lineage)
    return int(exported.lineage["step"])


def _print_estimate(parsed: Arguments) -> None:
    config, workers = parsed.config, parsed.config.cluster.max_workers
    if config.objective not in ESTIMATED:
        print(f"no estimate for objective {config.objective!r}; it is made for {', '.join(ESTIMATED)}")
        return
    print(report(config, estimate(config, workers=workers, flops_per_s=parsed.tflops * 1e12), workers))


def _train(job: "Job") -> "Outcome":
    if job.config.cluster.launcher == "process":
        from training.worker import run_worker  # noqa: PLC0415

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with on_sigterm() as was_told:
            return run_worker(job, Workers(), device, is_leaving=was_told)
    # Ray takes seconds to import, which a run in this process need not spend.
    from training.trainer import run_on_ray  # noqa: PLC0415

    return run_on_ray(job)


def _config(name: str) -> TrainConfig:
    """A run by its preset's name, or as an earlier run saved it."""
    if name.endswith(".json"):
        return from_json(TrainConfig, read_json(Path(name)), where=name)
    return make_preset(name)


def _preset_name(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    print("usage: python -m training PRESET [options]    (PRESET --help lists the options)\n")
    print("PRESET is one of these, or the config.json that a run wrote into its folder:")
    print("\n".join(f"  {name}" for name in preset_names()))
    print("\nor: python -m training COMMAND [options]\n")
    print("\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()))
    raise SystemExit(ExitCode.DONE if arguments and arguments[0] in ("-h", "--help") else ExitCode.BAD_ARGUMENTS)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
