"""Scene labels as cross-attention tokens: day or night and how crowded the road is.

Source: Blattmann et al. 2023, section 4.1 and table 6: one token, dropped with probability 0.1. How the two labels
become one token is not published; here an embedding of day/night plus a small network over the logarithm of the count.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines.tensors import Tokens

UNKNOWN = -1
"""A label that is unknown, or dropped for guidance."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Sizes of the scene encoder.

    Attributes:
        width: of the token: the cross-attention width of the image network.
        hidden: of the network over the count.
    """

    width: int
    hidden: int = 64


class SceneEncoder(nn.Module):
    """Labels of b clips to one token each; with both labels unknown, the token of no condition."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.config = config
        self.night = nn.Embedding(3, config.width)
        self.crowded_in = nn.Linear(2, config.hidden)
        self.crowded_out = nn.Linear(config.hidden, config.width)

    def forward(self, night: Int[Tensor, " b"], crowdedness: Int[Tensor, " b"]) -> Tokens:
        """Encode labels.

        Args:
            night: 1 by night, 0 by day, UNKNOWN.
            crowdedness: vehicles in the clip, or UNKNOWN.

        Raises:
            ValueError: a label is none of these.
        """
        if ((night < UNKNOWN) | (night > 1)).any():
            raise ValueError(f"night={night.tolist()}; use 0 (day), 1 (night) or {UNKNOWN} (unknown)")
        if (crowdedness < UNKNOWN).any():
            raise ValueError(f"crowdedness={crowdedness.tolist()}; use a number of vehicles or {UNKNOWN} (unknown)")
        hidden = functional.silu(self.crowded_in(_count_features(crowdedness)))
        return (self.night(night + 1) + self.crowded_out(hidden))[:, None]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> "SceneEncoder":
        """Read what `save` wrote."""
        encoder = cls(SceneConfig(**json.loads((folder / CONFIG).read_text())))
        encoder.load_state_dict(load_file(folder / WEIGHTS))
        return encoder


def _count_features(crowdedness: Int[Tensor, " b"]) -> Float[Tensor, "b 2"]:
    """Whether the count is known, and its logarithm: 3 against 6 vehicles matter as much as 10 against 20."""
    is_known = (crowdedness != UNKNOWN).float()
    return torch.stack([is_known, is_known * torch.log1p(crowdedness.clamp(min=0).float())], dim=1)
