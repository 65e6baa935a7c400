"""`python -m preprocessing inspect SHARDS CLIP_ID`: decode one clip of a shard set, fetched with one range read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from einops import rearrange

from infra.cli import ExitCode, parse
from pipelines.models.autoencoder import sample_latents
from pipelines.models.latent_space import Autoencoder, decode_images, latent_scaling
from pipelines.shards import open_shards
from pipelines.tensors import VideoFrames
from pipelines.video_io import contact_sheet, write_mp4
from preprocessing.arguments import read_job
from preprocessing.encoder import find_autoencoder, load_autoencoder


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Decode one clip to look at it.

    Attributes:
        shards: folder or s3:// prefix.
        clip_id: as index.parquet lists it; `first` takes the first.
        out: file to write; .mp4 or .png.
        checkpoint: the autoencoder; default the one the set was made with, from its job.json.
    """

    shards: Annotated[str, tyro.conf.Positional]
    clip_id: Annotated[str, tyro.conf.Positional]
    out: Path = Path("clip.mp4")
    checkpoint: str | None = None


def main(arguments: Sequence[str]) -> ExitCode:
    """Decode and write the clip.

    Raises:
        ValueError: if the clip is unknown or the autoencoder is another.
    """
    command = parse(Inspect, arguments, program="python -m preprocessing inspect")
    if command.out.suffix not in (".mp4", ".png"):
        raise ValueError(f"out={command.out} must end in .mp4 or .png")
    shards = open_shards(command.shards)
    vae_file = find_autoencoder(command.checkpoint or read_job(command.shards).checkpoint)
    if vae_file.digest != shards.config.autoencoder_digest:
        raise ValueError(f"{command.shards} was made with another autoencoder than {vae_file.name}; give --checkpoint")
    first = next(iter(shards.labels.values())).clip_id
    [clip] = shards.read([shards.find(first if command.clip_id == "first" else command.clip_id)])
    frames = decode(load_autoencoder(vae_file.folder), torch.from_numpy(clip.moments.copy()))
    if command.out.suffix == ".mp4":
        write_mp4(command.out, frames, clip.fps, metadata={"title": clip.caption, "comment": clip.clip_id})
    else:
        command.out.write_bytes(contact_sheet([frames]))
    span = f"{len(frames)} frames at {clip.fps:g} fps from {clip.times_s[0]:.2f} s"
    print(f"{clip.clip_id}: {clip.source}, {span} -> {command.out}")
    return ExitCode.DONE


@torch.inference_mode()
def decode(vae: Autoencoder, moments: torch.Tensor) -> VideoFrames:
    """Frames of the mean of a clip's moments (t, 2z, h, w)."""
    latents = sample_latents(moments[None], latent_scaling(vae), None)
    frames = decode_images(vae, latents)[0]
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "t c H W -> t H W c").contiguous()
