"""Open what a run on latents reads, and refuse what does not fit together."""

from pathlib import Path

from pipelines import checkpoint
from pipelines.digests import network_digest
from pipelines.models.latent_space import LatentScaling
from pipelines.shard_format import Bucket
from pipelines.shards import ShardSet, open_shards
from training.config import TrainConfig
from training.sources import LatentSource
from training.task import Inputs


def open_for(config: TrainConfig, inputs: Inputs) -> ShardSet:
    """Open the shards of a run.

    Raises:
        ValueError: if there are none, or they were made with another autoencoder than the checkpoint's.
    """
    if inputs.shards is None:
        raise ValueError(f"{config.name} trains on latent shards; give their folder with --shards")
    shards = open_shards(inputs.shards)
    folder = checkpoint.local_folder(inputs.out)
    checkpoint.read_manifest(folder)
    digest = network_digest(folder / "backbone" / "vae")
    if shards.config.autoencoder_digest != digest:
        raise ValueError(
            f"shards {inputs.shards!r} were made with autoencoder {shards.config.autoencoder_digest[:12]}, but the "
            f"checkpoint {inputs.out!r} has {digest[:12]}; encode the corpus again with this checkpoint, or give the "
            "checkpoint the shards were made with"
        )
    return shards


def clips_for(config: TrainConfig, shards: ShardSet, *, validation: bool) -> LatentSource:
    """Clips of the shards that have the run's size, rate and length.

    Raises:
        ValueError: if there is none to train on.
    """
    data = config.data

    def fits(bucket: Bucket) -> bool:
        is_rate = not data.fps or any(abs(bucket.fps - fps) < 0.02 * fps for fps in data.fps)
        is_size = (bucket.height, bucket.width) in data.sizes
        return is_rate and is_size and bucket.num_frames >= data.num_frames

    source = LatentSource(shards, use_bucket=fits, percent=data.validation_percent, validation=validation)
    if not any(source.buckets) and not validation:
        held = ", ".join(bucket.name for bucket in shards.buckets)
        rates = f" at {' or '.join(f'{fps:g}' for fps in data.fps)} fps" if data.fps else ""
        sizes = " or ".join(f"{height}x{width}" for height, width in sorted(data.sizes))
        raise ValueError(
            f"shards {shards.uri!r} hold no clips of {data.num_frames} or more frames of {sizes}"
            f"{rates}; they hold {held}"
        )
    return source


def scaling_of(shards: ShardSet) -> LatentScaling:
    """Scale of the shards' autoencoder."""
    return LatentScaling(scale=shards.config.scaling_factor, shift=shards.config.shift_factor)


def digests(config: TrainConfig, inputs: Inputs, shards: ShardSet) -> dict[str, str]:
    """Identify the data and the frozen weights of a run."""
    given = {"data": shards.digest, "autoencoder": shards.config.autoencoder_digest}
    if config.objective == "image" and config.lora_rank is None:
        return given
    if inputs.backbone is not None:
        return {**given, "backbone": network_digest(Path(inputs.backbone) / "unet")}
    manifest = checkpoint.read_manifest(checkpoint.local_folder(inputs.out))
    return {**given, "backbone": manifest.digest("backbone/")}
