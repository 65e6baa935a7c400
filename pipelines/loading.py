"""Networks from diffusers folders, by the class that their config names; other families are refused before loading."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub import snapshot_download

from pipelines.diffusion.noise import NoiseConfig
from pipelines.diffusion.scheduler_config import noise_config_from_diffusers
from pipelines.models.checks import UNet
from pipelines.models.latent_space import Autoencoder

UNETS: dict[str, Any] = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}
SHAPE = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
"""Settings of a U-Net that decide whether temporal layers fit it."""

AUTOENCODERS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FETCHED = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors")
"""Files of a folder on the hub: settings, words and weights; never pickles."""


def diffusers_folder(name: str) -> Path:
    """Find a diffusers folder by its path, or by its id on the hub, which is then fetched into the hub's cache.

    Raises:
        ValueError: if the hub does not give a folder of that name.
    """
    path = Path(name)
    if path.exists() or not HUB_ID.fullmatch(name):
        return path
    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED), ignore_patterns=["*.fp16.*", "*.non_ema.*"]))
    except (OSError, ValueError) as err:
        raise ValueError(
            f"no folder {name!r} here, and the hub does not give it ({str(err).splitlines()[0]}); give the path of a "
            "diffusers folder"
        ) from err


def load_unet(folder: Path, dtype: torch.dtype) -> UNet:
    """Load an image U-Net.

    Raises:
        ValueError: if the folder holds none, or a network of another family.
    """
    return _family(folder, UNETS, "image U-Net").from_pretrained(folder, use_safetensors=True, torch_dtype=dtype)


def load_autoencoder(folder: Path, dtype: torch.dtype) -> Autoencoder:
    """Load an image autoencoder.

    Raises:
        ValueError: if the folder holds none, or a network of another family.
    """
    family = _family(folder, AUTOENCODERS, "image autoencoder")
    return family.from_pretrained(folder, use_safetensors=True, torch_dtype=dtype)


def check_same_shape(folder: Path, own: Path) -> None:
    """Refuse a U-Net that cannot take the place of another one.

    Args:
        folder: of the one to take the place.
        own: folder of the other.

    Raises:
        ValueError: naming the first setting that differs.
    """
    _family(folder, UNETS, "image U-Net")
    values, wanted = read_json(folder / "config.json"), read_json(own / "config.json")
    for name in SHAPE:
        if values.get(name) != wanted.get(name):
            raise ValueError(
                f"backbone {str(folder)!r} has {name}={values.get(name)}, the checkpoint's own {wanted.get(name)}; "
                "use one fine-tuned from a model of the same shape"
            )


def check_same_prediction(folder: Path, noise: NoiseConfig) -> None:
    """Refuse a backbone that predicts something else than temporal layers were trained to.

    Raises:
        ValueError: naming both.
    """
    other = read_noise(folder)
    if other is not None and other.prediction != noise.prediction:
        raise ValueError(
            f"backbone {str(folder)!r} predicts {other.prediction}, the temporal layers were trained over "
            f"one that predicts {noise.prediction}; use a backbone fine-tuned from the checkpoint's own"
        )


def usable_device(name: torch.device | str) -> torch.device:
    """Name a device that this machine has.

    Raises:
        ValueError: if it has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:
        raise ValueError(f"device {str(name)!r} cannot be used here ({str(err).splitlines()[0]}); use cpu") from err
    return device


def read_noise(folder: Path) -> NoiseConfig | None:
    """Read what a backbone predicts and its noise schedule from its `scheduler/` folder; None if it has none.

    Raises:
        ValueError: if the schedule is of a kind that is not supported.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    return noise_config_from_diffusers(read_json(path)) if path.is_file() else None


def read_class_name(folder: Path) -> str:
    """Read which diffusers class a folder holds.

    Raises:
        ValueError: if it holds none.
    """
    name = read_json(folder / "config.json").get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{str(folder / 'config.json')!r} names no diffusers class; give a diffusers folder")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ValueError: if it is missing or no JSON.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as err:
        raise ValueError(f"no file {str(path)!r}; give a complete diffusers or checkpoint folder") from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{str(path)!r} is not JSON ({err}); fetch or train it again") from err
    return values


def _family(folder: Path, families: dict[str, Any], kind: str) -> Any:
    name = read_class_name(folder)
    if name not in families:
        raise ValueError(f"{str(folder)!r} holds a {name}, which is no {kind}; give one of {' or '.join(families)}")
    return families[name]
