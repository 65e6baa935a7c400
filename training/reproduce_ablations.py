"""Train the ablations of `python -m training reproduce`, each in a checkpoint folder of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from infra.cli import ExitCode, IncompleteError
from pipelines import checkpoint
from pipelines.networks import Networks
from training.ablations import CHANGES, END_TO_END, PREFIX, ablation_runs, slug
from training.task import put_part, seeded


def trained_ablations(root: Path) -> dict[str, Path]:
    """Checkpoint folders of the ablations that have been trained to their end, by name."""
    folders = {name: root / slug(name) for name in CHANGES}
    return {name: folder for name, folder in folders.items() if _has(folder, "temporal/keyframes")}


def train_ablations(root: Path, checkpoint_uri: str, shards: str, minutes: float) -> None:
    """Train those that have not been, each for the same time.

    Raises:
        IncompleteError: if a training stops; the same call goes on.
    """
    for name in CHANGES:
        folder = root / slug(name)
        if _has(folder, "temporal/keyframes"):
            continue
        if not _has(folder, "backbone/unet"):
            prepare(name, checkpoint_uri, folder)
        line = [sys.executable, "-m", "training", f"{PREFIX}{slug(name)}", "--shards", shards]
        print(f"training {name!r} for {minutes:g} minutes", file=sys.stderr, flush=True)
        code = subprocess.run([*line, "--out", str(folder), "--minutes", str(minutes)], check=False).returncode
        if code not in (ExitCode.DONE, ExitCode.DONE_WITH_QUARANTINE):
            raise IncompleteError(f"training {name!r} ended with code {code}; run the same command again to go on")


def prepare(name: str, checkpoint_uri: str, folder: Path) -> None:
    """Write the image model that an ablation starts from: the checkpoint's own, or for end to end a new one."""
    networks = Networks(checkpoint_uri)
    run = ablation_runs()[f"{PREFIX}{slug(name)}"]
    vae: Any = networks.autoencoder
    encoder = networks.scene_encoder
    put_part(folder, "backbone/vae", vae.save_pretrained, name=run.name, record={})
    put_part(folder, "backbone/condition", encoder.save, name=run.name, record={})
    unet: Any = networks.unet
    if name == END_TO_END:
        with seeded(run.seed):
            unet = UNet2DConditionModel(**run.model.unet)
    put_part(folder, "backbone/unet", unet.save_pretrained, name=run.name, record={})


def _has(folder: Path, part: str) -> bool:
    return (folder / checkpoint.MANIFEST).exists() and Networks(str(folder)).has(part)
