"""Every `videos` method of the stock OpenAI client (2.x and 3.x) against a service: `python conformance.py URL`."""

import asyncio
import io
import sys
import warnings
from collections.abc import Callable

import openai

warnings.simplefilter("ignore", DeprecationWarning)


def check(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    video = client.videos.create_and_poll(prompt="a road", seconds="1", size="32x16", poll_interval_ms=50)
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "1", "32x16"), video
    clip = client.videos.download_content(video.id).read()
    assert clip[4:8] == b"ftyp"
    for variant in ("thumbnail", "spritesheet"):
        assert len(client.videos.download_content(video.id, variant=variant).read()) > 100
    assert client.videos.retrieve(video.id) == video
    assert video.id in [each.id for each in client.videos.list(limit=1, order="asc")]
    remix = client.videos.remix(video.id, prompt="a bridge")
    assert remix.remixed_from_video_id == video.id
    edit = client.videos.edit(prompt="at night", video=("clip.mp4", io.BytesIO(clip), "video/mp4"))
    extension = client.videos.extend(prompt="further", seconds="4", video=("clip.mp4", io.BytesIO(clip), "video/mp4"))
    for made in (remix, edit, extension):
        assert client.videos.poll(made.id, poll_interval_ms=50).status == "completed", made
    failed = client.videos.create_and_poll(prompt="raise", poll_interval_ms=50)
    assert (failed.status, failed.error is not None and failed.error.code) == ("failed", "stage_failed")
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    missing = refusal(openai.NotFoundError, lambda: client.videos.retrieve(video.id))
    assert missing.code == "video_not_found"
    wrong = refusal(openai.BadRequestError, lambda: client.videos.create(prompt="x", size="720x1280"))
    assert (wrong.param, "32x16" in wrong.message) == ("size", True)
    assert client.models.list().data[0].id == video.model
    asyncio.run(check_async(url))


def refusal(kind: type[openai.APIStatusError], call: Callable[[], object]) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


async def check_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        video = await client.videos.create_and_poll(prompt="a road", poll_interval_ms=50)
        assert video.status == "completed"
        assert (await client.videos.download_content(video.id)).content[4:8] == b"ftyp"
        assert len([each async for each in client.videos.list(limit=2)]) >= 3


if __name__ == "__main__":
    check(sys.argv[1])
    print(f"openai {openai.__version__}: conforms")
