"""Corpus and shards on S3 (moto's server on loopback), with requests that fail on purpose."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from infra.cli import ExitCode
from pipelines.shards import open_shards
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.verify import find_faults

CONFIG = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),), min_groups=3)


class Store:
    """A WSGI application that counts requests and answers every `fail_every`-th with 503."""

    def __init__(self) -> None:
        self.application = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str, str]] = []
        self.fail_every = 0
        self.failed = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        if self.fail_every and len(self.requests) % self.fail_every == 0:
            self.failed += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        answer: Iterable[bytes] = self.application(environ, start_response)
        return answer


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    # The server's objects outlive it: they belong to the process.
    for name in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        for item in client.list_objects_v2(Bucket=name).get("Contents", ()):
            client.delete_object(Bucket=name, Key=item["Key"])
        client.delete_bucket(Bucket=name)
    client.create_bucket(Bucket="bucket")
    yield store
    server.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()


def fill(make_video: Callable[..., Path], folder: Path) -> None:
    client = boto3.client("s3")
    for i in range(3):
        client.upload_file(str(make_video(folder / f"{i}.mp4", 26, seed=i)), "bucket", f"corpus/{i}.mp4")
    client.put_object(Bucket="bucket", Key="corpus/text.mp4", Body=b"no video")


def test_a_set_on_s3_equals_one_on_disk_though_one_request_in_ten_fails(
    store: Store, vae_folder: Path, tmp_path: Path, make_video: Callable[..., Path], run_job: Callable[[Job], ExitCode]
) -> None:
    fill(make_video, tmp_path / "corpus")
    (tmp_path / "corpus" / "text.mp4").write_bytes(b"no video")
    store.fail_every = 10
    remote = Job(corpus="s3://bucket/corpus", shards="s3://bucket/shards", checkpoint=str(vae_folder), config=CONFIG)
    assert run_job(remote) == ExitCode.DONE_WITH_QUARANTINE
    assert store.failed >= 3
    assert list(find_faults("s3://bucket/shards")) == []
    local = Job(
        corpus=str(tmp_path / "corpus"), shards=str(tmp_path / "shards"), checkpoint=str(vae_folder), config=CONFIG
    )
    run_job(local)
    store.fail_every = 0
    body = boto3.client("s3").get_object(Bucket="bucket", Key="shards/_SUCCESS.json")["Body"].read()
    assert json.loads(body) == json.loads((tmp_path / "shards" / "_SUCCESS.json").read_text())


def test_one_clip_is_one_range_read(
    store: Store, vae_folder: Path, tmp_path: Path, make_video: Callable[..., Path], run_job: Callable[[Job], ExitCode]
) -> None:
    fill(make_video, tmp_path / "corpus")
    run_job(Job(corpus="s3://bucket/corpus", shards="s3://bucket/shards", checkpoint=str(vae_folder), config=CONFIG))
    shards = open_shards("s3://bucket/shards")
    (refs,) = shards.buckets.values()
    first, second = refs[:2]
    assert first.shard == second.shard
    shards.read([first])
    store.requests.clear()
    # The footer of this shard is at hand now: any clip of it costs one GET.
    [clip] = shards.read([second])
    assert clip.clip_id == shards.labels[second].clip_id
    kinds = Counter(method for method, path, _ in store.requests if ".parquet" in path)
    assert kinds == {"GET": 1}
    assert all(range_ for method, _, range_ in store.requests if method == "GET")
