"""A whole system (image, prediction, interpolation, decoder, upsampler, boxes) as tasks, each in one process."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import presets
from serving import pipeline_plan
from serving.errors import ApiError
from serving.pipeline_stages import PipelineStages
from tests.pipelines.random_checkpoint import write_checkpoint
from tests.serving.bare import make, resolved

pytestmark = pytest.mark.slow


class System:
    """A loaded checkpoint."""

    def __init__(self, folder, preset, *, boxes=False) -> None:
        torch.set_num_threads(1)
        self.stages = PipelineStages()
        checkpoint = write_checkpoint(folder, preset, boxes=boxes)
        self.description = self.stages.describe(checkpoint)[1]
        self.models = {pool: self.stages.load(checkpoint, pool) for pool in self.stages.pools}

    def request(self, **fields):
        return resolved(self.description, **fields)

    def clip(self, request, files=None, **how) -> np.ndarray:
        with av.open(io.BytesIO(make(self.stages, self.models, request, files, **how))) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def driving(tmp_path_factory) -> System:
    return System(tmp_path_factory.mktemp("driving"), presets.tiny_driving(), boxes=True)


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (200, 90), (250, 0, 0)).save(data, "PNG")
    return data.getvalue()


def kinds(plan) -> list[str]:
    return [spec.stage for spec in plan]


def test_driving_checkpoint_offers_what_it_holds(driving):
    offer = driving.description
    assert (offer["sizes"], offer["fps"], offer["num_frames"]) == ([[128, 64]], 30.0, 81)
    assert offer["stages"] == ["prediction", "interpolation", "upsampler"]
    assert (offer["fields"], offer["max_boxes"], offer["modes"]) == (["boxes"], 5, ["create", "edit", "extend"])


@pytest.fixture
def small_parts(monkeypatch):
    """Upsample six frames at once rather than two dozen: as many seams in a shorter clip."""
    monkeypatch.setattr(pipeline_plan, "SEGMENT_FRAMES", 8)


def test_clip_from_noise_is_rolled_out_interpolated_and_upsampled(driving, small_parts):
    request = driving.request(num_frames=100)
    plan = driving.stages.plan(request, driving.description)
    assert kinds(plan).count("prediction") == kinds(plan).count("interpolation") == kinds(plan).count("decode") == 2
    assert kinds(plan).count("upsample") == 14 + 4
    assert [each.frames for each in pipeline_plan.segments(request, driving.description)] == [81, 19]
    frames = driving.clip(driving.request(num_frames=9))
    assert frames.shape == (9, 64, 128, 3)


def test_tasks_taken_up_anew_after_every_step_make_the_same_bytes(driving, small_parts):
    request = driving.request(num_frames=9)
    whole = make(driving.stages, driving.models, request)
    assert make(driving.stages, driving.models, request, broken_off=True) == whole


def test_boxes_make_the_first_frame_and_an_empty_list_is_not_no_list(driving):
    box = [{"x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.9}]
    small = {"stages": ["prediction"], "num_frames": 3}
    requests = [driving.request(boxes=boxes, **small) for boxes in (box, [], None)]
    assert kinds(driving.stages.plan(requests[0], driving.description))[0] == "image"
    one, none, unknown = (driving.clip(request) for request in requests)
    assert one.shape == none.shape == unknown.shape == (3, 16, 32, 3)
    assert not np.array_equal(one, none)
    assert not np.array_equal(none, unknown)


def test_edit_keeps_the_length_and_extension_adds_to_it(driving):
    small = {"stages": ["prediction", "interpolation"]}
    source = make(driving.stages, driving.models, driving.request(num_frames=20, **small))
    request = driving.request(mode="edit", inputs=("video",), num_frames=20, scene="day", **small)
    edited = driving.clip(request, {"video": source})
    assert edited.shape == (20, 16, 32, 3)
    request = driving.request(mode="extend", inputs=("video",), num_frames=20, **small)
    longer = driving.clip(request, {"video": source})
    assert len(longer) == 40


def test_what_cannot_be_made_is_said_before_any_work(driving):
    plan, offer = driving.stages.plan, driving.description
    for fields, words in [
        ({"stages": ["interpolation"]}, "make no first frame"),
        ({"stages": ["image"], "num_frames": 2}, "needs the stage prediction"),
        ({"boxes": 6 * [{"x1": 0, "y1": 0, "x2": 1, "y2": 1}]}, "up to 5"),
        ({"boxes": [], "inputs": ("input_reference",)}, "give one of them"),
    ]:
        with pytest.raises(ValueError, match=words):
            plan(driving.request(**fields), offer)
    upside_down = [{"x1": 1, "y1": 0, "x2": 0, "y2": 1}]
    for fields, words in [({"boxes": upside_down}, "empty"), ({"scene": "day,night"}, "contradict")]:
        with pytest.raises(ApiError, match=words):
            driving.request(**fields)


def test_text_checkpoint_heeds_prompt_and_negative_prompt(tmp_path):
    system = System(tmp_path, presets.tiny_text_to_video())
    assert system.description["stages"] == ["image", "prediction", "interpolation", "upsampler"]
    small = {"stages": ["image", "prediction"], "num_frames": 3}
    clips = [
        system.clip(system.request(**words, **small))
        for words in ({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "negative_prompt": "b"})
    ]
    assert len(clips[0]) == 3
    assert not np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    assert len(system.clip(system.request(num_frames=5, stages=["keyframes", "interpolation", "upsampler"]))) == 5


def test_picture_is_the_first_frame(driving):
    request = driving.request(inputs=("input_reference",), stages=["prediction"], num_frames=1)
    assert kinds(driving.stages.plan(request, driving.description)) == ["prepare", "decode", "publish"]
    assert driving.clip(request, {"input_reference": picture()}).shape == (1, 16, 32, 3)
