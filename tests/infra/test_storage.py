"""Atomic storage on a local folder and on a real S3 protocol."""

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra import storage


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="corpus")
        yield "s3://corpus"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return storage.join(request.getfixturevalue("s3_bucket"), request.node.name.replace("[", "-").strip("]"))


def test_write_atomic_then_read_returns_the_bytes(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    storage.write_atomic(uri, b"one")
    storage.write_atomic(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert [file.relative for file in storage.list_files(root)] == ["a/b.bin"]


def test_put_if_absent_of_many_writers_lets_exactly_one_win(root: str) -> None:
    uri = storage.join(root, "ledger.json")
    results: dict[int, bool] = {}

    def put(number: int) -> None:
        results[number] = storage.put_if_absent(uri, f"{number}".encode())

    threads = [threading.Thread(target=put, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, won in results.items() if won]
    assert len(winners) == 1
    assert storage.read_bytes(uri) == f"{winners[0]}".encode()
    assert len(storage.list_files(root)) == 1


def test_publish_moves_the_file_and_leaves_no_temporary(root: str, tmp_path: Path) -> None:
    local = tmp_path / "shard.parquet"
    local.write_bytes(b"rows")
    local.chmod(0o600)
    uri = storage.join(root, "data", "shard.parquet")
    storage.publish(local, uri)
    assert not local.exists()
    assert storage.read_bytes(uri) == b"rows"
    assert [(file.relative, file.size_bytes) for file in storage.list_files(root)] == [("data/shard.parquet", 4)]
    if not storage.is_remote(uri):
        local.touch()
        assert Path(uri).stat().st_mode == local.stat().st_mode, "private to the user as the local file was"


def test_list_files_of_a_missing_folder_is_empty(root: str) -> None:
    assert storage.list_files(storage.join(root, "nothing")) == []
    assert not storage.exists(storage.join(root, "nothing"))


def test_delete_of_a_missing_file_does_nothing(root: str) -> None:
    storage.write_atomic(storage.join(root, "kept"), b"x")
    storage.delete(storage.join(root, "gone"))
    storage.delete(storage.join(root, "kept"))
    assert storage.list_files(root) == []


def test_unknown_scheme_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"ftp://host/x.*s3://bucket/key"):
        storage.read_bytes("ftp://host/x")


def test_absolute_paths_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("out/shards") == str(tmp_path / "out/shards")
    assert storage.absolute("s3://bucket/shards") == "s3://bucket/shards"
