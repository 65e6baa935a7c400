"""Names of a small Stable Diffusion's weights as its authors' code has them: what diffusers converts from."""

import re

from torch import Tensor

Weights = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Two levels of one layer, attention in the first: blocks in the order in which the authors' code numbers them.
UNET = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0": "output_blocks.1.1",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
MIDDLE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_format(unet: Weights, vae: Weights, text: Weights, levels: int) -> Weights:
    """Rename the weights of a diffusers pipeline; `levels` of the autoencoder."""
    found = {f"model.diffusion_model.{_unet_name(name)}": value for name, value in unet.items()}
    for name, value in vae.items():
        is_map = "attentions" in name and name.endswith("weight") and value.ndim == 2
        found[f"first_stage_model.{_vae_name(name, levels)}"] = value[:, :, None, None] if is_map else value
    for name, value in text.items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous().clone() for name, value in found.items()}


def _unet_name(name: str) -> str:
    for ours, theirs in UNET.items():
        if name.startswith(f"{ours}."):
            rest = name.removeprefix(f"{ours}.")
            if ".resnets." in f".{ours}":
                part, end = rest.rsplit(".", 1)
                rest = f"{RESNET[part]}.{end}"
            return f"{theirs}.{rest}"
    raise KeyError(name)


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = re.match(r"decoder\.up_blocks\.(\d)", name)
    if up:
        level = levels - 1 - int(up[1])
        name = re.sub(r"up_blocks\.\d\.resnets", f"up.{level}.block", name)
        name = re.sub(r"up_blocks\.\d\.upsamplers\.0", f"up.{level}.upsample", name)
    names = MIDDLE | (ATTENTION if "attentions" in name else {})
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name
