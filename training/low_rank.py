"""Low-rank changes of a frozen image network, trained in place of its weights (LoRA).

Source: Hu et al. 2022; W' = W + B A, B starts at zero, so that training starts from the network as it is.
"""

from functools import partial
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"
"""The name by which diffusers finds such a file in a folder."""

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


class LowRank(nn.Module):
    """Changes of a rank in the projections of every attention of a network, added by hooks; its weights stay.

    Args:
        network: frozen.
        rank: of the changes.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.changes = nn.ModuleDict()
        for name, attention in network.named_modules():
            if isinstance(attention, Attention):
                for layer in LAYERS:
                    self._follow(f"{name}.{layer}", attention.get_submodule(layer), rank)
        if not self.changes:
            raise ValueError("the image network has no attention to change; train it without lora_rank")

    def weights(self) -> dict[str, Tensor]:
        """Return the changes as diffusers and `pipelines.models.lora` name them."""
        suffixes = {"0.weight": "lora_A.weight", "1.weight": "lora_B.weight"}
        found = {}
        for name, weight in self.changes.state_dict().items():
            layer, _, place = name.partition(".")
            found[f"unet.{layer.replace('-', '.')}.{suffixes[place]}"] = weight.contiguous()
        return found

    def save(self, folder: Path) -> None:
        """Write the changes as a file that diffusers' `load_lora_weights` opens."""
        save_file(self.weights(), folder / FILE)

    def _follow(self, name: str, layer: nn.Module, rank: int) -> None:
        assert isinstance(layer, nn.Linear)
        down = nn.Linear(layer.in_features, rank, bias=False)
        up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        # A dot may not be in a module's name.
        key = name.replace(".", "-")
        self.changes[key] = nn.Sequential(down, up)
        layer.register_forward_hook(partial(self._add, key))

    def _add(self, key: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hidden = inputs[0] if torch.is_autocast_enabled(inputs[0].device.type) else inputs[0].float()
        change: Tensor = self.changes[key](hidden)
        return output + change.to(output.dtype)
