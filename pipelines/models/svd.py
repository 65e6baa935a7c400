"""Weights in the layout of Stable Video Diffusion, to our networks and back.

The layers are the same; names, the time of concatenation and one sign differ. Two traps: the decoder's residual blocks
store the share of the temporal branch where all others store that of the spatial one, and diffusers' class gives the
norms of some blocks another eps, which `TemporalConfig.svd_eps` repeats.
Source: Blattmann et al. 2023, Stable Video Diffusion; diffusers 0.42.
"""

import re

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from pipelines.models.temporal import TemporalConfig
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet

Weights = dict[str, Tensor]

LAYERS = {
    "embedding": "time_emb_proj",
    "position.0": "time_pos_embed.linear_1",
    "position.2": "time_pos_embed.linear_2",
    "mix.logit": "time_mixer.mix_factor",
    "input.norm": "norm_in",
    "input.proj_in": "ff_in.net.0.proj",
    "input.proj_out": "ff_in.net.2",
    "frames.norm": "norm1",
    "frames.query": "attn1.to_q",
    "frames.key": "attn1.to_k",
    "frames.value": "attn1.to_v",
    "frames.proj_out": "attn1.to_out.0",
    "tokens.norm": "norm2",
    "tokens.query": "attn2.to_q",
    "tokens.key": "attn2.to_k",
    "tokens.value": "attn2.to_v",
    "tokens.proj_out": "attn2.to_out.0",
    "output.norm": "norm3",
    "output.proj_in": "ff.net.0.proj",
    "output.proj_out": "ff.net.2",
}
"""Our names of the temporal layers' parts, and theirs."""


