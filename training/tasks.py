"""From an objective's name to its task."""

from training.autoencoder import autoencoder_task
from training.config import TrainConfig
from training.decoder import decoder_task
from training.latent import latent_task
from training.task import Inputs, Task
from training.upsampling import upsample_task


def make_task(config: TrainConfig, inputs: Inputs) -> Task:
    """Open the data and build the networks of a run.

    Raises:
        ValueError: if they are missing or do not fit together.
    """
    if config.objective == "autoencoder":
        return autoencoder_task(config, inputs)
    if config.objective == "decoder":
        return decoder_task(config, inputs)
    if config.objective in ("upsampler", "upsampler-image"):
        return upsample_task(config, inputs)
    return latent_task(config, inputs)
