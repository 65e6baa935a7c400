"""The frozen autoencoder of a run: where it lies, what identifies it, and frames to moments."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.checkpoint import local_folder
from pipelines.memory import keep_freed_memory
from pipelines.shard_format import Bucket

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class AutoencoderFile:
    """A diffusers `vae/` folder, read without loading its weights.

    Attributes:
        folder: where it lies, on this machine.
        name: for people.
        digest: sha256 of config and weights.
        kind: kl_moments or vq_prequant.
        latent_channels: z.
        downsampling: pixels per latent cell.
        scaling_factor, shift_factor: a latent is (z - shift) * scale.
    """

    folder: Path
    name: str
    digest: str
    kind: str
    latent_channels: int
    downsampling: int
    scaling_factor: float
    shift_factor: float

    def latent_bytes(self, bucket: Bucket, mean_only: bool) -> int:
        """Bytes of one stored clip."""
        channels = self.latent_channels * (1 if mean_only or self.kind != "kl_moments" else 2)
        cells = (bucket.height // self.downsampling) * (bucket.width // self.downsampling)
        return bucket.num_frames * channels * cells * 2


def find_autoencoder(uri: str) -> AutoencoderFile:
    """Find the autoencoder of a checkpoint folder (`backbone/vae`), of a diffusers folder (`vae`), or `uri` itself.

    Raises:
        ValueError: if there is none, or it is of an unknown kind.
    """
    root = local_folder(uri)
    folders = [root / "backbone" / "vae", root / "vae", root]
    folder = next((one for one in folders if (one / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"no autoencoder at {uri!r}; give a checkpoint folder (with backbone/vae) or a diffusers vae folder"
        )
    config = json.loads((folder / "config.json").read_text())
    kinds = {"AutoencoderKL": "kl_moments", "VQModel": "vq_prequant"}
    if config.get("_class_name") not in kinds:
        raise ValueError(f"{uri!r} holds a {config.get('_class_name')}; the encoders known are {', '.join(kinds)}")
    weights = [path for name in WEIGHTS if (path := folder / name).is_file()]
    if not weights:
        raise ValueError(
            f"{uri!r} holds no safetensors; one of {', '.join(WEIGHTS)} is needed in {folder.name}/ "
            "(diffusers turns an old .bin into it: AutoencoderKL.from_pretrained(old).save_pretrained(new))"
        )
    return AutoencoderFile(
        folder=folder,
        name=f"{root.name}/{folder.name}",
        digest=_digest(config, weights[0]),
        kind=kinds[config["_class_name"]],
        latent_channels=config["latent_channels"],
        downsampling=2 ** (len(config["block_out_channels"]) - 1),
        scaling_factor=config.get("scaling_factor", 1.0),
        shift_factor=config.get("shift_factor") or 0.0,
    )


class Encode(Protocol):
    """Frames of one clip (t, H, W, 3) uint8 to moments (t, 2z, h, w) float16."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:  # noqa: D102 (the class says it)
        ...


def load_autoencoder(folder: Path) -> Any:
    """Load a diffusers autoencoder (KL or VQ) for inference."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: PLC0415 (needed by encoders alone)
    from diffusers.models.autoencoders.vq_model import VQModel  # noqa: PLC0415

    kinds: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
    kind = kinds[json.loads((folder / "config.json").read_text())["_class_name"]]
    return kind.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def load_encoder(folder: Path, precision: str, device: str, *, tiling: bool = False) -> Encode:
    """Load the autoencoder for encoding clip by clip; a clip's bits do not depend on what else is encoded.

    Args:
        folder: a diffusers `vae/` folder.
        precision: float32 or bfloat16.
        device: cpu or cuda.
        tiling: encode large frames in overlapping tiles.

    Raises:
        ValueError: if the autoencoder cannot work in tiles.
    """
    import torch  # noqa: PLC0415 (seconds to import, needed by encoder processes alone)

    from pipelines.models.autoencoder import encode_moments  # noqa: PLC0415

    keep_freed_memory()
    # One thread each: sums split over threads would make bits depend on the machine.
    torch.set_num_threads(1)
    dtype = getattr(torch, precision)
    vae = load_autoencoder(folder).to(device, dtype)
    if tiling:
        if not hasattr(vae, "enable_tiling"):
            raise ValueError(f"a {type(vae).__name__} cannot encode in tiles; leave tiling False")
        vae.enable_tiling()

    @torch.inference_mode()
    def encode(frames: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        moments = encode_moments(vae, pixels[None])[0]
        return moments.to(torch.float16).cpu().numpy()

    return encode


def _digest(config: dict[str, Any], weights: Path) -> str:
    # The version that wrote the file and its path of origin do not change what it computes.
    relevant = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
