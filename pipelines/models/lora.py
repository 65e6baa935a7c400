"""Low-rank adapters fused into the weights of a backbone.

Source: Hu et al. 2022, W' = W + scale * (alpha / rank) * B A; file formats as diffusers writes them.
"""

import torch
from torch import Tensor, nn

PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight"))
"""Names of A and B in the two formats of diffusers."""


@torch.no_grad()
def fuse_lora(network: nn.Module, weights: dict[str, Tensor], *, prefix: str = "unet.", scale: float = 1.0) -> int:
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
