"""Fixtures of the tests that need the networks `make weights` fetches."""

import os
from pathlib import Path

import pytest

WEIGHTS = Path(__file__).parents[3] / ".cache" / "weights"


@pytest.fixture(scope="session")
def weights() -> Path:
    """Folder of the fetched networks; without it a test skips, or fails if VIDEOLDM_REQUIRE_WEIGHTS is set."""
    if not list(WEIGHTS.glob("*.safetensors")):
        reason = "no networks of measurement; run `make weights`"
        if os.environ.get("VIDEOLDM_REQUIRE_WEIGHTS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return WEIGHTS
