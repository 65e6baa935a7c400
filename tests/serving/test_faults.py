"""Stores that go away in the middle of work, and files on S3."""

import threading

import httpx2 as httpx
import openai
import pytest
from moto.server import ThreadedMotoServer

from serving.artifacts import ArtifactStore
from serving.conductor import Conductor
from serving.database import open_database
from serving.tables import metadata
from tests.serving.house import House, serving, wait_for, working


@pytest.mark.postgres
@pytest.mark.slow
def test_database_killed_and_restarted_loses_and_changes_nothing(postgres, tmp_path):
    engine = open_database(postgres.url, durable=True)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    engine.dispose()
    alone = House(tmp_path / "alone")
    jobs = [alone.submit(seed=seed, steps=40) for seed in range(8)]
    with working(alone.worker("denoise"), alone.worker("decode")):
        wait_for(lambda: all(alone.backend.jobs.get(job).is_finished for job in jobs))
    expected = [alone.video(job) for job in jobs]
    house = House(tmp_path / "restarted", {"database": postgres.url}, save_every_s=0.0)
    jobs = [house.submit(seed=seed, steps=40) for seed in range(8)]
    restarted = threading.Event()

    def restart() -> None:
        for count in (30, 150):
            wait_for(lambda count=count: len(house.trace.read_text().splitlines()) > count)
            postgres.stop("immediate")
            postgres.start()
        restarted.set()

    threading.Thread(target=restart).start()
    with working(house.worker("denoise", "d1"), house.worker("denoise", "d2"), house.worker("decode")):
        wait_for(restarted.is_set)
        wait_for(lambda: all(house.backend.jobs.get(job).is_finished for job in jobs))
    assert [house.video(job) for job in jobs] == expected
    assert len(house.trace.read_text().splitlines()) <= 1.2 * 8 * 40


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.put(f"{url}/videos")
    yield "s3://videos/jobs"
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_results_on_s3_are_fetched_by_signed_url_and_deleted_with_the_video(bucket, tmp_path):
    house = House(tmp_path, {"files": bucket})
    with serving(house) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        video = client.videos.create_and_poll(prompt="a road", poll_interval_ms=100)
        assert video.status == "completed", video.error
        answer = httpx.get(f"{url}/v1/videos/{video.id}/content", follow_redirects=False)
        assert answer.status_code == 307
        assert "Signature" in answer.headers["location"]
        assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
        client.videos.delete(video.id)
        assert httpx.get(answer.headers["location"]).status_code in (403, 404)


def test_damaged_file_is_refused_by_name(tmp_path):
    store = ArtifactStore(str(tmp_path))
    reference = store.put("job", b"latents", ".bin")
    assert store.get(reference) == b"latents"
    (tmp_path / reference).write_bytes(b"latentz")
    with pytest.raises(ValueError, match="damaged"):
        store.get(reference)


def test_conductor_removes_what_was_kept_long_enough(tmp_path):
    house = House(tmp_path, {"retention_s": 1e-9})
    job = house.submit()
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    assert (tmp_path / "files" / job).is_dir()
    conductor = Conductor(house.backend)
    conductor.look()
    assert house.backend.jobs.get(job) is None
    assert not (tmp_path / "files" / job).exists()
