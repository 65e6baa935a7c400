"""Train what `python -m training reproduce` compares the checkpoint with, each in a checkpoint folder of its own."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from infra.cli import ExitCode, IncompleteError
from pipelines import checkpoint
from pipelines.networks import Networks
from training.ablations import CHANGES, END_TO_END, PREFIX, ablation_runs, slug
from training.task import put_part, seeded

OTHER_IMAGE_MODEL = "another image model"
TRAINED = {**dict.fromkeys(CHANGES, "temporal/keyframes"), OTHER_IMAGE_MODEL: "backbone/unet"}
"""The part that each training writes at its end."""


def trained(root: Path) -> dict[str, Path]:
    """Checkpoint folders of the trainings that have come to their end, by name."""
    folders = {name: root / slug(name) for name in TRAINED}
    return {name: folder for name, folder in folders.items() if _has(folder, TRAINED[name])}


def train_ablations(root: Path, checkpoint_uri: str, shards: str, minutes: float) -> None:
    """Train the ablations that have not been, each for the same time.

    Raises:
        IncompleteError: if a training stops; the same call goes on.
    """
    for name in CHANGES:
        folder = root / slug(name)
        if not _has(folder, "backbone/unet"):
            _prepare(name, Networks(checkpoint_uri), folder)
        if not _has(folder, TRAINED[name]):
            _train(name, [f"{PREFIX}{slug(name)}", "--shards", shards], folder, minutes)


def train_other_image_model(root: Path, checkpoint_uri: str, shards: str, minutes: float) -> None:
    """Fine-tune the checkpoint's image model on other clips, under its unchanged temporal layers.

    Raises:
        IncompleteError: as `train_ablations`.
    """
    networks, folder = Networks(checkpoint_uri), root / slug(OTHER_IMAGE_MODEL)
    if not _has(folder, "backbone/vae"):
        _copy(networks, ["decoder", *(f"temporal/{stage}" for stage in networks.stage_names())], folder)
        _copy(networks, ["backbone/vae"], folder)
    if not _has(folder, TRAINED[OTHER_IMAGE_MODEL]):
        start = ["--backbone", str(networks.folder / "backbone"), "--shards", shards]
        _train(OTHER_IMAGE_MODEL, ["synthetic-driving-image", *start], folder, minutes)


def _prepare(name: str, networks: Networks, folder: Path) -> None:
    """Put the image model that an ablation starts from in place: the checkpoint's own, or for end to end a new one."""
    _copy(networks, ["backbone/vae", "backbone/condition"], folder)
    if name != END_TO_END:
        _copy(networks, ["backbone/unet"], folder)
        return
    run = ablation_runs()[f"{PREFIX}{slug(name)}"]
    with seeded(run.seed):
        unet: Any = UNet2DConditionModel(**run.model.unet)
    put_part(folder, "backbone/unet", unet.save_pretrained, name=networks.manifest.name, record={})


def _copy(networks: Networks, parts: Iterable[str], folder: Path) -> None:
    """Copy parts of a checkpoint file by file, so that they stay what shards and digests name."""
    for part in parts:
        if networks.has(part):
            aside = folder / ".copied"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(networks.folder / part, aside)
            checkpoint.write_part(folder, part, aside, name=networks.manifest.name)


def _train(name: str, line: list[str], folder: Path, minutes: float) -> None:
    print(f"training {name!r} for {minutes:g} minutes", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "training", *line, "--out", str(folder), "--minutes", str(minutes)]
    code = subprocess.run(command, check=False).returncode
    if code not in (ExitCode.DONE, ExitCode.DONE_WITH_QUARANTINE):
        raise IncompleteError(f"training {name!r} ended with code {code}; run the same command again to go on")


def _has(folder: Path, part: str) -> bool:
    return (folder / checkpoint.MANIFEST).exists() and Networks(str(folder)).has(part)
