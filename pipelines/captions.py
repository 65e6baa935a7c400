"""Text of a shard set: tokens and embeddings, once for each distinct caption. Its file format, written and read.

`captions/part-00000-<16 hex>.parquet` holds a stretch of the sorted captions; the digest of the content is part of the
name. Row groups of a few captions: a caption is one range read. The empty caption is always there.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Int32

FOLDER = "captions"
CAPTIONS_PER_PART = 1024
_ROWS_PER_GROUP = 16


@dataclass(frozen=True, kw_only=True)
class EncodedCaption:
    """One caption.

    Attributes:
        caption: the text.
        tokens: ids, padded to the encoder's length.
        tokens_dropped: ids that did not fit.
        embedding: last hidden state of the text encoder.
    """

    caption: str
    tokens: Int32[np.ndarray, " l"]
    tokens_dropped: int
    embedding: Float16[np.ndarray, "l d"]


class _Place(NamedTuple):
    path: str
    row_group: int
    row: int


def part_file(number: int, captions: Sequence[EncodedCaption], encoder_digest: str) -> tuple[str, bytes]:
    """Write a part: its path within the set and its bytes; same captions and encoder, same bytes."""
    shape = captions[0].embedding.shape
    schema = pa.schema(
        [
            pa.field("caption", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(pa.int32()), nullable=False),
            pa.field("tokens_dropped", pa.int32(), nullable=False),
            pa.field("embedding", pa.binary(2 * int(np.prod(shape))), nullable=False),
        ],
        metadata={
            "videoldm.text_encoder_digest": encoder_digest,
            "videoldm.embedding": json.dumps({"shape": shape, "dtype": "float16"}),
        },
    )
    columns = [
        [one.caption for one in captions],
        [one.tokens.tolist() for one in captions],
        [one.tokens_dropped for one in captions],
        [one.embedding.tobytes() for one in captions],
    ]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=_ROWS_PER_GROUP, compression="none", use_dictionary=False,
        write_statistics=["caption"], write_page_checksum=True,
    )  # fmt: skip
    content = sink.getvalue().to_pybytes()
    return f"{FOLDER}/part-{number:05d}-{hashlib.sha256(content).hexdigest()[:16]}.parquet", content


class CaptionStore:
    """The captions of a shard set.

    Args:
        uri: of the set, local or `s3://`.

    Raises:
        ValueError: if the set was made without a text encoder.
    """

    def __init__(self, uri: str) -> None:
        self._files, root = fsspec.core.url_to_fs(uri)
        self._places: dict[str, _Place] = {}
        self.encoder_digest = ""
        for path in sorted(self._files.glob(f"{root.rstrip('/')}/{FOLDER}/part-*.parquet")):
            with self._files.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                self.encoder_digest = parquet.schema_arrow.metadata[b"videoldm.text_encoder_digest"].decode()
                for group in range(parquet.num_row_groups):
                    for row, value in enumerate(parquet.read_row_group(group, columns=["caption"])["caption"]):
                        self._places[value.as_py()] = _Place(path, group, row)
        if not self._places:
            raise ValueError(f"{uri} holds no encoded captions; preprocess with a checkpoint that has a text_encoder/")

    def __len__(self) -> int:
        """Count the captions, the empty one included."""
        return len(self._places)

    def read(self, captions: Iterable[str]) -> dict[str, EncodedCaption]:
        """Read captions; each row group is fetched once, with its page checksums verified.

        Raises:
            ValueError: if the set holds no such caption, or a page is damaged.
        """
        wanted: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for caption in set(captions):
            if caption not in self._places:
                raise ValueError(f"no caption {caption[:60]!r} among the {len(self)} encoded ones")
            place = self._places[caption]
            wanted.setdefault((place.path, place.row_group), []).append((place.row, caption))
        found: dict[str, EncodedCaption] = {}
        for (path, group), rows in sorted(wanted.items()):
            table = self._read_group(path, group)
            shape = json.loads(table.schema.metadata[b"videoldm.embedding"])["shape"]
            for row, caption in rows:
                values = {name: table[name][row].as_py() for name in table.column_names}
                found[caption] = EncodedCaption(
                    caption=caption,
                    tokens=np.array(values["tokens"], np.int32),
                    tokens_dropped=values["tokens_dropped"],
                    embedding=np.frombuffer(values["embedding"], np.float16).reshape(shape),
                )
        return found

    def _read_group(self, path: str, group: int) -> pa.Table:
        try:
            with (
                self._files.open(path, "rb") as file,
                pq.ParquetFile(file, page_checksum_verification=True) as parquet,
            ):
                return parquet.read_row_group(group, use_threads=False)
        except (OSError, pa.ArrowException) as err:
            raise ValueError(f"{path} is missing or damaged ({err}); run `python -m preprocessing verify`") from err
