"""`python -m pipelines`: make, decode and look at videos on one device, without Ray."""

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from pipelines.conditions import Wish, read_boxes
from pipelines.describe import describe
from pipelines.generation import Generation
from pipelines.generation_plan import Request, Step, make_plan, work
from pipelines.interchange import export_svd, import_networks
from pipelines.looking import reconstructions, sheet_of
from pipelines.models.lora import Adapter
from pipelines.networks import Networks
from pipelines.presets import PRESETS
from pipelines.scenes import parse_scene
from pipelines.tensors import VideoFrames
from pipelines.video_io import contact_sheet
from pipelines.video_output import check_output, read_picture, watch, write_video

BAR = "{desc:<13} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
SHEET_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Make clips from a checkpoint, on one device.

    Attributes:
        checkpoint: checkpoint folder, local or s3://.
        out: MP4 to write, or a new folder for PNG pictures; several seeds get names of their own beside it.
        prompt: what the clip shows, in words of the image model.
        negative_prompt: what it shall not show.
        temporal_prompt: what moves, in words the temporal layers were trained with; default the prompt.
        scene: words such as "night,crowded"; empty leaves the scene to the model.
        boxes: JSON file with vehicles of the first frame: a list of [x1, y1, x2, y2], fractions of width and height.
        image: picture that is the first frame.
        num_frames: frames of the finished clip.
        minutes: its length instead.
        size: height and width before upsampling; default those of training.
        backbone: diffusers folder or hub id of another image model (and text encoder), such as a personalised one.
        lora: low-rank adapter to fuse into the image model (and text encoder): a .safetensors file.
        lora_scale: its strength.
        stages: which run: one of image, keyframes, prediction to start, further interpolation, upsampler; default all.
        paper_mode: sample as the paper does, with more and other steps.
        steps: denoising steps of every stage; default the checkpoint's.
        guidance_scale: strength of guidance before interpolation; default the checkpoint's.
        guidance_last: its strength at the last frame of a window, rising from guidance-scale at the first.
        guidance_interval: noise (sigma / alpha) between which there is guidance, such as 0.28 5.42; default always.
        seed: equal seeds give equal clips; several give several futures of one first picture.
        sheet: also write a PNG with frames of the clips, a row each.
        device: such as cpu or cuda.
        dtype: type that the networks compute in.
    """

    checkpoint: str
    out: Path
    prompt: str = ""
    negative_prompt: str = ""
    temporal_prompt: str | None = None
    scene: str = ""
    boxes: Path | None = None
    image: Path | None = None
    num_frames: int | None = None
    minutes: float | None = None
    size: tuple[int, int] | None = None
    backbone: str | None = None
    lora: Path | None = None
    lora_scale: float = 1.0
    stages: tuple[Step, ...] | None = None
    paper_mode: bool = False
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_last: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: tuple[int, ...] = (0,)
    sheet: Path | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Print the networks of a system: parameters and work of every stage, without allocating them.

    Attributes:
        preset: name of the system.
    """

    preset: str


@dataclass(frozen=True, kw_only=True)
class Import:
    """Put networks of another format into a checkpoint: Stable Diffusion, its x4 upscaler, Stable Video Diffusion.

    Attributes:
        source: diffusers folder, its id on the hub, or an original-format .safetensors file.
        checkpoint: checkpoint folder; made if missing.
        config: for an original-format file, a diffusers folder or id with the settings of its model.
    """

    source: Annotated[str, tyro.conf.Positional]
    checkpoint: Annotated[Path, tyro.conf.Positional]
    config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a checkpoint of Stable Video Diffusion's layout as a folder that diffusers loads.

    Attributes:
        checkpoint: checkpoint folder.
        target: diffusers folder to write.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Show what the autoencoder keeps: frames of clips above, the same encoded and decoded below.

    Attributes:
        videos: video files.
        checkpoint: checkpoint folder, local or s3://.
        out: PNG to write.
        columns: frames of each clip.
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional]
    checkpoint: str
    out: Path
    columns: int = 6


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Lay frames of videos side by side in a PNG.

    Attributes:
        videos: video files, one row each; scaled to the size of the first.
        out: PNG to write.
        columns: frames of each clip.
        scale: whole-number enlargement.
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Path
    columns: int = 6
    scale: int = 1


