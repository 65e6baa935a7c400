import base64
import io
import json

import av
import httpx2 as httpx
import openai
import pytest
import xxhash
from PIL import Image

from serving.config import Limits
from tests.serving.hook import Hook
from tests.serving.house import House, serving, wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def hook():
    hook = Hook()
    yield hook
    hook.server.shutdown()


@pytest.fixture(scope="module")
def house(tmp_path_factory, hook):
    limits = Limits(max_upload_bytes=2**20, max_upload_pixels=512 * 512, max_steps=100_000, max_frames=64)
    config = {"callback_hosts": (hook.host,), "limits": limits, "max_unfinished": 6}
    return House(tmp_path_factory.mktemp("api"), config, preview_every_s=0.0)


@pytest.fixture(scope="module")
def url(house):
    with serving(house) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none")


@pytest.fixture
def raw(url):
    with httpx.Client(base_url=url, timeout=30) as raw:
        yield raw


def finished(client, **fields):
    extra = {"seed": 1, **fields.pop("extra_body", {})}
    video = client.videos.create_and_poll(prompt="a road", extra_body=extra, poll_interval_ms=50, **fields)
    assert video.status == "completed", video.error
    return video


def picture(kind="PNG", size=(48, 32)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(data, kind)
    return data.getvalue()


def test_client_creates_polls_and_downloads_a_playable_mp4(client, house):
    video = finished(client, size="64x32", extra_body={"seed": 11, "num_frames": 16, "scene": "night,crowded"})
    assert (video.object, video.size, video.seconds, video.progress) == ("video", "64x32", "2", 100)
    assert (video.seed, video.scene, video.segments, video.model) == (11, "night,crowded", 2, "toy")
    assert video.expires_at - video.completed_at == 7 * 86400
    content = client.videos.download_content(video.id).read()
    digest = xxhash.xxh3_128_hexdigest(content)
    assert house.backend.jobs.get(video.id).results["video"] == f"{video.id}/{digest}.mp4"
    with av.open(io.BytesIO(content)) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert (len(frames), frames[0].shape) == (16, (32, 64, 3))
        assert clip.metadata["checkpoint_sha256"] == video.release
        assert json.loads(clip.metadata["request"])["seed"] == 11
        assert "generated" in clip.metadata["comment"]
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        still = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).read()))
        assert still.format == kind
    segment = client.get(f"/videos/{video.id}/content?variant=segment&index=1", cast_to=httpx.Response).content
    with av.open(io.BytesIO(segment)) as clip:
        assert clip.streams.video[0].frames == 8


def test_same_request_gives_the_same_bytes_and_another_seed_others(client):
    clips = [
        client.videos.download_content(finished(client, extra_body={"seed": seed}).id).read() for seed in (4, 4, 5)
    ]
    assert clips[0] == clips[1] != clips[2]


def test_request_without_a_seed_draws_one_and_says_it(client):
    first, second = (client.videos.create(prompt="a road") for _ in range(2))
    assert first.seed != second.seed


def test_failed_job_is_an_answer_not_an_error(client):
    video = client.videos.create_and_poll(prompt="raise", poll_interval_ms=50)
    assert video.status == "failed"
    assert (video.error.code, "cannot be drawn" in video.error.message) == ("stage_failed", True)
    with pytest.raises(openai.NotFoundError):
        client.videos.download_content(video.id)


