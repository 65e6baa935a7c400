from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from infra.cli import ExitCode
from pipelines.shard_format import ShardConfig
from pipelines.video_decode import VideoError
from pipelines.video_encode import encode_mp4
from preprocessing.arguments import Job
from preprocessing.config import PreprocessConfig, Resources
from preprocessing.encoder import find_autoencoder
from preprocessing.look_stage import LookAtSources
from preprocessing.plan import Looked
from preprocessing.run import execute
from preprocessing.sandbox import Sandbox, SandboxError
from preprocessing.sources import Source, find_sources
from preprocessing.stages import DecodeGroups, EncodeClips, WriteShards
from preprocessing.text import EncodeCaptions

VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
    "scaling_factor": 0.7,
}


def write_video(path: Path, num_frames: int, fps: int = 8, size: tuple[int, int] = (32, 64), seed: int = 0) -> Path:
    """A moving square on a coloured ground, different for every seed."""
    rng = np.random.default_rng(seed)
    images = np.full((num_frames, *size, 3), rng.integers(30, 120, 3), np.uint8)
    for i in range(num_frames):
        left = (3 * i + 7 * seed) % (size[1] - 12)
        images[i, 4 : size[0] - 6, left : left + 12] = rng.integers(140, 255, 3) if i == 0 else images[0, 4, -1] ^ 255
    encode_mp4(path, images, Fraction(fps))
    return path


class InProcess(Sandbox):
    """Decoding in the test's own process."""

    def __init__(self) -> None:
        super().__init__(memory_bytes=0, timeout_s=0)

    def stream(self, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except VideoError as err:
            raise SandboxError(err.reason, str(err)) from err


class SerialEngine:
    """The stages of a run composed in one process, without Ray and without a decoder process."""

    def look_at_sources(
        self, sources: Sequence[Source], config: PreprocessConfig, resources: Resources
    ) -> Iterator[Looked]:
        look = LookAtSources(config, InProcess())
        yield from map(look.look, sources)

    def encode_groups(
        self,
        shards: str,
        groups: Sequence[int],
        config: ShardConfig,
        vae: Path,
        settings: PreprocessConfig,
        resources: Resources,
    ) -> Iterator[dict[str, Any]]:
        decode = DecodeGroups(shards, settings.faces, InProcess())
        encode = EncodeClips(vae, settings, "cpu", shards)
        write = WriteShards(shards, config, bool(settings.faces))
        for group in groups:
            for table in decode(pa.table({"group": pa.array([group], pa.int32())})):
                yield from write(encode(table)).to_pylist()

    def encode_captions(
        self, shards: str, parts: Sequence[int], folder: Path, resources: Resources
    ) -> Iterator[dict[str, Any]]:
        yield from EncodeCaptions(shards, folder, "cpu")(pa.table({"part": pa.array(parts, pa.int32())})).to_pylist()


@pytest.fixture(scope="session")
def engine() -> SerialEngine:
    return SerialEngine()


@pytest.fixture(scope="session")
def run_job(engine: SerialEngine) -> Callable[[Job], ExitCode]:
    def run(job: Job) -> ExitCode:
        return execute(job, find_sources(job.corpus), find_autoencoder(job.checkpoint), engine)

    return run


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(3)
    AutoencoderKL(**VAE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video
