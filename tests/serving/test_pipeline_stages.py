import io
import threading

import av
import httpx2 as httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from pipelines import stages
from pipelines.networks import Networks
from pipelines.pixels import to_uint8
from pipelines.scenes import Scene
from pipelines.video_io import write_mp4
from serving.denoising import scene_words
from serving.pipeline_stages import PipelineStages
from tests.serving.house import House, serving
from tests.serving.tiny import make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    torch.set_num_threads(1)
    house = House(tmp_path_factory.mktemp("state"), stages=PipelineStages(), checkpoint=checkpoint)
    with serving(house) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none")


def make(client, **extra) -> tuple[openai.types.Video, bytes]:
    video = client.videos.create_and_poll(
        prompt="an empty road", extra_body={"seed": 5, "num_inference_steps": 3, **extra}, poll_interval_ms=100
    )
    assert video.status == "completed", video.error
    return video, client.videos.download_content(video.id).read()


def frames_of(clip: bytes) -> np.ndarray:
    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_served_clip_equals_the_stages_called_by_hand(client, checkpoint, tmp_path):
    _, clip = make(client, scene="night")
    networks = Networks(checkpoint)
    stage = networks.stage("keyframes")
    conditions, nothing = networks.scene_conditions([Scene(night=1)])
    sampler = stages.SamplerConfig(name="ddim", num_steps=3)
    sampling = stages.Sampling(sampler=sampler, guidance_scale=stage.config.guidance_scale, seed=5)
    with torch.inference_mode():
        latents = stages.finish(stages.keyframes(stage, conditions, nothing, sampling, (1, 4, 4, 8, 16)))
        frames = torch.cat(list(stages.decode(networks.decoder, latents)), dim=1)
    write_mp4(tmp_path / "clip.mp4", to_uint8(frames[0]), 4.0, quality=22, preset="superfast")
    np.testing.assert_array_equal(frames_of(clip), frames_of((tmp_path / "clip.mp4").read_bytes()))


def test_long_video_is_rolled_out_in_playable_segments(client):
    video, clip = make(client, num_frames=11)
    frames = frames_of(clip)
    assert frames.shape == (11, 64, 128, 3)
    assert video.segments == 3
    parts = []
    for index in range(3):
        path = f"/videos/{video.id}/content?variant=segment&index={index}"
        parts.append(frames_of(client.get(path, cast_to=httpx.Response).content))
    assert [len(part) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), frames)
    short = frames_of(make(client, num_frames=4)[1])
    np.testing.assert_array_equal(short, frames[:4])
    assert not np.array_equal(frames[4:7], frames[8:11])


def test_video_goes_on_from_a_picture(client):
    def picture(colour: tuple[int, int, int]) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (200, 90), colour).save(data, "PNG")
        return data.getvalue()

    def ask(colour: tuple[int, int, int]) -> bytes:
        video = client.videos.create(
            prompt="a road",
            input_reference=("a.png", picture(colour), "image/png"),
            extra_body={"seed": 5, "num_frames": 5},
        )
        assert client.videos.poll(video.id, poll_interval_ms=100).status == "completed"
        return client.videos.download_content(video.id).read()

    red, again, blue = ask((255, 0, 0)), ask((255, 0, 0)), ask((0, 0, 255))
    assert red == again != blue
    assert len(frames_of(red)) == 5


def test_extension_holds_the_old_part_and_the_new_one(client):
    source, clip = make(client, num_frames=4)
    body = {"prompt": "a road", "seconds": "1.25", "seed": 3, "video": {"id": source.id}}
    made = client.post("/videos/extensions", body=body, cast_to=httpx.Response).json()
    assert client.videos.poll(made["id"], poll_interval_ms=100).status == "completed"
    frames = frames_of(client.videos.download_content(made["id"]).read())
    assert len(frames) == 4 + 5
    assert np.abs(frames[:4].astype(int) - frames_of(clip).astype(int)).mean() < 6
    assert made["seconds"] == "2.25"


def test_what_the_checkpoint_cannot_do_is_refused(client):
    for given in ('["image"]', ["image"]):
        with pytest.raises(openai.BadRequestError, match="needs the stage prediction"):
            client.videos.create(prompt="x", extra_body={"stages": given, "num_frames": 2})
    with pytest.raises(openai.BadRequestError, match="does not use boxes"):
        client.videos.create(prompt="x", extra_body={"boxes": '[{"x1":0,"y1":0,"x2":1,"y2":1}]'})


@pytest.mark.parametrize(
    ("prompt", "scene", "words"),
    [
        ("Driving at night, busy.", "", "night,busy"),
        ("day or night", "", ""),
        ("driving at night", "day", "day"),
        ("a cat", "", ""),
    ],
)
def test_scene_words_come_from_the_scene_or_else_the_prompt(prompt, scene, words):
    assert scene_words({"prompt": prompt, "scene": scene}) == words


def test_pools_that_load_at_once_do_not_spoil_each_others_networks(checkpoint):
    stage_set, models = PipelineStages(), {}

    def load(pool: str) -> None:
        models[pool] = stage_set.load(checkpoint, pool)

    threads = [threading.Thread(target=load, args=(pool,)) for pool in stage_set.pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    networks = [models["denoise"].stage("keyframes").network, models["decode"].networks.decoder]
    assert all(not parameter.is_meta for network in networks for parameter in network.parameters())
