"""Digests of network folders."""

import json
from pathlib import Path

import pytest

from pipelines.digests import network_digest


def write(folder: Path, config: dict[str, object], weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_digest_follows_config_and_weights_only(tmp_path: Path) -> None:
    first = network_digest(write(tmp_path / "a", {"_class_name": "X", "z": 4, "_name_or_path": "p", "scale": 1}))
    assert first == network_digest(write(tmp_path / "b", {"scale": 1, "_class_name": "X", "z": 4, "_v": "2"}))
    others = [
        write(tmp_path / "c", {"_class_name": "Y", "z": 4, "scale": 1}),
        write(tmp_path / "d", {"_class_name": "X", "z": 4, "scale": 2}),
        write(tmp_path / "e", {"_class_name": "X", "z": 4, "scale": 1}, b"other"),
    ]
    assert len({first, *map(network_digest, others)}) == 4


def test_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        network_digest(tmp_path)
    (write(tmp_path / "a", {}) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        network_digest(tmp_path / "a")
