"""The checkpoint folder: parts, digests, damage."""

import json
from pathlib import Path

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import save_file

from pipelines import checkpoint


def _part(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": torch.full((3,), value)}, folder / checkpoint.WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"value": value}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    checkpoint.write_part(target, "backbone/unet", _part(tmp_path / "a", 1.0), name="tiny", record={"steps": 5})
    checkpoint.write_part(target, "temporal/keyframes", _part(tmp_path / "b", 2.0), name="tiny")
    return target


def test_replaced_part_changes_its_digest_and_no_other(folder: Path, tmp_path: Path) -> None:
    before = checkpoint.verify(folder)
    checkpoint.write_part(folder, "temporal/keyframes", _part(tmp_path / "c", 3.0), name="tiny", record={"steps": 7})
    after = checkpoint.verify(folder)
    assert after.digest("backbone/") == before.digest("backbone/")
    assert after.digest("temporal/") != before.digest("temporal/")
    assert [(record["part"], record["steps"]) for record in after.history] == [
        ("backbone/unet", 5),
        ("temporal/keyframes", 7),
    ]


def test_every_file_of_a_part_may_be_read_by_those_who_read_the_manifest(folder: Path) -> None:
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {(folder / checkpoint.MANIFEST).stat().st_mode}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "temporal/keyframes" / checkpoint.WEIGHTS
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    checkpoint.verify(folder, ["backbone/"])
    with pytest.raises(ValueError, match=r"temporal/keyframes/model\.safetensors"):
        checkpoint.verify(folder)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    source = _part(tmp_path / "d", 1.0)
    torch.save({}, source / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin may not go into a checkpoint"):
        checkpoint.write_part(folder, "decoder", source, name="tiny")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [(None, "has no videoldm.json"), ("{", "is damaged"), ('{"name": "x", "layout": 99}', "layout 99")],
)
def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / checkpoint.MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match=message):
        checkpoint.read_manifest(tmp_path)


def test_checkpoint_on_s3_is_fetched_once_and_verifies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "models", f"driving/{path.relative_to(folder)}")
    fetched = checkpoint.local_folder("s3://models/driving")
    assert checkpoint.verify(fetched) == checkpoint.verify(folder)
    client.delete_object(Bucket="models", Key="driving/temporal/keyframes/model.safetensors")
    assert checkpoint.local_folder("s3://models/driving") == fetched
    with pytest.raises(ValueError, match="no checkpoint at 's3://models/nothing'"):
        checkpoint.local_folder("s3://models/nothing")
    server.stop()


def test_shipped_checkpoint_is_reached_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "pretrained" / "small_world"
    folder.rename(tmp_path / "aside")
    shipped.parent.mkdir()
    (tmp_path / "aside").rename(shipped)
    monkeypatch.setattr(checkpoint, "PRETRAINED", shipped.parent)
    assert checkpoint.local_folder("small-world") == shipped
    for other in ("small_world", "../small-world", "other"):
        assert checkpoint.local_folder(other) == Path(other)
