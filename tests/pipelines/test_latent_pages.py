from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.latent_pages import latent_values

VALUES = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)


def chunk(path: Path, *, width: int = 48, **options: Any) -> memoryview:
    column = pa.array([row.tobytes() for row in VALUES], pa.binary(width))
    table = pa.table([column], schema=pa.schema([pa.field("latent", column.type, nullable=False)]))
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pq.write_table(table, path, **(settings | options))
    meta = pq.read_metadata(path).row_group(0).column(0)
    start = meta.dictionary_page_offset or meta.data_page_offset
    return memoryview(bytearray(path.read_bytes()[start : start + meta.total_compressed_size]))


@pytest.mark.parametrize("options", [{}, {"data_page_size": 500, "write_batch_size": 7}])
def test_values_are_those_written_whatever_the_pages(tmp_path: Path, options: dict[str, Any]) -> None:
    found = latent_values(chunk(tmp_path / "a.parquet", **options))
    assert found is not None
    np.testing.assert_array_equal(found.reshape(40, 48), VALUES)


def test_one_page_is_a_view(tmp_path: Path) -> None:
    content = chunk(tmp_path / "a.parquet")
    found = latent_values(content)
    assert found is not None
    content[-1] ^= 1
    assert found[-1] == VALUES[-1, -1] ^ 1


def test_any_changed_value_is_refused(tmp_path: Path) -> None:
    content = chunk(tmp_path / "a.parquet", data_page_size=500, write_batch_size=7)
    for place in (len(content) - 1, len(content) // 2 + 3):
        content[place] ^= 64
        with pytest.raises(OSError, match="checksum"):
            latent_values(content)
        content[place] ^= 64


@pytest.mark.parametrize(
    "options",
    [{"compression": "zstd"}, {"use_dictionary": True}, {"write_page_checksum": False}, {"data_page_version": "2.0"},
     {"use_dictionary": False, "column_encoding": {"latent": "BYTE_STREAM_SPLIT"}}],
)  # fmt: skip
def test_other_pages_are_left_to_pyarrow(tmp_path: Path, options: dict[str, Any]) -> None:
    assert latent_values(chunk(tmp_path / "a.parquet", **options)) is None


def test_rubbish_is_no_page() -> None:
    for content in (b"", b"\xff" * 200, bytes(200), b"\x15"):
        found = latent_values(memoryview(bytearray(content)))
        assert found is None or not len(found)
