"""The checkpoint folder: one layout for training, serving and sharing.

    CHECKPOINT/
      videoldm.json            layout version, name of the system, sha256 of every file
      backbone/                a diffusers folder: unet/ vae/ scheduler/ [text_encoder/ tokenizer/], and condition/
      temporal/STAGE/          config.json and model.safetensors: temporal weights only; unet/ if trained with them
      decoder/                 config.json and model.safetensors: temporal weights of the decoder
      upsampler/               its own unet/ and, if it works on latents, vae/ [text_encoder/ tokenizer/]
      boxes/                   an image model conditioned on vehicle boxes: unet/ and condition/
      svd/                     of Stable Video Diffusion: its image_encoder/ and feature_extractor/

Weights are safetensors only. A file that is missing or differs from its digest is an error that names it.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

LAYOUT = 1
MANIFEST = "videoldm.json"
WEIGHTS = "model.safetensors"
ALLOWED_SUFFIXES = (".json", ".safetensors", ".txt", ".md")
PRETRAINED = Path(__file__).with_name("pretrained")
"""Checkpoints that come with the package, each reached by its name: `synthetic-driving`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `videoldm.json` says.

    Attributes:
        name: name of the system.
        layout: version of the folder layout.
        files: sha256 of every file, by its path in the folder.
        history: what made the checkpoint: one record for each training that wrote to it.
    """

    name: str
    layout: int = LAYOUT
    files: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def digest(self, prefix: str = "") -> str:
        """Identify the files below `prefix` (all of them by default) by one sha256."""
        lines = [f"{path} {self.files[path]}" for path in sorted(self.files) if path.startswith(prefix)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read `videoldm.json`.

    Raises:
        ValueError: if the folder is no checkpoint, or one of another layout.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"no checkpoint at {str(folder)!r}: it has no {MANIFEST}; train one or give another path")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as err:
        raise ValueError(f"{str(path)!r} is damaged ({err}); fetch or train the checkpoint again") from err
    if manifest.layout != LAYOUT:
        raise ValueError(f"{str(path)!r} has layout {manifest.layout}; this version reads layout {LAYOUT}")
    return manifest


def verify(folder: Path, prefixes: Iterable[str] = ("",)) -> Manifest:
    """Check the files below some prefixes against their digests.

    Raises:
        ValueError: naming the first file that is missing or differs.
    """
    manifest = read_manifest(folder)
    for relative, expected in sorted(manifest.files.items()):
        if relative.startswith(tuple(prefixes)):
            path = folder / relative
            if not path.is_file():
                raise ValueError(f"checkpoint {str(folder)!r} lacks {relative}; fetch or train it again")
            if _sha256(path) != expected:
                raise ValueError(
                    f"checkpoint {str(folder)!r}: {relative} is not the file that {MANIFEST} names; fetch or train "
                    "it again (to run another image model, leave it as it is and name the other by `--backbone`)"
                )
    return manifest


def local_folder(uri: str) -> Path:
    """Return the folder of a checkpoint, fetching one that lies on S3 into a cache named by its content.

    Args:
        uri: a path, an S3 address, or the name of a checkpoint that comes with the package.

    Raises:
        ValueError: if there is no checkpoint at `uri`.
    """
    if "://" not in uri:
        return _shipped().get(uri, Path(uri))
    files, root = fsspec.core.url_to_fs(uri)
    try:
        content = files.cat_file(f"{root}/{MANIFEST}")
    except FileNotFoundError as err:
        raise ValueError(f"no checkpoint at {uri!r}: it has no {MANIFEST}; train one or give another path") from err
    folder = Path.home() / ".cache" / "videoldm" / hashlib.sha256(content).hexdigest()[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            fetched = Path(temporary) / "checkpoint"
            for relative in [MANIFEST, *json.loads(content)["files"]]:
                _refuse_path(relative, uri)
                (fetched / relative).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{root}/{relative}", str(fetched / relative))
            fetched.rename(folder)
    return folder


def write_part(folder: Path, part: str, source: Path, *, name: str, record: dict[str, Any] | None = None) -> None:
    """Put a finished folder into a checkpoint as one of its parts, replacing that part.

    Args:
        folder: the checkpoint; made if missing.
        part: path of the part, such as "backbone/vae" or "temporal/keyframes".
        source: folder with the part's files; moved, so it is gone afterwards.
        name: name of the system.
        record: what made the part, kept in the manifest's history.
    """
    for path in source.rglob("*"):
        if path.is_file() and path.suffix not in ALLOWED_SUFFIXES:
            raise ValueError(f"{path.name} may not go into a checkpoint; allowed are {', '.join(ALLOWED_SUFFIXES)}")
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest(name=name)
    kept = {path: digest for path, digest in manifest.files.items() if not path.startswith(f"{part}/")}
    added = {
        f"{part}/{path.relative_to(source).as_posix()}": _sha256(path)
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    target = folder / part
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    shutil.move(source, target)
    history = manifest.history + ([{"part": part, **record}] if record else [])
    updated = Manifest(name=name, files=dict(sorted((kept | added).items())), history=history)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(vars(updated), indent=1) + "\n")
    for relative in added:
        # safetensors makes its files private to the user; here they are as open as the manifest.
        shutil.copymode(temporary, folder / relative)
    temporary.replace(folder / MANIFEST)


def _shipped() -> dict[str, Path]:
    return {folder.parent.name.replace("_", "-"): folder.parent for folder in PRETRAINED.glob(f"*/{MANIFEST}")}


def _refuse_path(relative: str, uri: str) -> None:
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts or path.suffix not in ALLOWED_SUFFIXES:
        raise ValueError(f"checkpoint {uri!r} names a file {relative!r} that may not be in one")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
