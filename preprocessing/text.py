"""Text of a corpus, encoded once for each distinct caption: which encoder, which captions, and the stage itself."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra import storage
from pipelines.captions import CAPTIONS_PER_PART, FOLDER, EncodedCaption, part_file
from pipelines.checkpoint import local_folder
from preprocessing.plan_store import PlanReader

_BATCH = 32


def find_text_encoder(checkpoint: str) -> Path | None:
    """The folder with `text_encoder/` and `tokenizer/` of a checkpoint or a diffusers folder, None if there is none."""
    root = local_folder(checkpoint)
    folders = [root / "backbone", root, root.parent]
    return next((f for f in folders if (f / "text_encoder").is_dir() and (f / "tokenizer").is_dir()), None)


def text_encoder_digest(folder: Path) -> str:
    """Identify a text encoder and its tokenizer by all their files."""
    files = sorted(p for part in ("text_encoder", "tokenizer") for p in (folder / part).rglob("*") if p.is_file())
    lines = [f"{path.relative_to(folder)} {storage.sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def distinct_captions(shards: str) -> list[str]:
    """The captions of a planned set, sorted, with the empty one first; [] if no clip has any."""
    captions = {clip.caption for clip in PlanReader(shards).all_clips()}
    return sorted(captions | {""}) if captions - {""} else []


def part_numbers(captions: Sequence[str]) -> set[int]:
    """Numbers of the parts that some captions fill."""
    return set(range(-(-len(captions) // CAPTIONS_PER_PART)))


def written_parts(shards: str) -> dict[int, str]:
    """Path of each part by its number, for names that have the form of a part's."""
    found = {}
    for file in storage.list_files(storage.join(shards, FOLDER), ".parquet"):
        number = file.relative.removeprefix("part-").partition("-")[0]
        if file.relative.startswith("part-") and number.isdigit():
            found[int(number)] = f"{FOLDER}/{file.relative}"
    return found


class EncodeCaptions:
    """Encode parts of the captions and write them.

    Args:
        shards: the shard set, for its plan.
        folder: with `text_encoder/` and `tokenizer/`.
        device: cpu or cuda.
    """

    def __init__(self, shards: str, folder: Path, device: str) -> None:
        import torch  # noqa: PLC0415 (seconds to import, needed by encoder processes alone)

        from pipelines.models.text import TextEncoder  # noqa: PLC0415

        # One thread: the same bits anywhere.
        torch.set_num_threads(1)
        self._shards, self._captions = shards, distinct_captions(shards)
        self._encoder, self._digest = TextEncoder.from_folder(folder).to(device), text_encoder_digest(folder)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Write parts; returns their numbers and how many captions lost tokens."""
        done = []
        for number in parts["part"].to_pylist():
            own = self._captions[number * CAPTIONS_PER_PART : (number + 1) * CAPTIONS_PER_PART]
            encoded = list(self._encode(own))
            path, content = part_file(number, encoded, self._digest)
            storage.write_atomic(storage.join(self._shards, path), content)
            done.append({"part": number, "shortened": sum(one.tokens_dropped > 0 for one in encoded)})
        return pa.Table.from_pylist(done, pa.schema([("part", pa.int32()), ("shortened", pa.int32())]))

    def _encode(self, captions: Sequence[str]) -> Iterator[EncodedCaption]:
        import torch  # noqa: PLC0415

        limit = self._encoder.tokenizer.model_max_length
        for start in range(0, len(captions), _BATCH):
            batch = list(captions[start : start + _BATCH])
            lengths = [len(ids) for ids in self._encoder.tokenizer(batch)["input_ids"]]
            ids = self._encoder.tokenizer(
                batch, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            ).input_ids
            with torch.inference_mode():
                # One by one: what a caption becomes must not depend on its neighbours.
                states = [self._encoder.model(row[None].to(self._encoder.model.device)) for row in ids]
            for caption, length, row, state in zip(batch, lengths, ids, states, strict=True):
                yield EncodedCaption(
                    caption=caption,
                    tokens=row.numpy().astype(np.int32),
                    tokens_dropped=max(length - limit, 0),
                    embedding=state.last_hidden_state[0].to(torch.float16).cpu().numpy(),
                )
