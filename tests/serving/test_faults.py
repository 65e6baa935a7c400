"""Stores and files that are lost in the middle of work, and files on S3."""

import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from serving.artifacts import ArtifactStore, LostFileError
from serving.conductor import Conductor
from serving.database import open_database
from serving.tables import metadata, tasks
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
    with pytest.raises(LostFileError, match="damaged"):
        store.get(reference)


def _tear(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def expected(tmp_path):
    """The video of a job of two segments that nothing disturbed."""
    alone = House(tmp_path / "alone")
    job = alone.submit(frames=16)
    with working(alone.worker("denoise"), alone.worker("decode")):
        wait_for(lambda: alone.backend.jobs.get(job).is_finished)
    return alone.video(job)


def _tasks(house, column):
    with house.backend.queue.engine.connect() as connection:
        return [value for value in connection.execute(select(column).order_by(tasks.c.position)).scalars() if value]


@pytest.mark.parametrize("damage", [Path.unlink, _tear])
def test_lost_output_of_a_stage_is_made_again(tmp_path, expected, damage):
    house = House(tmp_path / "damaged")
    job = house.submit(frames=16)
    with working(house.worker("denoise")):
        wait_for(lambda: len(_tasks(house, tasks.c.output)) == 2)
    damage(tmp_path / "damaged/files" / _tasks(house, tasks.c.output)[0])
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    assert house.video(job) == expected
    assert house.steps(job).count((0, 4)) == 2
    assert house.steps(job).count((1, 4)) == 1


@pytest.mark.parametrize("damage", [Path.unlink, _tear])
def test_stage_whose_saved_state_is_lost_starts_anew(tmp_path, expected, damage, monkeypatch):
    house = House(tmp_path / "damaged", save_every_s=0.0)
    job = house.submit(frames=16)
    worker, save = house.worker("denoise"), house.backend.queue.save

    def save_and_stop(*saved: Any) -> None:
        save(*saved)
        worker.stopping.set()

    with monkeypatch.context() as patch, working(worker):
        patch.setattr(house.backend.queue, "save", save_and_stop)
        wait_for(worker.stopping.is_set)
    [state] = _tasks(house, tasks.c.state)
    damage(tmp_path / "damaged/files" / state)
    assert house.steps(job) == [(0, 0)]
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    assert house.video(job) == expected
    assert house.steps(job)[1:] == [(segment, step) for segment in (0, 1) for step in range(5)]


def test_lost_upload_fails_its_job_by_name(tmp_path):
    house = House(tmp_path)
    job = house.submit(upload="gone/0.bin")
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    assert "file gone/0.bin is gone" in house.backend.jobs.get(job).error_message


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