def test_list_pages_through_all_videos(client):
    made = [finished(client).id for _ in range(3)]
    listed = [video.id for video in client.videos.list(limit=2)]
    assert listed[:3] == made[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == listed[::-1]
    assert len(set(listed)) == len(listed)


def test_delete_removes_record_and_files(client, house):
    video = finished(client)
    gone = client.videos.delete(video.id)
    assert (gone.deleted, gone.object) == (True, "video.deleted")
    assert not (house.config.state / "files" / video.id).exists()
    with pytest.raises(openai.NotFoundError) as caught:
        client.videos.retrieve(video.id)
    assert caught.value.code == "video_not_found"
    assert caught.value.response.headers["x-request-id"]


def test_delete_of_a_running_video_stops_its_steps(client, house):
    video = client.videos.create(prompt="a road", extra_body={"num_inference_steps": 9_000})
    wait_for(lambda: len(house.steps(video.id)) > 2)
    client.videos.delete(video.id)
    steps = len(house.steps(video.id))
    finished(client)
    assert len(house.steps(video.id)) == steps


def test_cancel_ends_polling_and_is_harmless_afterwards(client, raw, house):
    video = client.videos.create(prompt="a road", extra_body={"num_inference_steps": 9_000})
    wait_for(lambda: len(house.steps(video.id)) > 2)
    first = raw.post(f"/v1/videos/{video.id}/cancel").json()
    assert first["status"] == "cancelled"
    assert raw.post(f"/v1/videos/{video.id}/cancel").json()["status"] == "cancelled"
    assert client.videos.poll(video.id).status == "cancelled"
    done = finished(client)
    assert raw.post(f"/v1/videos/{done.id}/cancel").json()["status"] == "completed"


def test_remix_keeps_all_but_the_prompt(client):
    source = finished(client, extra_body={"seed": 21, "num_inference_steps": 4, "scene": "day"})
    remix = client.videos.remix(source.id, prompt="a bridge")
    assert remix.remixed_from_video_id == source.id
    assert (remix.prompt, remix.seed, remix.num_inference_steps, remix.scene) == ("a bridge", 21, 4, "day")


def test_edit_and_extend_take_an_upload_or_a_video_of_ours(client, raw):
    source = finished(client)
    clip = client.videos.download_content(source.id).read()
    edited = client.videos.edit(prompt="at night", video=("clip.mp4", clip, "video/mp4"))
    assert client.videos.poll(edited.id, poll_interval_ms=50).status == "completed"
    body = {"prompt": "further", "seconds": "1", "video": {"id": source.id}}
    extended = raw.post("/v1/videos/extensions", json=body).json()
    assert extended["remixed_from_video_id"] == source.id
    missing = raw.post("/v1/videos/extensions", json={**body, "video": {"id": "video_none"}})
    assert missing.status_code == 404


def test_input_reference_is_checked_by_content(client, raw):
    good = client.videos.create(prompt="a road", input_reference=("a.png", picture(), "image/png"))
    assert good.status in ("queued", "in_progress")
    data_url = "data:image/jpeg;base64," + base64.b64encode(picture("JPEG")).decode()
    as_json = raw.post("/v1/videos", json={"prompt": "a road", "input_reference": {"image_url": data_url}})
    assert as_json.status_code == 200
    bad = {
        "a text": b"hello",
        "an svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "cut short": picture("JPEG")[:300],
        "too many pixels": picture(size=(4000, 4000)),
        "too many bytes": b"\x89PNG\r\n" + bytes(2**20),
    }
    for name, content in bad.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.videos.create(prompt="a road", input_reference=("a.png", content, "image/png"))
        assert caught.value.param == "input_reference", name


def test_playlists_and_urls_are_not_followed(client, raw):
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    with pytest.raises(openai.BadRequestError, match="not an MP4"):
        client.videos.edit(prompt="x", video=("clip.mp4", playlist, "video/mp4"))
    for url in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "/etc/passwd"):
        answer = raw.post("/v1/videos", json={"prompt": "x", "input_reference": {"image_url": url}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")


def test_body_longer_than_allowed_is_refused(raw):
    def endless():
        for _ in range(64):
            yield b"x" * 2**16

    answer = raw.post("/v1/videos", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "x", "size": "1x1"}, 400, "size"),
        ({"prompt": "x", "size": "64*32"}, 400, "size"),
        ({"prompt": "x", "model": "sora-2"}, 404, "model"),
        ({"prompt": "x", "num_frames": "65"}, 400, "num_frames"),
        ({"prompt": "x", "minutes": "1000"}, 400, "num_frames"),
        ({"prompt": "x", "seed": "-1"}, 400, "seed"),
        ({"prompt": "x", "scene": "dawn"}, 400, "scene"),
        ({"prompt": "x", "backbone": "../../etc"}, 400, "backbone"),
        ({"prompt": "x", "backbone": "other"}, 400, "backbone"),
        ({"prompt": "x", "boxes": "[{}"}, 400, "boxes"),
        ({"prompt": "x", "guidance_scale": "nan"}, 400, "guidance_scale"),
        ({"prompt": "x", "callback_url": "http://169.254.169.254/latest"}, 400, "callback_url"),
        ({"prompt": "x", "sead": "3"}, 400, "sead"),
    ],
)
def test_bad_field_is_named(raw, fields, status, param):
    form = {name: (None, value) for name, value in {"size": "32x16", **fields}.items()}
    for answer in (raw.post("/v1/videos", files=form), raw.post("/v1/videos", json=fields)):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"].split(".")[0]) == (status, param)
        assert set(error) == {"message", "type", "code", "param"}


