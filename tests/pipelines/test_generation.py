"""Whole generations on tiny random checkpoints of every kind: what runs, what decides the result, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.conditions import Wish, image_and_video_sides
from pipelines.generation import Generation
from pipelines.generation_plan import Plan, Request, interpolation_rates, make_plan, sampling_of, work
from pipelines.networks import Networks
from pipelines.presets import PRESETS
from pipelines.scenes import Scene
from tests.pipelines.random_checkpoint import clip, image_unet, write_checkpoint

KINDS = ("tiny-driving", "tiny-mountain-biking", "tiny-text-to-video")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(root / kind, PRESETS[kind](), boxes=kind == "tiny-driving") for kind in KINDS}


@pytest.fixture
def driving(checkpoints: dict[str, str]) -> Networks:
    return Networks(checkpoints["tiny-driving"])


@pytest.fixture
def text(checkpoints: dict[str, str]) -> Networks:
    return Networks(checkpoints["tiny-text-to-video"])


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """A personalised backbone: other image weights, and a text encoder with another word."""
    torch.manual_seed(9)
    image_unet(PRESETS["tiny-text-to-video"]().unet).save_pretrained(tmp_path / "unet")
    model, tokenizer = clip(32, words=("sks</w>",))
    model.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path)


def make(networks: Networks, request: Request, seeds: tuple[int, ...] = (1,)) -> list[Tensor]:
    generation = Generation(networks, request, make_plan(networks, request), lambda stage, share: None)
    return [torch.cat(list(parts)) for _, parts in generation.clips(seeds)]


def test_whole_chain_makes_8_then_29_then_113_frames(text: Networks) -> None:
    request = Request(wish=Wish(prompt="the sea"), steps=("keyframes", "interpolation", "upsampler"), num_steps=1)
    plan = make_plan(text, request)
    assert (plan.num_keyframes, plan.passes, plan.num_frames, plan.fps) == (8, 2, 113, 30.0)
    shares = work(text, request, plan)
    assert sum(shares.values()) == pytest.approx(1)
    done: dict[str, float] = {}

    def report(stage: str, share: float) -> None:
        done[stage] = done.get(stage, 0) + share

    ((_, parts),) = Generation(text, request, plan, report).clips((3,))
    frames = torch.cat(list(parts))
    assert frames.shape == (113, 64, 128, 3)
    assert frames.dtype == torch.uint8
    assert frames.float().std() > 1
    assert done == {name: pytest.approx(1) for name in shares}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_clips_that_depend_on_request_and_seed_alone(checkpoints: dict[str, str], kind: str) -> None:
    networks = Networks(checkpoints[kind])
    request = Request(num_frames=3, steps=("prediction",))
    first, second = make(networks, request, (1, 2))
    assert first.shape == (3, 16, 32, 3)
    assert not torch.equal(first, second)
    (again,) = make(Networks(checkpoints[kind]), request, (2,))
    assert torch.equal(again, second)


def test_long_video_rolls_out_and_keeps_what_a_short_one_shows(driving: Networks) -> None:
    sides = image_and_video_sides(driving, Wish())

    def latents(num_frames: int) -> Tensor:
        request = Request(num_frames=num_frames, steps=("prediction",))
        generation = Generation(driving, request, make_plan(driving, request), lambda stage, share: None)
        return generation._keyframes(sides, (1,))[0]

    with torch.inference_mode():
        short, long = latents(9), latents(14)
    assert (short.shape[1], long.shape[1]) == (9, 14)
    assert torch.equal(short, long[:, :9])
    assert not torch.equal(long[:, 8:11], long[:, 11:14])


def test_picture_is_the_first_frame_and_moves_on(driving: Networks) -> None:
    def ask(value: int) -> Tensor:
        picture = torch.full((1, 16, 32, 3), value, dtype=torch.uint8)
        return make(driving, Request(picture=picture, num_frames=4, steps=("prediction",)))[0]

    dark, bright = ask(20), ask(230)
    assert not torch.equal(dark[0], bright[0])
    assert not torch.equal(dark[1:], bright[1:]), "the first frame decides the next ones"
    vae = driving.autoencoder
    expected = vae.decode(vae.encode(torch.full((1, 3, 16, 32), 20 / 127.5 - 1)).latents).sample
    assert (dark[0].float() - (expected[0].permute(1, 2, 0) + 1) * 127.5).abs().mean() < 60


def test_boxes_give_several_futures_of_one_first_frame(driving: Networks) -> None:
    wish = Wish(boxes=((0.1, 0.2, 0.4, 0.6),))
    request = Request(wish=wish, num_frames=4, steps=("prediction",), num_steps=3)
    sides = image_and_video_sides(driving, wish)
    plan = make_plan(driving, request)
    one, other = Generation(driving, request, plan, lambda stage, share: None)._keyframes(sides, (1, 2))
    assert torch.equal(one[:, 0], other[:, 0])
    assert (one[:, 1:] - other[:, 1:]).abs().max() > 1e-2
    elsewhere = replace(request, wish=Wish(boxes=((0.5, 0.5, 0.9, 0.9),)))
    (third,) = Generation(driving, elsewhere, plan, lambda stage, share: None)._keyframes(sides, (1,))
    assert (one[:, 0] - third[:, 0]).abs().max() > 1e-4


def test_scene_changes_the_clip(driving: Networks) -> None:
    night, day = (
        make(driving, Request(wish=Wish(scene=Scene(night=n)), num_frames=2, steps=("prediction",)))[0] for n in (1, 0)
    )
    assert not torch.equal(night, day)


def test_spatial_prompt_leaves_temporal_tokens_unchanged(text: Networks) -> None:
    wish = Wish(prompt="sks car", temporal_prompt="a car")
    other = replace(wish, prompt="another car")
    (one, _), (two, _) = (image_and_video_sides(text, given) for given in (wish, other))
    assert torch.equal(one.temporal_text, two.temporal_text)
    assert not torch.equal(one.text, two.text)
    (moved, _) = image_and_video_sides(text, replace(wish, temporal_prompt="a boat"))
    assert torch.equal(one.text, moved.text)
    assert not torch.equal(one.temporal_text, moved.temporal_text)


def test_personalised_backbone_brings_image_layers_and_text_but_not_the_temporal_text(
    checkpoints: dict[str, str], backbone: str
) -> None:
    own, other = Networks(checkpoints[KINDS[2]]), Networks(checkpoints[KINDS[2]], backbone=backbone)
    wish = Wish(prompt="sks car", temporal_prompt="a car")
    (own_side, _), (side, _) = image_and_video_sides(own, wish), image_and_video_sides(other, wish)
    assert torch.equal(own_side.temporal_text, side.temporal_text)
    assert own_side.text.shape == side.text.shape
    assert not torch.equal(own_side.text, side.text)
    stage, before = other.stage("keyframes"), own.stage("keyframes")
    for name, value in before.network.temporal_state_dict().items():
        assert torch.equal(stage.network.temporal_state_dict()[name], value)
    assert not torch.equal(stage.network.unet.conv_in.weight, before.network.unet.conv_in.weight)


def test_interpolation_and_context_work_in_bfloat16(checkpoints: dict[str, str]) -> None:
    networks = Networks(checkpoints[KINDS[0]], dtype=torch.bfloat16)
    (frames,) = make(networks, Request(num_frames=3, steps=("prediction", "interpolation"), num_steps=1))
    assert frames.shape == (3, 16, 32, 3)


def test_video_models_leave_the_backbone_when_a_stage_is_done(text: Networks) -> None:
    make(text, Request(num_frames=5, steps=("keyframes", "interpolation"), num_steps=1))
    assert sum(len(module._forward_hooks) for module in text.unet.modules()) == 0


PLANS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (KINDS[0], {}, {"start": "prediction", "num_keyframes": 6, "num_frames": 81, "fps": 30.0, "upsamples": True}),
    (KINDS[0], {"steps": ("image", "prediction")}, {"start": "image", "num_frames": 6, "fps": 2.0, "passes": 0}),
    (KINDS[1], {"minutes": 5.0}, {"num_keyframes": 564, "num_frames": 9000, "rates": (7.5, 30.0), "upsamples": False}),
    (KINDS[2], {}, {"start": "image", "started_frames": 1, "num_keyframes": 8, "num_frames": 113}),
    (KINDS[2], {"steps": ("keyframes",), "num_frames": 12}, {"start": "keyframes", "started_frames": 12}),
    (KINDS[2], {"steps": ("keyframes", "prediction"), "num_frames": 12}, {"start": "keyframes", "started_frames": 8}),
    (KINDS[2], {"steps": ("image",), "num_frames": 1}, {"start": "image", "num_keyframes": 1, "passes": 0}),
]


@pytest.mark.parametrize(("kind", "request_fields", "expected"), PLANS)
def test_plan_follows_from_checkpoint_and_request(
    checkpoints: dict[str, str], kind: str, request_fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    plan: Plan = make_plan(Networks(checkpoints[kind]), Request(**request_fields))
    assert {name: getattr(plan, name) for name in expected} == expected


@pytest.mark.parametrize(("fps", "rates"), [(2.0, (7.5, 30.0)), (1.875, (7.5, 30.0)), (3.0, (12.0, 48.0))])
def test_rates_of_interpolation_are_those_trained_if_they_are_near(fps: float, rates: tuple[float, float]) -> None:
    config = PRESETS["tiny-driving"]().stages["interpolation"]
    assert interpolation_rates(fps, config) == pytest.approx(rates)


@pytest.mark.parametrize(
    ("name", "stage", "steps", "eta", "scale"),
    [
        ("driving", "prediction", 200, 1.0, 2.0),
        ("driving", "interpolation", 50, 0.0, 2.0),
        ("driving", "upsampler", 50, 1.0, 1.0),
        ("mountain-biking", "prediction", 100, 1.0, 2.0),
        ("text-to-video", "keyframes", 250, 1.0, 8.0),
        ("text-to-video", "interpolation", 100, 1.0, 13.0),
        ("text-to-video", "upsampler", 250, 1.0, 2.0),
    ],
)
def test_paper_mode_samples_as_section_7_2_says(name: str, stage: Any, steps: int, eta: float, scale: float) -> None:
    preset = PRESETS[name]()
    config = preset.stages[stage] if stage != "upsampler" else preset.upsampler.stage  # type: ignore[union-attr]
    sampling = sampling_of(name, config, stage, Request(paper_mode=True), 0)
    assert (sampling.sampler.name, sampling.sampler.num_steps, sampling.sampler.eta) == ("ddim", steps, eta)
    assert sampling.guidance_scale == scale
