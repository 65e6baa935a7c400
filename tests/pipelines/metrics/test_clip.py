from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from pipelines.metrics.clip import ClipSimilarity
from tests.pipelines.random_checkpoint import clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP of random weights with an alphabet of bytes."""
    torch.manual_seed(0)
    text, tokenizer = clip(16)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text.config.to_dict(), vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_similarity_is_the_cosine_that_the_model_itself_gives(folder: Path) -> None:
    network = ClipSimilarity(folder)
    frames = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    found = network.similarity(frames, ["the road", "a"])
    assert found.shape == (2, 3)
    assert bool((found.abs() <= 1).all())
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = network._tokenizer(["the road", "a"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(pixel_values=network._fit(frames[1]), **tokens).logits_per_image / model.logit_scale.exp()
    assert torch.allclose(found[1], logits[:, 1], atol=1e-5)


def test_frames_are_cut_to_their_middle(folder: Path) -> None:
    network = ClipSimilarity(folder)
    wide = torch.rand(1, 1, 3, 32, 64) * 2 - 1
    other = wide.clone()
    other[..., :8] = 1
    assert torch.equal(network.similarity(wide, ["a"]), network.similarity(other, ["a"]))
    assert "32" in network.resize_rule


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a folder with model and tokenizer"):
        ClipSimilarity(tmp_path)
