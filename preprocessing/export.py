"""`python -m preprocessing export SHARDS OUT`: the same clips for other loaders, as WebDataset tars or MosaicML MDS."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from infra.cli import ExitCode, parse
from pipelines.shard_format import LatentClip
from pipelines.shards import ClipRef, ShardSet, open_shards


@dataclass(frozen=True, kw_only=True)
class Export:
    """Copy a shard set into the format of another loader; one folder per bucket, shards as they are.

    Attributes:
        shards: folder or s3:// prefix.
        out: local folder.
        form: webdataset (tar of .npy and .json) or mds (MosaicML Streaming, index.json).
    """

    shards: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    form: Literal["webdataset", "mds"] = "webdataset"


def main(arguments: Sequence[str]) -> ExitCode:
    """Copy."""
    command = parse(Export, arguments, program="python -m preprocessing export")
    if command.out.exists() and any(command.out.iterdir()):
        raise ValueError(f"{command.out} is not empty; give an empty folder")
    shards = open_shards(command.shards)
    write = {"webdataset": write_webdataset, "mds": write_mds}[command.form]
    for bucket, refs in shards.buckets.items():
        if refs:
            write(command.out / bucket.name, shards, refs)
    print(f"{len(shards)} clips as {command.form} in {command.out}")
    return ExitCode.DONE


def write_webdataset(folder: Path, shards: ShardSet, refs: Sequence[ClipRef]) -> None:
    """One tar per shard; each clip is CLIP_ID.latent.npy and CLIP_ID.json."""
    folder.mkdir(parents=True)
    for number, clips in enumerate(_by_shard(shards, refs)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                latent = io.BytesIO()
                np.save(latent, clip.moments)
                _add(tar, f"{clip.clip_id}.latent.npy", latent.getvalue())
                _add(tar, f"{clip.clip_id}.json", json.dumps(_labels(clip), sort_keys=True).encode())


def write_mds(folder: Path, shards: ShardSet, refs: Sequence[ClipRef]) -> None:
    """MDS shards with the columns labels (JSON, with the latent's shape) and latent (bytes, float16)."""
    folder.mkdir(parents=True)
    columns = {
        "column_encodings": ["json", "bytes"], "column_names": ["labels", "latent"], "column_sizes": [None, None],
        "compression": None, "format": "mds", "hashes": [], "size_limit": None, "version": 2,
    }  # fmt: skip
    index = []
    for number, clips in enumerate(_by_shard(shards, refs)):
        name = f"shard.{number:05d}.mds"
        content = _mds_shard([_mds_sample(clip) for clip in clips], columns)
        (folder / name).write_bytes(content)
        data = {"basename": name, "bytes": len(content), "hashes": {}}
        index.append({**columns, "raw_data": data, "samples": len(clips), "zip_data": None})
    (folder / "index.json").write_text(json.dumps({"shards": index, "version": 2}, sort_keys=True))


def _mds_shard(samples: Sequence[bytes], columns: dict[str, Any]) -> bytes:
    """Number of samples, their offsets, the columns as JSON, the samples."""
    header = json.dumps(columns, sort_keys=True).encode()
    offsets = np.cumsum([0, *map(len, samples)]) + 4 + 4 * (len(samples) + 1) + len(header)
    return np.uint32(len(samples)).tobytes() + offsets.astype(np.uint32).tobytes() + header + b"".join(samples)


def _mds_sample(clip: LatentClip) -> bytes:
    values = [json.dumps(_labels(clip), sort_keys=True).encode(), clip.moments.tobytes()]
    return np.array([len(value) for value in values], np.uint32).tobytes() + b"".join(values)


def _by_shard(shards: ShardSet, refs: Sequence[ClipRef]) -> Iterator[list[LatentClip]]:
    for shard in sorted({ref.shard for ref in refs}):
        yield shards.read([ref for ref in refs if ref.shard == shard])


def _labels(clip: LatentClip) -> dict[str, Any]:
    values = {name: value for name, value in asdict(clip).items() if name != "moments"}
    return {**values, "shape": list(clip.moments.shape), "dtype": "float16"}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # No time and no owner: same clips, same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
