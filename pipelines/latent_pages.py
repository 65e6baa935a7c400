"""The pages of the latent column, read in place: checksum verified, nothing copied.

pyarrow copies a fixed-size binary column value by value into new memory, which costs as much as the checksum. Our own
shards are uncompressed PLAIN pages without levels, so that their bytes are the latents. Source: Parquet format,
PageHeader in Thrift's compact protocol.
"""

import zlib
from typing import NamedTuple

import numpy as np

_INT_TYPES = (3, 4, 5, 6)
_STRUCT = 12
_DATA_PAGE = PLAIN = 0
# Field numbers of PageHeader and of the DataPageHeader in it.
_TYPE, _PLAIN_SIZE, _SIZE, _CRC, _DATA_HEADER, _ENCODING = 1, 2, 3, 4, 5, 2


class _Header(NamedTuple):
    length: int
    size: int
    crc: int


def latent_values(chunk: memoryview) -> np.ndarray | None:
    """The values of a column chunk as bytes, a view if they are one page; None if the pages are not of our form.

    Args:
        chunk: the bytes of the chunk, from its first data page.

    Raises:
        OSError: if a checksum fails.
    """
    pages: list[np.ndarray] = []
    start = 0
    while start < len(chunk):
        header = _read_header(chunk[start : start + 128])
        if header is None:
            return None
        body = chunk[start + header.length : start + header.length + header.size]
        if zlib.crc32(body) != header.crc:
            raise OSError("the checksum of a page of latents fails")
        pages.append(np.frombuffer(body, np.uint8))
        start += header.length + header.size
    return pages[0] if len(pages) == 1 else np.concatenate(pages) if pages else None


def _read_header(content: memoryview) -> _Header | None:
    try:
        fields, length = _read_struct(content, 0)
    except (IndexError, ValueError):
        return None
    inner = fields.get(_DATA_HEADER)
    if not isinstance(inner, dict) or fields.get(_TYPE) != _DATA_PAGE or inner.get(_ENCODING) != PLAIN:
        return None
    size, crc = fields.get(_SIZE), fields.get(_CRC)
    if not isinstance(size, int) or not isinstance(crc, int) or size != fields.get(_PLAIN_SIZE):
        return None
    return _Header(length, size, crc & 0xFFFFFFFF)


def _read_struct(content: memoryview, at: int) -> tuple[dict[int, object], int]:
    """Fields of a struct of integers and structs, and where it ends.

    Raises:
        ValueError: if there is anything else in it.
    """
    fields: dict[int, object] = {}
    number = 0
    while content[at]:
        step, kind = content[at] >> 4, content[at] & 15
        if not step or kind not in (*_INT_TYPES, _STRUCT):
            raise ValueError(f"field kind {kind} is not expected in a page header")
        number += step
        if kind == _STRUCT:
            fields[number], at = _read_struct(content, at + 1)
        else:
            fields[number], at = _read_int(content, at + 1)
    return fields, at + 1


def _read_int(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            # Zigzag: the sign is the lowest bit.
            return value >> 1 ^ -(value & 1), at