def video_unet_from_svd(svd: UNetSpatioTemporalConditionModel) -> VideoUNet:
    """Build a video network with the weights and the function of diffusers' class.

    What that class calls `added_time_ids` enters as class labels (see `embed_time_ids`), the image concatenated to the
    noise as context, its embedding as text.
    """
    config = svd.config
    unet = UNet2DConditionModel(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        down_block_types=tuple(kind.replace("SpatioTemporal", "2D") for kind in config["down_block_types"]),
        up_block_types=tuple(kind.replace("SpatioTemporal", "2D") for kind in config["up_block_types"]),
        block_out_channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        transformer_layers_per_block=config["transformer_layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        attention_head_dim=config["num_attention_heads"],
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=config["projection_class_embeddings_input_dim"],
    )
    temporal = TemporalConfig(mix="scalar", cross_attention_dim=config["cross_attention_dim"], svd_eps=True)
    video_unet = VideoUNet(unet, temporal)
    theirs = svd.state_dict()
    unet.load_state_dict({name: theirs[_svd_name(name)] for name in unet.state_dict()})
    video_unet.load_temporal_state_dict(
        {name: theirs[_svd_temporal_name(name)] for name in video_unet.temporal_state_dict()}
    )
    return video_unet


def svd_from_video_unet(video_unet: VideoUNet, *, time_id_dim: int = 256) -> UNetSpatioTemporalConditionModel:
    """Build diffusers' class with the weights and the function of our network.

    Args:
        video_unet: a network of that layout, such as `video_unet_from_svd` builds.
        time_id_dim: width of the sinusoids of each of the added time ids.

    Raises:
        ValueError: diffusers' class has no place for some of the network's layers.
    """
    config = video_unet.unet.config
    if not video_unet.config.svd_eps or config.get("class_embed_type") != "projection":
        raise ValueError(
            f"{video_unet.config} is not of the layout of Stable Video Diffusion; only such networks can be exported"
        )
    svd = UNetSpatioTemporalConditionModel(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        down_block_types=tuple(kind.replace("2D", "SpatioTemporal") for kind in config["down_block_types"]),
        up_block_types=tuple(kind.replace("2D", "SpatioTemporal") for kind in config["up_block_types"]),
        block_out_channels=tuple(config["block_out_channels"]),
        addition_time_embed_dim=time_id_dim,
        projection_class_embeddings_input_dim=config["projection_class_embeddings_input_dim"],
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        transformer_layers_per_block=config["transformer_layers_per_block"],
        num_attention_heads=config["attention_head_dim"],
    )
    weights = {_svd_name(name): tensor for name, tensor in video_unet.unet.state_dict().items()}
    weights |= {_svd_temporal_name(name): tensor for name, tensor in video_unet.temporal_state_dict().items()}
    svd.load_state_dict(weights)
    return svd


def embed_time_ids(time_ids: Float[Tensor, "b n"], dim: int = 256) -> Float[Tensor, "b nd"]:
    """Turn added time ids (frame rate, motion, noise level of the image) into class labels of the backbone.

    Args:
        time_ids: the ids of b clips.
        dim: width of the sinusoids of each.
    """
    waves = get_timestep_embedding(time_ids.flatten(), dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    return waves.reshape(time_ids.shape[0], -1)


def video_decoder_from_svd(svd: AutoencoderKLTemporalDecoder) -> VideoDecoder:
    """Build an image autoencoder with temporal layers from diffusers' class.

    Raises:
        ValueError: its middle block has another number of layers than an image autoencoder's.
    """
    config = svd.config
    if config["layers_per_block"] != 2:
        raise ValueError(f"layers_per_block={config['layers_per_block']}; only decoders with 2 have an image decoder")
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        down_block_types=tuple(config["down_block_types"]),
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        sample_size=config["sample_size"],
        scaling_factor=config["scaling_factor"],
        force_upcast=config["force_upcast"],
        use_post_quant_conv=False,
    )
    decoder = VideoDecoder(vae, DecoderConfig(spatial_kernel=1, convolves_frames=True))
    theirs = svd.state_dict()
    vae.load_state_dict({name: theirs[_svd_decoder_name(name)] for name in vae.state_dict()})
    decoder.load_temporal_state_dict(
        {name: _swap_mix(name, theirs[_svd_decoder_temporal_name(name)]) for name in decoder.temporal_state_dict()}
    )
    return decoder


def svd_from_video_decoder(decoder: VideoDecoder) -> AutoencoderKLTemporalDecoder:
    """Build diffusers' class from an image autoencoder with temporal layers.

    Raises:
        ValueError: the decoder is not of that layout.
    """
    vae, config = decoder.vae, decoder.vae.config
    if decoder.config != DecoderConfig(spatial_kernel=1, convolves_frames=True) or not isinstance(vae, AutoencoderKL):
        raise ValueError(f"{decoder.config} is not of the layout of Stable Video Diffusion; it cannot be exported")
    if vae.post_quant_conv is not None:
        raise ValueError("the autoencoder has a post_quant_conv, for which diffusers' class has no place")
    svd = AutoencoderKLTemporalDecoder(
        **{
            name: config[name]
            for name in (
                "in_channels",
                "out_channels",
                "down_block_types",
                "block_out_channels",
                "layers_per_block",
                "latent_channels",
                "sample_size",
                "scaling_factor",
                "force_upcast",
            )
        }
    )
    weights = {_svd_decoder_name(name): tensor for name, tensor in vae.state_dict().items()}
    weights |= {
        _svd_decoder_temporal_name(name): _swap_mix(name, tensor)
        for name, tensor in decoder.temporal_state_dict().items()
    }
    svd.load_state_dict(weights)
    return svd


def _svd_name(name: str) -> str:
    name = re.sub(r"^class_embedding\.", "add_embedding.", name)
    return re.sub(r"(\.resnets\.\d+)\.", r"\1.spatial_res_block.", name)


def _svd_temporal_name(name: str) -> str:
    """Find where diffusers keeps a parameter of `VideoUNet.temporal`."""
    key, part = name.split(".", 1)
    path = re.sub(r"_(?=\d)|(?<=\d)_|(?<=block)_", ".", key)
    part = re.sub(r"^blocks\.(\d+)\.", r"temporal_transformer_blocks.\1.", part)
    for ours, theirs in LAYERS.items():
        part = re.sub(rf"(^|\.){re.escape(ours)}(\.|$)", rf"\1{theirs}\2", part)
    if ".resnets." in path and not part.startswith("time_mixer"):
        part = f"temporal_res_block.{part}"
    return f"{path}.{part}"


def _svd_decoder_name(name: str) -> str:
    return _svd_name(name) if name.startswith("decoder.") else name


def _svd_decoder_temporal_name(name: str) -> str:
    if name.startswith("frames."):
        return name.replace("frames", "decoder.time_conv_out")
    return f"decoder.{_svd_temporal_name(name)}"


def _swap_mix(name: str, tensor: Tensor) -> Tensor:
    """Turn the share of one branch into that of the other: sigmoid(-x) = 1 - sigmoid(x)."""
    return -tensor if name.endswith("mix.logit") else tensor
