"""What a training run is made of: frozen dataclasses, one per concern, from which the command line is made."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Attributes:
        learning_rate: highest learning rate.
        betas: decay of AdamW's two averages.
        epsilon: AdamW's epsilon.
        weight_decay: decoupled weight decay.
        clip_norm: largest norm of the whole gradient; 0 turns clipping off.
        warmup_steps: steps over which the rate rises linearly from 0.
        decay: rate after warm-up: "constant", "cosine" or "linear", the latter two down to final_share at the end.
        final_share: share of learning_rate left at the last step.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final_share: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive, such as 1e-4")
        if self.clip_norm < 0 or self.warmup_steps < 0:
            raise ValueError(f"clip_norm={self.clip_norm}, warmup_steps={self.warmup_steps}; neither may be negative")


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """How DeepSpeed spreads state over the workers.

    Attributes:
        stage: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters.
        offload: where the optimizer state lies: on the device, in CPU memory or on NVMe (stage 3).
        nvme_path: folder on the NVMe drive, for offload="nvme".
        offload_parameters: keep partitioned parameters in CPU memory (stage 3).
    """

    stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None
    offload_parameters: bool = False

    def __post_init__(self) -> None:
        if self.offload != "none" and self.stage == 0:
            raise ValueError(f"offload={self.offload!r} needs a partitioned optimizer; use stage 1, 2 or 3")
        if self.offload == "nvme" and (self.stage != 3 or not self.nvme_path):
            raise ValueError(f"offload='nvme' needs stage 3 and nvme_path; got stage {self.stage}, {self.nvme_path!r}")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters needs stage 3, which partitions them; got stage {self.stage}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves itself, and what it keeps.

    Attributes:
        every_steps: steps between two checkpoints.
        keep_last: how many of the newest are kept.
        keep_every_hours: further keep one for each so many hours; None keeps no others.
        keep_best: further keep the one with the lowest validation loss.
    """

    every_steps: int = 100
    keep_last: int = 2
    keep_every_hours: float | None = None
    keep_best: bool = False

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep_last < 1:
            raise ValueError(f"every_steps={self.every_steps}, keep_last={self.keep_last}; both must be at least 1")
