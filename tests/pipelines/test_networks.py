"""Networks of a checkpoint: which are loaded, over what, in which type; what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch.testing import assert_close

from pipelines.image_stage import denoise_frames
from pipelines.models.conditioning import Conditions
from pipelines.networks import Networks
from pipelines.presets import PRESETS
from pipelines.scenes import Scene
from tests.pipelines.random_checkpoint import write_checkpoint

DRIVING, BIKING, TEXT = "tiny-driving", "tiny-mountain-biking", "tiny-text-to-video"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    for kind in (DRIVING, BIKING, TEXT):
        write_checkpoint(root / kind, PRESETS[kind](), boxes=kind == DRIVING)
    return root


@pytest.mark.parametrize(("kind", "condition"), [(DRIVING, "scene"), (BIKING, "nothing"), (TEXT, "text")])
def test_kind_of_condition_follows_from_the_parts(root: Path, kind: str, condition: str) -> None:
    assert Networks(str(root / kind)).condition_kind == condition


def test_image_model_is_the_video_model_with_mix_one(root: Path) -> None:
    networks = Networks(str(root / TEXT))
    stage, image = networks.stage("keyframes"), networks.image_stage()
    noisy, text, timestep = torch.randn(2, 3, 4, 2, 4), torch.randn(2, 7, 32), torch.tensor([3.0, 700.0])
    still = torch.tensor([True, True])
    with torch.inference_mode():
        video = stage.network(noisy, timestep, Conditions(text=text, is_image=still))
        frames = image.denoise(Conditions(text=text))(noisy, timestep)
    assert_close(frames, video, atol=1e-5, rtol=1e-5)


def test_frames_of_the_image_model_do_not_know_of_each_other(root: Path) -> None:
    unet = Networks(str(root / BIKING)).unet
    assert isinstance(unet, UNet2DModel)
    noisy = torch.randn(2, 3, 4, 2, 4)
    with torch.inference_mode():
        whole = denoise_frames(unet, noisy, torch.tensor([3.0, 700.0]), Conditions())
        alone = denoise_frames(unet, noisy[1:, 2:], torch.tensor([700.0]), Conditions())
    assert_close(whole[1:, 2:], alone, atol=1e-5, rtol=1e-5)


def test_networks_come_in_the_type_asked_for_and_take_float32(root: Path) -> None:
    networks = Networks(str(root / DRIVING), dtype=torch.bfloat16)
    stage = networks.stage("prediction")
    assert {parameter.dtype for parameter in stage.network.parameters()} == {torch.bfloat16}
    conditions, _ = networks.scene_conditions([Scene(night=1)])
    context = torch.zeros(1, 6, 5, 2, 4)
    with torch.inference_mode():
        told = Conditions(text=conditions.text, context=context, context_level=torch.tensor([30.0]))
        prediction = stage.denoise(told)(torch.randn(1, 6, 4, 2, 4), torch.tensor([500.0]))
    assert prediction.isfinite().all()


def test_upsampler_has_a_backbone_of_its_own(root: Path) -> None:
    networks = Networks(str(root / TEXT))
    stage = networks.stage("upsampler")
    assert stage.network.unet is networks.upsampler_unet
    assert networks.upsampler_unet.config["in_channels"] == 7
    assert networks.upsampler_autoencoder is not None
    assert Networks(str(root / DRIVING)).upsampler_autoencoder is None


def test_image_model_of_another_backbone_brings_its_own_noise(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / TEXT / "backbone", tmp_path / "other")
    path = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.015}))
    networks = Networks(str(root / TEXT), backbone=str(tmp_path / "other"))
    assert networks.image_stage().schedule.config.beta_end == 0.015
    assert networks.stage("keyframes").schedule.config.beta_end == 0.012


@pytest.mark.parametrize(
    ("size", "message"), [((12, 32), "size 12 .* factor 8; use 8 or 16"), ((16, 4), "size 4 .* use 8$")]
)
def test_size_that_does_not_divide_is_refused(root: Path, size: tuple[int, int], message: str) -> None:
    networks = Networks(str(root / DRIVING))
    assert networks.latent_shape(networks.first_config(), 5, size=(24, 40)) == (1, 5, 4, 3, 5)
    with pytest.raises(ValueError, match=message):
        networks.latent_shape(networks.first_config(), 5, size=size)


def test_missing_part_is_named_with_those_there_are(root: Path) -> None:
    with pytest.raises(ValueError, match=r"has no boxes/condition; it has .*backbone/vae"):
        _ = Networks(str(root / TEXT)).box_encoder