def generate(command: Generate) -> None:
    """Make the clips and write them, part by part as they are finished."""
    if not command.seed:
        raise ValueError("no seed; give one number or more, such as --seed 0")
    networks = Networks(
        command.checkpoint,
        device=command.device,
        dtype=getattr(torch, command.dtype),
        backbone=command.backbone,
        adapter=Adapter.read(command.lora, command.lora_scale) if command.lora else None,
    )
    request = _request(command, networks)
    plan = make_plan(networks, request)
    targets = {seed: _target(command.out, seed, len(command.seed)) for seed in command.seed}
    for target in targets.values():
        check_output(target)
    kept: list[VideoFrames] = []
    with tqdm(total=float(len(targets)), bar_format=BAR, disable=None) as bar:
        shares = work(networks, request, plan)

        def report(stage: str, share: float) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(shares[stage] * share)

        for seed, parts in Generation(networks, request, plan, report).clips(tuple(targets)):
            row: list[VideoFrames] = []
            tags = {"comment": f"generated by videoldm, seed {seed}"}
            write_video(targets[seed], watch(parts, row, plan.num_frames, SHEET_COLUMNS), plan.fps, tags)
            kept.append(torch.cat(row))
    if command.sheet:
        command.sheet.write_bytes(contact_sheet(kept, columns=SHEET_COLUMNS))


def _request(command: Generate, networks: Networks) -> Request:
    config = networks.first_config()
    size = command.size or (config.height, config.width)
    return Request(
        wish=Wish(
            prompt=command.prompt,
            negative_prompt=command.negative_prompt,
            temporal_prompt=command.temporal_prompt,
            scene=parse_scene(command.scene),
            boxes=None if command.boxes is None else read_boxes(command.boxes),
        ),
        picture=None if command.image is None else read_picture(command.image, size),
        steps=command.stages,
        num_frames=command.num_frames,
        minutes=command.minutes,
        size=command.size,
        num_steps=command.steps,
        guidance_scale=command.guidance_scale,
        guidance_last=command.guidance_last,
        guidance_interval=command.guidance_interval,
        paper_mode=command.paper_mode,
    )


def _target(out: Path, seed: int, count: int) -> Path:
    return out if count == 1 else out.with_name(f"{out.stem}-{seed}{out.suffix}")


def describe_preset(command: Describe) -> None:
    """Print the table of a system."""
    if command.preset not in PRESETS:
        near = get_close_matches(command.preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(PRESETS)}"
        raise ValueError(f"unknown preset {command.preset!r}; {hint}")
    print(describe(PRESETS[command.preset]()))


def import_command(command: Import) -> None:
    """Put the networks into the checkpoint and name the parts written."""
    for part in import_networks(command.checkpoint, command.source, config=command.config):
        print(command.checkpoint / part)


def main() -> None:
    """Parse the command line and run one command; bad arguments end as one line and exit code 2."""
    command = tyro.cli(
        Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[Describe, tyro.conf.subcommand("describe")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
        | Annotated[Sheet, tyro.conf.subcommand("sheet")],
        prog="python -m pipelines",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        match command:
            case Generate():
                generate(command)
            case Describe():
                describe_preset(command)
            case Import():
                import_command(command)
            case Export():
                export_svd(command.checkpoint, command.target)
            case Reconstruct():
                networks = Networks(command.checkpoint)
                command.out.write_bytes(reconstructions(networks, command.videos, command.columns))
            case Sheet():
                command.out.write_bytes(sheet_of(command.videos, command.columns, command.scale))
    except (ValueError, OSError) as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
