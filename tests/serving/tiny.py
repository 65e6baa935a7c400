"""Checkpoints of random weights: the tiny preset, every temporal layer active, made in about a second."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file

from pipelines import checkpoint, presets
from pipelines.configs import to_json
from pipelines.models.scene import SceneConfig, SceneEncoder
from pipelines.models.video_unet import VideoUNet


def make_tiny(folder: Path, *, seed: int = 0, name: str = "tiny", steps: int = 6, frames: int = 4) -> str:
    """Write a checkpoint with key frames and prediction (windows of two frames more) and return its path."""
    preset = presets.tiny()
    stage = preset.stages["keyframes"]
    sampler = replace(stage.sampler, num_steps=steps)
    keyframes = replace(stage, sampler=sampler, num_frames=frames)
    context = replace(stage.temporal, context_channels=5)
    prediction = replace(keyframes, temporal=context, num_frames=frames + 2)
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as aside:
        torch.manual_seed(seed)
        new = Path(aside)
        AutoencoderKL(**preset.autoencoder).save_pretrained(new / "vae")
        UNet2DConditionModel(**preset.unet).save_pretrained(new / "unet")
        SceneEncoder(SceneConfig(width=preset.unet["cross_attention_dim"])).save(new / "condition")
        for part, source in (("vae", "vae"), ("unet", "unet"), ("condition", "condition")):
            checkpoint.write_part(folder, f"backbone/{part}", new / source, name=name)
        for part, config in (("keyframes", keyframes), ("prediction", prediction)):
            network = VideoUNet(UNet2DConditionModel(**preset.unet), config.temporal)
            for parameter in network.temporal_parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
            (new / part).mkdir()
            save_file(network.temporal_state_dict(), new / part / checkpoint.WEIGHTS)
            (new / part / "config.json").write_text(json.dumps(to_json(config)))
            checkpoint.write_part(folder, f"temporal/{part}", new / part, name=name)
    return str(folder)