def test_idempotency_key_and_client_retry_find_the_job_that_is_there(client, raw):
    keyed = [client.videos.create(prompt="x", extra_headers={"Idempotency-Key": "k"}).id for _ in range(2)]
    assert keyed[0] == keyed[1]
    conflict = raw.post("/v1/videos", json={"prompt": "other"}, headers={"Idempotency-Key": "k"})
    assert (conflict.status_code, conflict.headers["x-should-retry"]) == (409, "false")
    first = raw.post("/v1/videos", json={"prompt": "lost answer", "seed": 1}).json()["id"]
    retry = {"x-stainless-retry-count": "1"}
    assert raw.post("/v1/videos", json={"prompt": "lost answer", "seed": 1}, headers=retry).json()["id"] == first
    assert raw.post("/v1/videos", json={"prompt": "lost answer", "seed": 2}, headers=retry).json()["id"] != first


def test_full_queue_answers_429_with_a_wait_that_grows(client, raw, house):
    wait_for(lambda: all(job.is_finished for job in house.backend.jobs.list("anonymous", limit=100)))
    body, key = {"prompt": "x", "num_inference_steps": 9_000}, {"idempotency-key": "in time"}
    long = [raw.post("/v1/videos", json=body, headers=key if not i else {}) for i in range(8)]
    assert [answer.status_code for answer in long] == [200] * 6 + [429] * 2
    again = raw.post("/v1/videos", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, long[0].json()["id"])
    too_late = raw.post("/v1/videos", json=body, headers={"idempotency-key": "too late"})
    assert (too_late.status_code, too_late.json()["error"]["code"]) == (429, "queue_full")
    waits = [int(answer.headers["retry-after-ms"]) for answer in long[6:]]
    assert 0 < waits[0] <= waits[1]
    assert int(long[6].headers["retry-after"]) >= 1
    position = [raw.get(f"/v1/videos/{answer.json()['id']}").json()["queue_position"] for answer in long[:6]]
    assert max(position) >= 4
    for answer in long[:6]:
        raw.delete(f"/v1/videos/{answer.json()['id']}")
    finished(client)


def test_events_tell_progress_previews_and_the_end(raw):
    video = raw.post("/v1/videos", json={"prompt": "x", "num_inference_steps": 400}).json()
    kinds, last = [], ""
    with raw.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kinds.append(line[7:])
            if line.startswith("data: "):
                last = line[6:]
                if kinds[-1] == "preview":
                    assert Image.open(io.BytesIO(base64.b64decode(json.loads(last)["jpeg"]))).size == (32, 16)
    assert kinds[-1] == "done"
    assert {"progress", "preview"} <= set(kinds)
    assert json.loads(last)["status"] == "completed"


def test_webhook_is_signed_sent_again_until_taken_and_unwrapped_by_the_client(client, hook, house):
    hook.calls.clear()
    hook.answers[:] = [500]
    video = finished(client, extra_body={"callback_url": f"http://{hook.host}/done?x=1", "priority": 3})
    wait_for(lambda: len(hook.calls) == 2)
    secret = house.backend.tenants.webhook_secret("anonymous")
    events = [client.webhooks.unwrap(body, headers, secret=secret) for headers, body in hook.calls]
    assert [event.type for event in events] == ["video.completed"] * 2
    assert events[0].id == events[1].id
    assert events[0].data.id == video.id
    headers, body = hook.calls[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"completed", b"completeD"), headers, secret=secret)


def test_models_health_openapi_and_metrics_answer(client, raw):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert raw.get("/health").json() == {"status": "ok"}
    document = raw.get("/openapi.json").json()
    create = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json"} == set(create)
    figures = raw.get("/metrics").text
    assert 'videoldm_jobs{status="completed"}' in figures
    assert raw.get("/").headers["content-type"].startswith("text/html")
    assert raw.get("/nowhere").json()["error"]["type"] == "not_found_error"
