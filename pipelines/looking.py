"""Pictures of videos: contact sheets, and what the autoencoder keeps of them."""

from collections.abc import Sequence

import torch

from pipelines.models.autoencoder import decode_latents, encode_moments, sample_latents
from pipelines.models.latent_space import latent_scaling, spatial_factor
from pipelines.networks import Networks
from pipelines.pixels import to_float, to_uint8
from pipelines.tensors import VideoFrames
from pipelines.video_decode import VideoError, VideoInfo, probe
from pipelines.video_io import contact_sheet, read_clip


def reconstructions(networks: Networks, videos: Sequence[str], columns: int) -> bytes:
    """PNG with frames of clips, and the same frames encoded and decoded below."""
    config = networks.first_config() if networks.stage_names() else None
    rows = []
    for path in videos:
        size = (config.height, config.width) if config else _whole_size(networks, path)
        original = _read_evenly(path, columns, size)
        with torch.inference_mode():
            moments = encode_moments(networks.autoencoder, to_float(original)[None])
            latents = sample_latents(moments, latent_scaling(networks.autoencoder), None)
            decoded = decode_latents(networks.autoencoder, latents, overlap=0)
        rows += [original, to_uint8(decoded[0])]
    return contact_sheet(rows, columns=columns)


def sheet_of(videos: Sequence[str], columns: int, scale: int) -> bytes:
    """PNG with frames of videos, a row each, scaled to the size of the first."""
    first = _look_at(videos[0])
    rows = [_read_evenly(path, columns, (first.height, first.width)) for path in videos]
    return contact_sheet(rows, columns=columns, scale=scale)


def _read_evenly(path: str, count: int, size: tuple[int, int]) -> VideoFrames:
    """Read `count` frames spread evenly over a video."""
    info = _look_at(path)
    fps = (count - 1) / (info.end - info.start) if count > 1 and len(info.pts) > 1 else info.fps
    return read_clip(path, num_frames=min(count, len(info.pts)), fps=min(fps, info.fps), size=size, info=info)


def _look_at(path: str) -> VideoInfo:
    """Probe a video.

    Raises:
        ValueError: naming the file that is no video.
    """
    try:
        return probe(path)
    except VideoError as err:
        raise ValueError(f"{path}: {err}; give a video file") from err


def _whole_size(networks: Networks, path: str) -> tuple[int, int]:
    """Largest size (height, width) of a video that the autoencoder's factor divides."""
    factor, info = spatial_factor(networks.autoencoder), _look_at(path)
    return info.height - info.height % factor, info.width - info.width % factor
