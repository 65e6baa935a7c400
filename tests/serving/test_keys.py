import httpx2 as httpx
import openai
import pytest

from serving.tenants import Quota
from tests.serving.house import House, serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_keys_are_required_and_separate_their_owners(tmp_path):
    house = House(tmp_path, {"keys_required": True})
    keys = {name: house.backend.tenants.add(name, Quota(max_unfinished=2))[0] for name in ("ann", "bob")}
    with serving(house) as url:
        clients = {name: openai.OpenAI(base_url=f"{url}/v1", api_key=key) for name, key in keys.items()}
        video = clients["ann"].videos.create_and_poll(prompt="a road", poll_interval_ms=50)
        assert video.status == "completed"
        assert [each.id for each in clients["ann"].videos.list()] == [video.id]
        assert list(clients["bob"].videos.list()) == []
        with pytest.raises(openai.NotFoundError):
            clients["bob"].videos.retrieve(video.id)
        with pytest.raises(openai.NotFoundError):
            clients["bob"].videos.delete(video.id)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong").videos.list()
        with pytest.raises(openai.PermissionDeniedError):
            clients["bob"].videos.create(prompt="x", extra_body={"priority": 1})
        for path in ("/v1/videos", "/v1/models", f"/v1/videos/{video.id}/content", f"/v1/videos/{video.id}/events"):
            assert httpx.get(url + path).status_code == 401, path
