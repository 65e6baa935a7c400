from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.models.text import TextEncoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder with a CLIP of random weights that knows single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[("t", "h"), ("th", "e</w>")], model_max_length=11)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=13,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=11,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def test_text_encoder_gives_the_models_last_state_for_each_prompt(folder: Path) -> None:
    encoder = TextEncoder.from_folder(folder)
    tokens = encoder(["abc d", ""])
    assert tokens.shape == (2, 11, 12)
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    ids = encoder.tokenizer.convert_tokens_to_ids(["a", "b", "c</w>", "d</w>"])
    by_hand = torch.tensor([[start, *ids, *[end] * 6]])
    assert_close(tokens[:1], encoder.model(by_hand).last_hidden_state)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    assert not tokens.requires_grad


def test_text_encoder_refuses_long_prompts_and_other_folders(folder: Path) -> None:
    encoder = TextEncoder.from_folder(folder)
    assert encoder(["a b c d e f g h i"]).shape[1] == 11
    with pytest.raises(ValueError, match=r"has 10 tokens, the text encoder takes 9; shorten it"):
        encoder(["a b", "a b c d e f g h i j"])
    (folder / "tokenizer").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="no tokenizer in"):
        TextEncoder.from_folder(folder)
