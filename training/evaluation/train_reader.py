"""`python -m training reader --corpus CORPUS`: train the scene reader on rendered clips, in minutes on two cores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from infra.cli import ExitCode
from pipelines.digests import network_digest
from pipelines.metrics.boxes import BoxAgreement, add_frame
from pipelines.networks import Networks
from pipelines.pixels import to_float, to_uint8
from pipelines.randomness import generator
from pipelines.shard_format import Box
from pipelines.video_io import read_clip
from training.evaluation.makers import reconstruct
from training.evaluation.reader import NAME, SceneReader, fit, load_reader, reader_losses, save_reader
from training.evaluation.reference import Video, find_videos
from training.task import seeded

HELD_OUT = 5
"""Every fifth clip is kept to measure the reader."""
BATCH = 16
MIN_BOX = 1 / 64
"""Boxes narrower than this share of the width are not asked of the reader: four pixels of 256. They are counted."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the network that reads day or night, vehicle counts and boxes off frames.

    Attributes:
        corpus: folder of rendered clips with labels.parquet.
        checkpoint: half of the frames are shown as the image autoencoder of this checkpoint leaves them, as generated
            frames are; default none of them. A reader of sharp frames alone misses most small vehicles in those.
        out: file to write.
        steps: of training; its rate falls to nothing at the last.
        frames: frames taken of each clip.
        seed: of weights and order.
        threads: CPU threads.
    """

    corpus: Path
    checkpoint: str | None = None
    out: Path = Path(".cache/weights") / NAME
    steps: int = 600
    frames: int = 2
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Scenes:
    """Frames (uint8, n H W 3) with their labels, in one order."""

    images: Tensor
    night: Tensor
    counts: Tensor
    boxes: list[list[Box]]


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line and train."""
    parsed = tyro.cli(Arguments, args=list(arguments), prog="python -m training reader")
    torch.set_num_threads(parsed.threads)
    labelled = [video for video in find_videos(parsed.corpus) if video.labels]
    held_out, rest = labelled[::HELD_OUT], [v for i, v in enumerate(labelled) if i % HELD_OUT]
    if not rest:
        raise ValueError(f"{str(parsed.corpus)!r} holds {len(labelled)} labelled clips; give 2 or more")
    sharp = read_scenes(rest, parsed.frames)
    record: dict[str, object] = {"clips": len(rest), "steps": parsed.steps, "seed": parsed.seed}
    kinds, seen = [sharp], read_scenes(held_out, parsed.frames)
    networks = Networks(parsed.checkpoint) if parsed.checkpoint else None
    if networks is not None:
        kinds.append(reconstructed(networks, sharp))
        record["autoencoder"] = network_digest(networks.folder / "backbone" / "vae")
    reader = train(kinds, parsed)
    save_reader(reader, parsed.out, record)
    found = check(load_reader(parsed.out), seen)
    if networks is not None:
        again = check(load_reader(parsed.out), reconstructed(networks, seen))
        found |= {f"{name}_reconstructed": value for name, value in again.items()}
    save_reader(reader, parsed.out, {**record, "held_out_clips": len(held_out), **found})
    print(
        f"{parsed.out}: {parsed.steps} steps; on {len(held_out)} clips held out: "
        + ", ".join(map(_said, found.items()))
    )
    return ExitCode.DONE


def read_scenes(videos: Sequence[Video], frames: int) -> Scenes:
    """Read some frames of each labelled video, evenly spread."""
    images, night, counts, boxes = [], [], [], []
    for video in videos:
        labels = video.labels
        fps, count = Fraction(labels["fps"]), len(labels["boxes"])
        for place in range(frames):
            frame = (2 * place + 1) * count // (2 * frames)
            clip = read_clip(video.path, num_frames=1, start_s=frame / fps, info=video.info)
            images.append(to_uint8(fit(to_float(clip))))
            night.append(float(labels["night"]))
            # Crowdedness is the mean of this number over a clip.
            counts.append(float(len(labels["boxes"][frame])))
            boxes.append([tuple(b["box"]) for b in labels["boxes"][frame] if b["box"][2] - b["box"][0] >= MIN_BOX])
    return Scenes(torch.cat(images), torch.tensor(night), torch.tensor(counts), boxes)


def reconstructed(networks: Networks, scenes: Scenes) -> Scenes:
    """What the image autoencoder of a checkpoint leaves of frames."""
    parts = [reconstruct(networks, to_float(part)[None], "per frame")[0] for part in torch.split(scenes.images, BATCH)]
    return replace(scenes, images=torch.cat([to_uint8(part) for part in parts]))


def train(kinds: Sequence[Scenes], arguments: Arguments) -> SceneReader:
    """Train on each kind of frames in turn, mirroring every second image."""
    with seeded(arguments.seed):
        reader = SceneReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    numbers = generator(arguments.seed, "reader")
    for step in tqdm(range(arguments.steps), unit="step", disable=None):
        scenes = kinds[step % len(kinds)]
        rows = torch.randint(len(scenes.images), (BATCH,), generator=numbers)
        mirrored = torch.rand(BATCH, generator=numbers) < 0.5
        images = to_float(scenes.images[rows])
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        boxes = [
            [(1 - b[2], b[1], 1 - b[0], b[3]) if is_mirrored else b for b in scenes.boxes[row]]
            for row, is_mirrored in zip(rows.tolist(), mirrored.tolist(), strict=True)
        ]
        optimizer.param_groups[0]["lr"] = 2e-3 * max(1 - step / arguments.steps, 0.05)
        labels, maps = reader(images)
        loss = reader_losses(labels, maps, scenes.night[rows], scenes.counts[rows], boxes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
    return reader.eval()


def check(reader: SceneReader, scenes: Scenes) -> dict[str, float]:
    """How well a reader reads clips it has not seen."""
    agreement = BoxAgreement()
    right, off = 0, 0.0
    for image, night, total, boxes in zip(scenes.images, scenes.night, scenes.counts, scenes.boxes, strict=True):
        said, count, found = reader.read(to_float(image[None]))
        right += int((said[0] > 0.5) == bool(night))
        off += abs(count[0].item() - total.item())
        agreement = add_frame(agreement, torch.tensor(boxes).reshape(-1, 4), _with_area(found[0]))
    frames = len(scenes.images)
    return {
        "night_accuracy": right / frames,
        "count_error": off / frames,
        "box_recall": agreement.recall,
        "box_precision": agreement.precision,
    }


def _with_area(boxes: Tensor) -> Tensor:
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def _said(entry: tuple[str, float]) -> str:
    return f"{entry[0].replace('_', ' ')} {entry[1]:.3f}"
