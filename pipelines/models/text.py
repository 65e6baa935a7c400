"""Text to cross-attention tokens, by the encoder of a diffusers folder."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.tensors import Tokens


class TextEncoder(nn.Module):
    """A frozen CLIP text encoder and its tokenizer.

    Args:
        model: text model; its last hidden state is the tokens.
        tokenizer: turns text into the ids the model knows.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).train(False)
        self.tokenizer = tokenizer

    @staticmethod
    def from_folder(folder: Path) -> "TextEncoder":
        """Load `text_encoder` and `tokenizer` of a diffusers folder.

        Raises:
            ValueError: the folder lacks one of them.
        """
        for part in ("text_encoder", "tokenizer"):
            if not (folder / part).is_dir():
                raise ValueError(f"no {part} in {str(folder)!r}; give the folder of a diffusers text-to-image model")
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
        return TextEncoder(model, CLIPTokenizer.from_pretrained(folder / "tokenizer"))

    @torch.no_grad()
    def forward(self, prompts: list[str]) -> Tokens:
        """Encode prompts; an empty one is the unconditional side of guidance.

        Raises:
            ValueError: a prompt has more tokens than the encoder takes; nothing is cut off silently.
        """
        limit = self.tokenizer.model_max_length
        for prompt, ids in zip(prompts, self.tokenizer(prompts)["input_ids"], strict=True):
            if len(ids) > limit:
                # Two places are taken by the marks for start and end.
                raise ValueError(
                    f"prompt {prompt[:40]!r}... has {len(ids) - 2} tokens, the text encoder takes {limit - 2}; "
                    "shorten it"
                )
        padded = self.tokenizer(prompts, padding="max_length", max_length=limit, return_tensors="pt")
        return self.model(padded.input_ids.to(self.model.device)).last_hidden_state
