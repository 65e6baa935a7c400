"""Every objective: it trains what it should, its loss falls, and what it exports loads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file

from pipelines.checkpoint import verify
from pipelines.conditions import Wish, box_sides
from pipelines.config import ModelPreset
from pipelines.image_stage import denoise_frames
from pipelines.models.boxes import MAP_CHANNELS
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import Networks
from pipelines.video_io import write_mp4
from tests.training.runs import go
from training.config import ClusterConfig, DataConfig, OptimizerConfig, TrainConfig
from training.export import export
from training.presets import make_preset, preset_names, tiny_system
from training.reduction import Workers
from training.sources import VideoSource
from training.task import Inputs
from training.worker import Job, run_worker

MakeConfig = Callable[..., TrainConfig]
System = Any


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Three short videos: a bright square that moves over a gradient."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(3):
        frames = torch.linspace(30, 200, 48).repeat(24, 32, 3, 1).permute(0, 1, 3, 2).byte().clone()
        for t in range(24):
            left = (2 * t + 7 * number) % 40
            frames[t, 8:16, left : left + 8] = torch.tensor([250, 60, 40 * number], dtype=torch.uint8)
        write_mp4(folder / f"{number}.mp4", frames, 24)
    (folder / "notes.mp4").write_text("no video")
    return str(folder)


def micro_system(micro: ModelPreset) -> ModelPreset:
    """The micro networks with every stage of the tiny system."""
    whole = tiny_system()
    assert whole.upsampler is not None

    def shrunk(stage: Any) -> Any:
        width = 12 if stage.temporal.cross_attention_dim else None
        temporal = replace(stage.temporal, context_width=8, cross_attention_dim=width)
        return replace(stage, temporal=temporal, height=16, width=24, sampler=replace(stage.sampler, num_steps=2))

    unet = {**whole.upsampler.unet, "block_out_channels": (8, 16), "norm_num_groups": 4}
    unet |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    upsampler = replace(whole.upsampler, unet=unet, stage=shrunk(whole.upsampler.stage))
    stages = {name: shrunk(stage) for name, stage in whole.stages.items()}
    return replace(micro, stages={**stages, "keyframes": micro.stages["keyframes"]}, upsampler=upsampler)


@pytest.mark.parametrize("objective", ["prediction", "interpolation"])
def test_run_with_given_frames_learns_and_loads(objective: Any, system: System, make_config: MakeConfig) -> None:
    config = make_config(objective)
    model = micro_system(config.model)
    config = replace(config, model=model, data=replace(config.data, context_noise=250))
    job = system.job(config)
    go(job)
    export(job, Path(job.inputs.out))
    stage = Networks(job.inputs.out).stage(objective)
    assert stage.config == model.stages[objective]
    fresh = VideoUNet(Networks(job.inputs.out).unet, model.stages[objective].temporal).temporal_state_dict()
    moved = [name for name, value in stage.network.temporal_state_dict().items() if not torch.equal(value, fresh[name])]
    assert any("context" in name for name in moved), "the context path did not learn"


def test_box_run_widens_the_image_model_and_loads(system: System, make_config: MakeConfig) -> None:
    config = make_config("image")
    config = replace(config, data=replace(config.data, boxes=True))
    job = system.job(config)
    job = replace(job, inputs=replace(job.inputs, backbone=str(Path(job.inputs.out) / "backbone")))
    go(job)
    export(job, Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    unet = UNet2DConditionModel.from_pretrained(networks.folder / "boxes" / "unet").eval()
    latent_channels = networks.unet.config["in_channels"]
    assert unet.config["in_channels"] == latent_channels + MAP_CHANNELS
    new = unet.conv_in.weight[:, latent_channels:]
    assert new.abs().amax(dim=(0, 2, 3)).min() > 0, "a map is not heard"
    noisy, size = torch.randn(1, 1, latent_channels, 2, 3), (2, 3)
    sides = [box_sides(networks, Wish(boxes=boxes), size)[0] for boxes in (((0.1, 0.2, 0.6, 0.9),), ())]
    one, other = (denoise_frames(unet, noisy, torch.tensor([500.0]), side) for side in sides)
    assert one.shape == noisy.shape
    assert not torch.equal(one, other)


def test_video_run_starts_from_another_stage(system: System, make_config: MakeConfig) -> None:
    config = make_config("keyframes")
    model = micro_system(config.model)
    first = system.job(replace(config, model=model))
    go(first)
    export(first, Path(first.inputs.out))
    second = replace(make_config("prediction", steps=1), model=model, initialise_from="keyframes")
    second = replace(second, optimizer=OptimizerConfig(learning_rate=1e-9))
    job = system.job(second)
    go(job)
    export(job, Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    start, now = (networks.stage(name).network.temporal_state_dict() for name in ("keyframes", "prediction"))
    shared = [name for name in start if start[name].shape == now[name].shape and "position" in name]
    assert shared
    for name in shared:
        torch.testing.assert_close(now[name], start[name], atol=1e-6, rtol=0)


def test_run_that_trains_all_layers_keeps_its_own_image_network(system: System, make_config: MakeConfig) -> None:
    config = make_config("interpolation", train_all=True)
    model = micro_system(config.model)
    job = system.job(replace(config, model=model))
    go(job)
    export(job, Path(job.inputs.out))
    verify(Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    own, shared = networks.stage("interpolation").network.unet.state_dict(), networks.unet.state_dict()
    assert own.keys() == shared.keys()
    assert not any(torch.equal(own[name], shared[name]) for name in ("conv_in.weight", "conv_out.weight"))


def pixel_config(make_config: MakeConfig, objective: Any, *, num_frames: int, **changes: Any) -> TrainConfig:
    config = make_config("autoencoder")
    return replace(
        config,
        name=f"micro-{objective}",
        objective=objective,
        model=micro_system(config.model),
        data=DataConfig(height=32, width=48, num_frames=num_frames, fps=(12.0,), crop=16),
        **changes,
    )


def test_autoencoder_learns_and_gives_latents_of_unit_variance(
    system: System, make_config: MakeConfig, corpus: str, tmp_path: Path
) -> None:
    config = pixel_config(make_config, "autoencoder", num_frames=1)
    inputs = Inputs(out=str(tmp_path / "new"), corpus=corpus)
    job = Job(config=config, inputs=inputs, run_uri=str(tmp_path / "runs"))
    start = go(replace(job, config=replace(config, steps=1))).loss
    assert go(replace(job, config=replace(config, steps=60))).loss < 0.7 * start
    export(job, Path(inputs.out))
    vae = Networks(inputs.out).autoencoder
    source = VideoSource(corpus, size=(32, 48), num_frames=1, fps=12.0)
    frames = torch.stack([clip[0] for clip in source.read(list(source.buckets[0]))])
    latents = vae.encode(frames.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    scaled = (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    assert abs(float(scaled.mean())) < 0.1
    assert abs(float(scaled.std()) - 1) < 0.1
    again = replace(job, inputs=replace(inputs, backbone=f"{inputs.out}/backbone"), run_uri=str(tmp_path / "again"))
    assert go(replace(again, config=replace(config, steps=1))).loss < 0.8 * start


def test_video_source_counts_bad_files_and_reads_the_rest(corpus: str) -> None:
    source = VideoSource(corpus, size=(16, 24), num_frames=5, fps=12.0)
    assert list(source.skipped) == ["notes.mp4"]
    assert len(source.buckets[0]) == 3 * 2, "12 frames at 12 fps are two clips of five"
    clips = source.read(list(source.buckets[0]))
    assert {tuple(clip.shape) for clip in clips} == {(5, 16, 24, 3)}


def test_decoder_trains_temporal_layers_against_a_discriminator(
    system: System, make_config: MakeConfig, corpus: str
) -> None:
    config = pixel_config(
        make_config, "decoder", num_frames=6, discriminator=OptimizerConfig(learning_rate=1e-3), steps=4
    )
    job = replace(system.job(config), inputs=replace(system.inputs, corpus=corpus))
    before = Networks(job.inputs.out).autoencoder.state_dict()
    outcome = go(job)
    assert outcome.step == 4
    export(job, Path(job.inputs.out))
    verify(Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    assert isinstance(networks.decoder, VideoDecoder)
    for name, value in networks.autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    weights = load_file(Path(job.run_uri).glob("checkpoints/step-00000004-*").__next__() / "weights.safetensors")
    assert {name.split("/")[0] for name in weights} == {"decoder", "discriminator"}
    assert all(name.startswith(("decoder/decoder.temporal.", "discriminator/judge.")) for name in weights)


def test_decoder_without_a_discriminator_trains_by_reconstruction_alone(
    system: System, make_config: MakeConfig, corpus: str
) -> None:
    from training.tasks import make_task  # noqa: PLC0415

    config = pixel_config(make_config, "decoder", num_frames=6, discriminator=None, steps=2)
    job = replace(system.job(config), inputs=replace(system.inputs, corpus=corpus))
    assert [phase.name for phase in make_task(config, job.inputs).phases] == ["decoder"]
    assert go(job).step == 2


def test_decoder_run_in_parts_equals_run_in_one(system: System, make_config: MakeConfig, corpus: str) -> None:
    config = pixel_config(
        make_config, "decoder", num_frames=6, discriminator=OptimizerConfig(learning_rate=1e-3), steps=4
    )
    inputs = replace(system.inputs, corpus=corpus)
    whole, parts = (replace(system.job(config, name), inputs=inputs) for name in ("whole", "parts"))
    go(whole)
    go(replace(parts, config=replace(config, steps=1)))
    go(parts)
    first, second = (
        load_file(next(Path(job.run_uri).glob("checkpoints/step-00000004-*")) / "weights.safetensors")
        for job in (whole, parts)
    )
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_upsampler_trains_image_then_temporal_layers(system: System, make_config: MakeConfig, corpus: str) -> None:
    inputs = replace(system.inputs, corpus=corpus)
    image = replace(system.job(pixel_config(make_config, "upsampler-image", num_frames=1)), inputs=inputs)
    go(image)
    export(image, Path(inputs.out))
    video = replace(system.job(pixel_config(make_config, "upsampler", num_frames=4)), inputs=inputs)
    go(video)
    export(video, Path(inputs.out))
    manifest = verify(Path(inputs.out))
    assert "upsampler/unet/config.json" in manifest.files
    assert "temporal/upsampler/model.safetensors" in manifest.files
    assert Networks(inputs.out).stage("upsampler").config == video.config.model.upsampler.stage
    names = load_file(next(Path(video.run_uri).glob("checkpoints/step-00000006-*")) / "weights.safetensors")
    assert all(".temporal." in name for name in names)


def test_upsampler_goes_on_from_one_that_is_there(system: System, make_config: MakeConfig, corpus: str) -> None:
    from training.tasks import make_task  # noqa: PLC0415

    inputs = replace(system.inputs, corpus=corpus)
    image = replace(system.job(pixel_config(make_config, "upsampler-image", num_frames=1)), inputs=inputs)
    go(image)
    export(image, Path(inputs.out))
    task = make_task(image.config, replace(inputs, backbone=f"{inputs.out}/upsampler"))
    written = load_file(Path(inputs.out) / "upsampler" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in task.network.unet.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, written[name].float()), name
    task.export(Path(inputs.out), {})
    assert inputs.out not in (Path(inputs.out) / "upsampler" / "unet" / "config.json").read_text()


def test_preview_of_every_video_run_is_a_clip(system: System, make_config: MakeConfig, corpus: str) -> None:
    from training.tasks import make_task  # noqa: PLC0415

    inputs = replace(system.inputs, corpus=corpus)
    model = micro_system(make_config("image").model)
    for objective, frames in (("keyframes", 5), ("prediction", 5), ("interpolation", 5)):
        config = replace(make_config(objective), model=model)
        clips = make_task(config, inputs).preview(2)
        assert [tuple(clip.shape) for clip in clips] == [(frames, 16, 24, 3)] * 2
        assert clips[0].dtype == torch.uint8
    config = pixel_config(make_config, "upsampler-image", num_frames=2)
    clips = make_task(config, inputs).preview(2)
    assert [tuple(clip.shape) for clip in clips] == [(2, 16, 16, 3)] * 4


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_consistent(name: str) -> None:
    config = make_preset(name)
    assert config.name == name
    assert config.batch_size % config.virtual_shards == 0
    if config.objective in ("prediction", "interpolation", "keyframes"):
        assert config.data.num_frames == config.model.stages[config.objective].num_frames


def test_decoder_under_zero_three_is_refused(system: System, make_config: MakeConfig, corpus: str) -> None:
    config = pixel_config(make_config, "decoder", num_frames=6, discriminator=OptimizerConfig(learning_rate=1e-3))
    cluster = ClusterConfig(engine="deepspeed", zero=replace(ClusterConfig().zero, stage=3))
    job = replace(system.job(replace(config, cluster=cluster)), inputs=replace(system.inputs, corpus=corpus))
    outcome = run_worker(job, Workers(), torch.device("cpu"))
    assert outcome.error is not None
    assert "cannot be partitioned" in outcome.error
