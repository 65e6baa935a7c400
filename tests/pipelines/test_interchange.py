"""Checkpoints from and to other formats: the networks compute what they did before."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pipelines.checkpoint import verify
from pipelines.conditions import Wish
from pipelines.generation_plan import Request, make_plan
from pipelines.interchange import export_svd, import_networks
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import latent_scaling
from pipelines.models.lora import TEXT, UNET, Adapter
from pipelines.models.svd import embed_time_ids
from pipelines.networks import Networks
from pipelines.presets import PRESETS
from tests.pipelines.original_format import original_format
from tests.pipelines.random_checkpoint import write_checkpoint

TEXT_KIND = "tiny-text-to-video"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose backbone/ is a diffusers folder."""
    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    write_checkpoint(folder, PRESETS[TEXT_KIND]())
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    parts = {name: ["diffusers", kind] for name, kind in classes.items()}
    parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index = {"_class_name": "StableDiffusionPipeline", **parts, "requires_safety_checker": False}
    (folder / "backbone" / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def svd(tmp_path: Path) -> Path:
    """A small Stable Video Diffusion folder, every weight of its own value."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        layers_per_block=1,
        cross_attention_dim=20,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=5,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=2
    )
    with torch.no_grad():
        for network in (unet, vae):
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    unet.save_pretrained(tmp_path / "svd" / "unet")
    vae.save_pretrained(tmp_path / "svd" / "vae")
    scheduler = {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700}
    for part, name, values in (
        ("scheduler", "scheduler_config.json", {"_class_name": "EulerDiscreteScheduler", **scheduler}),
        ("image_encoder", "config.json", {"hidden_size": 7}),
        (".", "model_index.json", {"_class_name": "StableVideoDiffusionPipeline"}),
    ):
        (tmp_path / "svd" / part).mkdir(exist_ok=True)
        (tmp_path / "svd" / part / name).write_text(json.dumps(values))
    save_file({"weight": torch.ones(2)}, tmp_path / "svd" / "image_encoder" / "model.safetensors")
    return tmp_path / "svd"


@torch.no_grad()
def test_stable_video_diffusion_goes_into_a_checkpoint_and_back(svd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    parts = import_networks(folder, str(svd))
    assert parts == ["backbone/unet", "backbone/vae", "backbone/scheduler", "temporal/prediction", "decoder", "svd"]
    verify(folder)
    networks = Networks(str(folder))
    stage = networks.stage("prediction")
    assert (stage.schedule.config.prediction, stage.config.num_frames) == ("edm", 5)
    noisy, image = torch.randn(2, 1, 5, 4, 6, 8)
    embedding, time_ids, timestep = torch.randn(1, 1, 20), torch.tensor([[6.0, 127.0, 0.02]]), torch.tensor([0.7])
    theirs = UNetSpatioTemporalConditionModel.from_pretrained(svd / "unet")
    expected = theirs(torch.cat([noisy, image], dim=2), timestep, embedding, time_ids).sample
    told = Conditions(text=embedding, context=image, class_labels=embed_time_ids(time_ids, 16))
    assert_close(stage.denoise(told)(noisy, timestep), expected, rtol=1e-5, atol=1e-5)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(svd / "vae")
    frames = vae.decode(latent_scaling(networks.autoencoder).restore(image[0]), num_frames=5).sample
    assert_close(networks.decoder(image)[0], frames, rtol=1e-5, atol=1e-5)
    export_svd(folder, tmp_path / "back")
    for path in svd.rglob("*.safetensors"):
        assert_close(load_file(tmp_path / "back" / path.relative_to(svd)), load_file(path), rtol=0, atol=0)
    for path in svd.rglob("*.json"):
        assert (tmp_path / "back" / path.relative_to(svd)).is_file(), path
    assert UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "back" / "unet").config["num_frames"] == 5
    with pytest.raises(ValueError, match="has the layout of Stable Video Diffusion"):
        make_plan(networks, Request(wish=Wish()))
    with pytest.raises(ValueError, match="not an empty folder"):
        export_svd(folder, tmp_path / "back")


def test_stable_diffusion_folder_becomes_a_backbone(text: Path, tmp_path: Path) -> None:
    source = text / "backbone"
    twin = source / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({"weight": torch.ones(2)}, twin)
    folder = tmp_path / "checkpoint"
    parts = import_networks(folder, str(source))
    twin.unlink()
    assert parts == [f"backbone/{part}" for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")]
    assert not (folder / "backbone" / "unet" / twin.name).exists()
    verify(folder)
    networks = Networks(str(folder))
    assert networks.condition_kind == "text"
    assert torch.equal(networks.text_encoder(["the sea"]), Networks(str(text)).text_encoder(["the sea"]))
    assert import_networks(folder, str(text / "upsampler")) == ["upsampler/unet", "upsampler/vae"]
    assert Networks(str(folder)).upsampler_unet.config["in_channels"] == 7
    with pytest.raises(ValueError, match=r"is not of the layout|has no temporal/prediction"):
        export_svd(folder, tmp_path / "svd")


def test_original_format_file_becomes_a_backbone(text: Path, tmp_path: Path) -> None:
    own = Networks(str(text))
    weights = own.unet.state_dict(), own.autoencoder.state_dict(), own.text_encoder.model.state_dict()
    save_file(original_format(*weights, levels=4), tmp_path / "sd.safetensors")
    import_networks(tmp_path / "c", str(tmp_path / "sd.safetensors"), config=str(text / "backbone"))
    read = Networks(str(tmp_path / "c"))
    for now, before in zip((read.unet, read.autoencoder, read.text_encoder.model), weights, strict=True):
        assert_close(dict(now.state_dict()), dict(before), rtol=0, atol=0)


def test_sources_that_do_not_fit_are_refused(text: Path, tmp_path: Path) -> None:
    for name, message in (
        ("model.ckpt", "may run code when it is read; give the model as .safetensors"),
        ("model.safetensors", "no file .*model.safetensors"),
        ("nowhere", "no file .*nowhere/unet/config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            import_networks(tmp_path / "c", str(tmp_path / name))
    with pytest.raises(ValueError, match="no folder 'some-owner/some-name' here, and the hub does not give it"):
        import_networks(tmp_path / "c", "some-owner/some-name")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"diffusers does not read .*name a diffusers folder .* by --config"):
        import_networks(tmp_path / "c", str(tmp_path / "other.safetensors"), config=str(text / "backbone"))
    values = json.loads((text / "backbone" / "unet" / "config.json").read_text())
    for changes, message in (
        ({"_class_name": "FluxTransformer2DModel"}, "holds a FluxTransformer2DModel; give one of UNet2DConditionModel"),
        ({"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 72}, "as Stable Diffusion XL"),
        ({}, "has no weights in safetensors"),
    ):
        (tmp_path / "odd" / "unet").mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / "unet" / "model.bin").touch()
        settings = {**values, "addition_time_embed_dim": 8, **changes}
        (tmp_path / "odd" / "unet" / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=message):
            import_networks(tmp_path / "c", str(tmp_path / "odd"))
    assert not (tmp_path / "c" / "videoldm.json").exists()


def test_adapter_changes_the_image_model_and_leaves_temporal_layers_and_their_text(text: Path, tmp_path: Path) -> None:
    plain = Networks(str(text))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    of_text = next(name for name, _ in plain.text_encoder.model.named_modules() if name.endswith("q_proj"))
    weights = {}
    for prefix, network, name in ((UNET, plain.unet, layer), (TEXT, plain.text_encoder.model, of_text)):
        rows, columns = network.get_submodule(name).weight.shape
        weights |= {f"{prefix}{name}.lora_A.weight": torch.randn(2, columns)}
        weights |= {f"{prefix}{name}.lora_B.weight": torch.randn(rows, 2)}
    save_file(weights, tmp_path / "adapter.safetensors")
    changed = Networks(str(text), adapter=Adapter.read(tmp_path / "adapter.safetensors", 0.5))
    change = weights[f"{UNET}{layer}.lora_B.weight"] @ weights[f"{UNET}{layer}.lora_A.weight"]
    before, now = (networks.unet.get_submodule(layer).weight for networks in (plain, changed))
    assert_close(now, before + 0.5 * change)
    assert not torch.equal(changed.text_encoder(["sea"]), plain.text_encoder(["sea"]))
    assert torch.equal(changed.temporal_text_encoder(["sea"]), plain.temporal_text_encoder(["sea"]))
    one, other = (networks.stage("keyframes").network.temporal_state_dict() for networks in (plain, changed))
    assert_close(dict(one), dict(other), rtol=0, atol=0)
    with pytest.raises(ValueError, match="no adapter"):
        Adapter.read(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_text("nonsense")
    with pytest.raises(ValueError, match="is no safetensors file"):
        Adapter.read(tmp_path / "broken.safetensors")
