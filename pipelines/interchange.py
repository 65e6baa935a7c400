"""Networks of other formats into a checkpoint folder, and back: diffusers folders, original-format files.

Stable Diffusion 1.x or 2.x   -> backbone/
its x4 upscaler               -> upsampler/
Stable Video Diffusion        -> backbone/, temporal/prediction/, decoder/, and svd/ for what only it has; and back
an original-format file       -> as the folder that diffusers makes of it
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import save_file

from pipelines import checkpoint
from pipelines.config import StageConfig
from pipelines.configs import to_json
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.loading import UNETS, diffusers_folder, read_class_name, read_json, read_noise
from pipelines.models.checks import check_backbone
from pipelines.models.svd import (
    svd_from_video_decoder,
    svd_from_video_unet,
    video_decoder_from_svd,
    video_unet_from_svd,
)
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import UPSAMPLER, Networks

PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
SVD, SVD_CLASS = "svd", "UNetSpatioTemporalConditionModel"
SVD_PARTS = ("image_encoder", "feature_extractor")
UPSCALER_CHANNELS = 7
"""Input channels of the x4 upscaler: four of noise, three of colour."""


def import_networks(folder: Path, source: str, *, config: str | None = None) -> list[str]:
    """Put networks of another format into a checkpoint, which is made if missing.

    Args:
        folder: of the checkpoint.
        source: diffusers folder, its id on the hub, or an original-format file of Stable Diffusion.
        config: for such a file, a diffusers folder or id with the settings of its model; default diffusers' guess.

    Returns:
        The parts that were written.

    Raises:
        ValueError: the source is missing, of another family, or not in safetensors.
    """
    if Path(source).suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        with tempfile.TemporaryDirectory() as aside:
            read_single_file(Path(source), Path(aside), config)
            return import_networks(folder, aside)
    given = diffusers_folder(source)
    if read_class_name(given / "unet") == SVD_CLASS:
        return import_svd(folder, given)
    values = read_json(given / "unet" / "config.json")
    family = UNETS.get(values["_class_name"])
    if family is None:
        raise ValueError(f"{source!r} holds a {values['_class_name']}; give one of {', '.join([*UNETS, SVD_CLASS])}")
    with torch.device("meta"):
        check_backbone(family.from_config(values))
    part = UPSAMPLER if values["in_channels"] == UPSCALER_CHANNELS else "backbone"
    name = "text-to-video" if values.get("cross_attention_dim") == 1024 else "text-to-video-sd14"
    held = [own for own in PARTS if (given / own).is_dir()]
    return [_put(folder, f"{part}/{own}", _copier(given / own), name) for own in held]


def read_single_file(file: Path, folder: Path, config: str | None) -> None:
    """Turn an original-format file into a diffusers folder, as diffusers does.

    Raises:
        ValueError: the file is missing, no safetensors file, or not understood.
    """
    if file.suffix != ".safetensors":
        raise ValueError(f"{str(file)!r} may run code when it is read; give the model as .safetensors")
    if not file.is_file():
        raise ValueError(f"no file {str(file)!r}; give a model file, a diffusers folder or an id on the hub")
    without: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        pipeline = StableDiffusionPipeline.from_single_file(str(file), config=config, **without)
    except Exception as err:
        raise ValueError(
            f"diffusers does not read {str(file)!r} ({' '.join(str(err).split())[:200]}); name a diffusers folder with "
            "the settings of its model by --config"
        ) from err
    pipeline.save_pretrained(folder, safe_serialization=True)


def import_svd(folder: Path, source: Path) -> list[str]:
    """Put a diffusers folder of Stable Video Diffusion into a checkpoint.

    Its layers become the temporal layers of a prediction model over an image U-Net, and of a decoder.

    Raises:
        ValueError: the folder is incomplete.
    """
    noise = read_noise(source)
    if noise is None:
        raise ValueError(f"{str(source)!r} has no scheduler/scheduler_config.json; give the complete folder")
    theirs = UNetSpatioTemporalConditionModel.from_pretrained(source / "unet", use_safetensors=True)
    network = video_unet_from_svd(theirs)
    decoder = video_decoder_from_svd(AutoencoderKLTemporalDecoder.from_pretrained(source / "vae", use_safetensors=True))
    stage = StageConfig(
        temporal=network.config,
        noise=noise,
        sampler=SamplerConfig(name="euler", num_steps=25),
        guidance_scale=3.0,
        num_frames=int(theirs.config["num_frames"]),
        fps=7.0,
        height=576,
        width=1024,
    )

    def write_rest(to: Path) -> None:
        for part in SVD_PARTS:
            if (source / part).is_dir():
                _copier(source / part)(to / part)
        shutil.copy(source / "model_index.json", to)

    writers: dict[str, Callable[[Path], None]] = {
        "backbone/unet": network.unet.save_pretrained,
        "backbone/vae": decoder.vae.save_pretrained,
        "backbone/scheduler": _copier(source / "scheduler"),
        "temporal/prediction": lambda to: write_layers(to, network, stage),
        "decoder": lambda to: write_layers(to, decoder, decoder.config),
    }
    if (source / "model_index.json").is_file():
        writers[SVD] = write_rest
    return [_put(folder, part, write, "stable-video-diffusion") for part, write in writers.items()]


def export_svd(folder: Path, target: Path) -> None:
    """Write a checkpoint of that layout as a diffusers folder of Stable Video Diffusion.

    Raises:
        ValueError: the checkpoint is of another layout, or the target is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{str(target)!r} is not an empty folder; give a new name")
    networks = Networks(str(folder))
    network, decoder = networks.stage("prediction").network, networks.decoder
    time_ids = 3
    width = int(network.unet.config.get("projection_class_embeddings_input_dim") or 0) // time_ids
    svd = svd_from_video_unet(network, time_id_dim=width)
    svd.register_to_config(num_frames=networks.stage_config("prediction").num_frames)  # type: ignore[no-untyped-call]
    if not isinstance(decoder, VideoDecoder):
        raise ValueError(f"checkpoint {str(folder)!r} has no decoder with temporal layers; that layout needs one")
    svd.save_pretrained(target / "unet", safe_serialization=True)
    svd_from_video_decoder(decoder).save_pretrained(target / "vae", safe_serialization=True)
    shutil.copytree(folder / "backbone" / "scheduler", target / "scheduler")
    if networks.has(SVD):
        shutil.copytree(folder / SVD, target, dirs_exist_ok=True)


