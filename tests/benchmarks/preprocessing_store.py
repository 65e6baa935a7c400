"""P10 and P12: preprocessing against an S3 protocol server on loopback."""

import os
import threading
import time
from pathlib import Path

import boto3
import s3fs
from werkzeug.serving import make_server

from pipelines.shards import open_shards
from tests.benchmarks.preprocessing_gates import run_small
from tests.preprocessing.conftest import write_video
from tests.preprocessing.test_s3 import Store


def gets_and_slow_down(folder: Path, vae: Path) -> tuple[float, float]:
    """GETs for one clip by id, and the time of a run with one failing request in ten over one without."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bench")
    for i in range(12):
        client.upload_file(str(write_video(folder / "s3" / f"{i}.mp4", 80, seed=i)), "bench", f"corpus/{i}.mp4")
    seconds = []
    for name, fail_every in (("warm", 0), ("sound", 0), ("failing", 10)):
        store.fail_every = fail_every
        start = time.monotonic()
        run_small("s3://bench/corpus", f"s3://bench/{name}", vae)
        seconds.append(time.monotonic() - start)
    store.fail_every = 0
    shards = open_shards("s3://bench/sound")
    (refs,) = shards.buckets.values()
    shards.read(refs[:1])
    store.requests.clear()
    shards.read(refs[1:2])
    server.shutdown()
    return sum(method == "GET" for method, _, _ in store.requests), seconds[2] / seconds[1]
