"""P10 and P12: preprocessing against an S3 protocol server on loopback."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import s3fs
from werkzeug.serving import make_server

from infra import storage
from pipelines.shard_format import Bucket, LatentClip, ShardConfig
from pipelines.shard_writer import write_shards
from pipelines.shards import open_shards
from preprocessing.finish import read_quarantine
from tests.benchmarks.preprocessing_gates import run_small
from tests.preprocessing.conftest import write_video
from tests.preprocessing.test_s3 import Store

PATIENCE_S = 2


class UnsteadyStore(Store):
    """Fails every `fail_every`-th request: with 503, by resetting the connection, or by not answering, in turn."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        due = self.fail_every and (len(self.requests) + 1) % self.fail_every == 0
        way = self.failed % 3
        if due and way:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], "failed"))
            self.failed += 1
            if way == 1:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            else:
                time.sleep(PATIENCE_S + 1)
            raise ConnectionResetError
        return super().__call__(environ, start_response)


@contextmanager
def serving(folder: Path) -> Iterator[UnsteadyStore]:
    """A store with a bucket `bench`; the environment points to it."""
    store = UnsteadyStore()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    # Waiting a minute for an answer that never comes would measure that minute.
    storage._S3_RETRIES["read_timeout"] = PATIENCE_S
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="bench")
    yield store
    server.shutdown()
    del storage._S3_RETRIES["read_timeout"]
    del os.environ["AWS_ENDPOINT_URL"]
    s3fs.S3FileSystem.clear_instance_cache()


def gets(folder: Path, vae: Path) -> tuple[float, float]:
    """P10: data GETs and MiB for one clip by id; row groups as large as they come, the shard's footer at hand."""
    bucket = Bucket(num_frames=8, height=320, width=512, rate="2")
    config = ShardConfig(
        autoencoder="x", autoencoder_digest="y", latent_kind="kl_moments", latent_channels=4, downsampling=8,
        scaling_factor=1.0, shift_factor=0.0, buckets=(bucket,),
    )  # fmt: skip
    moments = np.random.default_rng(0).normal(size=(8, 8, 40, 64)).astype(np.float16)
    clips = [LatentClip(clip_id=f"{i:032d}", moments=moments, fps=2.0) for i in range(60)]
    write_shards(folder / "gets", config, {bucket: [clips]})
    with serving(folder) as store:
        s3fs.S3FileSystem().put(str(folder / "gets"), "bench/gets", recursive=True)
        shards = open_shards("s3://bench/gets")
        shards.read([shards.find(clips[0].clip_id)])
        store.requests.clear()
        shards.read([shards.find(clips[40].clip_id)])
        data = [span for method, _, span in store.requests if method == "GET"]
    first, last = data[0].removeprefix("bytes=").split("-")
    return len(data), (int(last) - int(first) + 1) / 2**20


def slow_down(folder: Path, vae: Path) -> tuple[float, int]:
    """P12: time of a run with one failing request in ten over one without, and clips it lost."""
    with serving(folder) as store:
        client = boto3.client("s3")
        for i in range(12):
            client.upload_file(str(write_video(folder / "s3" / f"{i}.mp4", 80, seed=i)), "bench", f"corpus/{i}.mp4")
        seconds = []
        for name, fail_every in (("warm", 0), ("sound", 0), ("failing", 10)):
            store.fail_every = fail_every
            start = time.monotonic()
            run_small("s3://bench/corpus", f"s3://bench/{name}", vae)
            seconds.append(time.monotonic() - start)
        store.fail_every = 0
        assert store.failed >= 6, "no request failed"
        lost = sum(rejection.clips for rejection in read_quarantine("s3://bench/failing"))
        assert len(open_shards("s3://bench/failing")) + lost == len(open_shards("s3://bench/sound"))
    return seconds[2] / seconds[1], lost
