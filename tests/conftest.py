"""What all tests share."""

from collections.abc import Iterator

import pytest
import s3fs


@pytest.fixture(autouse=True)
def _forget_s3_endpoints() -> Iterator[None]:
    """Let the next test meet its own server: s3fs keeps connections by their arguments, not by the environment."""
    yield
    s3fs.S3FileSystem.clear_instance_cache()