def write_layers(folder: Path, network: VideoUNet | VideoDecoder, config: Any) -> None:
    """Write temporal layers and their configuration into a folder."""
    weights = {name: value.contiguous() for name, value in network.temporal_state_dict().items()}
    save_file(weights, folder / checkpoint.WEIGHTS)
    (folder / "config.json").write_text(json.dumps(to_json(config), indent=1) + "\n")


def _put(folder: Path, part: str, write: Callable[[Path], None], name: str) -> str:
    known = checkpoint.read_manifest(folder).name if (folder / checkpoint.MANIFEST).is_file() else name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        finished = Path(aside) / "part"
        finished.mkdir()
        write(finished)
        checkpoint.write_part(folder, part, finished, name=known)
    return part


def _copier(source: Path) -> Callable[[Path], None]:
    """Copy what may be in a checkpoint: settings, words, and weights in safetensors of the usual precision."""

    def copy(to: Path) -> None:
        to.mkdir(parents=True, exist_ok=True)
        files = [path for path in source.iterdir() if path.suffix in checkpoint.ALLOWED_SUFFIXES]
        # Twins such as model.fp16.safetensors hold the same network once more.
        whole = [path for path in files if path.name.count(".") == 1 or path.suffix != ".safetensors"]
        is_network = any(path.suffix in (".bin", ".safetensors") for path in source.iterdir())
        if is_network and not any(path.suffix == ".safetensors" for path in whole):
            raise ValueError(f"{str(source)!r} has no weights in safetensors; save it with diffusers once more")
        for path in whole:
            shutil.copy(path, to)

    return copy
