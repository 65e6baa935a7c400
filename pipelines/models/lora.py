"""Low-rank adapters fused into the weights of a backbone.

Source: Hu et al. 2022, W' = W + scale * (alpha / rank) * B A; file formats as diffusers writes them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

UNET, TEXT = "unet.", "text_encoder."
"""How the names of an adapter's weights for each network begin."""

PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight"))
"""Names of A and B in the two formats of diffusers."""


@dataclass(frozen=True)
class Adapter:
    """An adapter read from a file, and its strength."""

    weights: dict[str, Tensor]
    scale: float = 1.0

    @staticmethod
    def read(file: Path, scale: float = 1.0) -> "Adapter":
        """Read a file.

        Raises:
            ValueError: the file is missing or no safetensors file.
        """
        if not file.is_file():
            raise ValueError(f"no adapter {str(file)!r}; give a .safetensors file")
        try:
            return Adapter(load_file(file), scale)
        except SafetensorError as err:
            raise ValueError(f"{str(file)!r} is no safetensors file ({err}); give an adapter in that format") from err

    def changes(self, prefix: str) -> bool:
        """Whether there is anything for a network."""
        return any(name.startswith(prefix) for name in self.weights)

    def fuse_into(self, network: nn.Module, prefix: str) -> None:
        """Fuse what there is for a network, if anything; see `fuse_lora`."""
        if self.changes(prefix):
            fuse_lora(network, self.weights, prefix=prefix, scale=self.scale)


@torch.no_grad()
def fuse_lora(network: nn.Module, weights: dict[str, Tensor], *, prefix: str = UNET, scale: float = 1.0) -> int:
    """Add low-rank adapters to the linear maps and convolutions of a network, in place.

    Args:
        network: U-Net or text encoder of the backbone; fuse before or after temporal layers are inserted.
        weights: content of a LoRA file.
        prefix: which of the file's weights belong to this network: "unet." or "text_encoder.".
        scale: strength; minus one takes an adapter out again.

    Returns:
        Number of layers changed.

    Raises:
        ValueError: the file holds nothing for this network, or a layer that the network lacks or that differs in size.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    fused = 0
    for a_suffix, b_suffix in PAIRS:
        for name in sorted(name.removesuffix(a_suffix) for name in own if name.endswith(a_suffix)):
            a, b = own[name + a_suffix], own[name + b_suffix]
            weight = _weight(network, name)
            strength = scale * float(own.get(f"{name}.alpha", torch.tensor(a.shape[0]))) / a.shape[0]
            change = strength * (b.flatten(1).float() @ a.flatten(1).float())
            if change.numel() != weight.numel() or len(change) != len(weight):
                raise ValueError(
                    f"the adapter changes {name} as {tuple(change.shape)}, the layer is {tuple(weight.shape)}; "
                    "use an adapter that was trained on this backbone's family"
                )
            weight += change.reshape(weight.shape).to(weight)
            fused += 1
    if not fused:
        raise ValueError(f"the file has no low-rank weights under {prefix!r}; it has {sorted(weights)[:3]}")
    return fused


def _weight(network: nn.Module, name: str) -> Tensor:
    layers = dict(network.named_modules())
    if name not in layers or not isinstance(layers[name].weight, Tensor):
        raise ValueError(f"the adapter changes {name!r}, which the network lacks; use one of this backbone's family")
    weight: Tensor = layers[name].weight
    return weight
