"""Checkpoints of random weights, every temporal layer active, of any small preset."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines import checkpoint
from pipelines.config import ModelPreset, StageConfig
from pipelines.configs import to_json
from pipelines.diffusion.scheduler_config import diffusers_from_noise_config
from pipelines.models.boxes import MAP_CHANNELS, BoxConfig, BoxEncoder
from pipelines.models.scene import SceneConfig, SceneEncoder
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.models.video_unet import VideoUNet


def write_checkpoint(folder: Path, preset: ModelPreset, *, seed: int = 0, boxes: bool = False) -> str:
    """Write a whole system; returns its path."""
    aside, width = folder / "aside", preset.unet.get("cross_attention_dim")

    def put(part: str, write: Any) -> None:
        aside.mkdir(parents=True)
        write(aside)
        checkpoint.write_part(folder, part, aside, name=preset.name)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, unet = autoencoder(preset.autoencoder), image_unet(preset.unet)
        put("backbone/vae", vae.save_pretrained)
        put("backbone/unet", unet.save_pretrained)
        noise = next(iter(preset.stages.values())).noise
        scheduler = json.dumps(diffusers_from_noise_config(noise))
        put("backbone/scheduler", lambda to: (to / "scheduler_config.json").write_text(scheduler))
        if preset.condition == "scene":
            put("backbone/condition", SceneEncoder(SceneConfig(width=width)).save)
        if preset.condition == "text":
            model, tokenizer = clip(width)
            put("backbone/text_encoder", model.save_pretrained)
            put("backbone/tokenizer", tokenizer.save_pretrained)
        for name, config in preset.stages.items():
            put(f"temporal/{name}", lambda to, config=config: write_temporal(to, unet, config))
        decoder = VideoDecoder(vae, preset.decoder)
        put("decoder", lambda to: write_layers(to, decoder, preset.decoder))
        if boxes:
            channels = preset.unet["in_channels"] + MAP_CHANNELS
            put("boxes/unet", image_unet({**preset.unet, "in_channels": channels}).save_pretrained)
            put("boxes/condition", BoxEncoder(BoxConfig(width=width, max_boxes=5, depth=1, heads=2)).save)
        if preset.upsampler is not None:
            large, config = image_unet(preset.upsampler.unet), preset.upsampler.stage
            put("upsampler/unet", large.save_pretrained)
            if preset.upsampler.autoencoder is not None:
                put("upsampler/vae", autoencoder(preset.upsampler.autoencoder).save_pretrained)
            put("temporal/upsampler", lambda to: write_temporal(to, large, config))
    return str(folder)


def image_unet(config: dict[str, Any]) -> Any:
    return (UNet2DConditionModel if "cross_attention_dim" in config else UNet2DModel)(**config)


def autoencoder(config: dict[str, Any]) -> Any:
    return (VQModel if "num_vq_embeddings" in config else AutoencoderKL)(**config)


def write_temporal(folder: Path, unet: Any, config: StageConfig) -> None:
    network = VideoUNet(unet, config.temporal)
    write_layers(folder, network, config)
    network.remove()


def write_layers(folder: Path, network: VideoUNet | VideoDecoder, config: Any) -> None:
    with torch.no_grad():
        for parameter in network.temporal_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file({name: value.contiguous() for name, value in network.temporal_state_dict().items()}, folder / "w")
    (folder / "w").rename(folder / checkpoint.WEIGHTS)
    (folder / "config.json").write_text(json.dumps(to_json(config)))


def clip(width: int, *, words: tuple[str, ...] = ()) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A text encoder with an alphabet of bytes and a few merges; `words` are further tokens."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = [chr(byte) for byte in visible] + [chr(256 + index) for index in range(len(hidden))]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "th", "the</w>", *words]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[("t", "h"), ("th", "e</w>")], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    return CLIPTextModel(config), tokenizer
