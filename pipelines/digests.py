"""What identifies a network's folder, so that latents are never mixed up between autoencoders."""

import hashlib
import json
from pathlib import Path

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin")


def network_digest(folder: Path) -> str:
    """sha256 of config and weights of a diffusers network's folder.

    The version that wrote the config and its path of origin do not change what the network computes and do not count.

    Raises:
        ValueError: if the folder holds no config or no weights.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as err:
        raise ValueError(f"no network at {str(folder)!r}: it has no config.json; give a diffusers folder") from err
    weights = [path for name in WEIGHTS if (path := folder / name).is_file()]
    if not weights:
        raise ValueError(f"{str(folder)!r} holds no weights; one of {', '.join(WEIGHTS)} is needed")
    relevant = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    with weights[0].open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
