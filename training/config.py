"""What a training run is made of: frozen dataclasses, one per concern, from which the command line is made."""

from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from pipelines.config import ModelPreset, StageName
from pipelines.configs import to_json


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


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a sample is bad and when a run gives up.

    Attributes:
        max_magnitude: largest absolute value an input may have; latents have about unit variance, pixels lie in
            [-1, 1].
        max_loss_ratio: largest ratio of a sample's loss to the running mean of losses.
        patience: how many new bad samples or shards in a row are put aside before the run stops.
    """

    max_magnitude: float = 1e3
    max_loss_ratio: float = 1e4
    patience: int = 8


WITHOUT_EFFECT = ("checkpoints", "validation", "cluster", "track", "log_every")
"""Settings of a run that do not touch its numbers."""

LOW_RANK = ("image", "keyframes", "prediction", "interpolation")
"""Objectives whose image network can get low-rank changes."""

Objective = Literal[
    "autoencoder", "image", "keyframes", "prediction", "interpolation", "decoder", "upsampler-image", "upsampler"
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What of the data a run uses, and how.

    Attributes:
        height, width: size of the frames.
        further_sizes: other sizes (height, width) trained on beside it; a batch holds clips of one size and rate.
        num_frames: frames of a training clip; 1 for images.
        fps: frame rates trained on; empty takes all that the data has.
        crop: side of the square crops of pixel training; None takes whole frames.
        label_dropout: probability that a clip's labels are hidden.
        boxes: condition the image model on vehicle boxes instead of the system's own condition.
        image_share: probability that a clip's frames are trained as separate images.
        context_noise: highest noise level put on given frames; None leaves them clean.
        validation_percent: share of the source videos kept out of training.
    """

    height: int
    width: int
    num_frames: int
    fps: tuple[float, ...] = ()
    crop: int | None = None
    label_dropout: float = 0.1
    boxes: bool = False
    image_share: float = 0.0
    context_noise: int | None = None
    validation_percent: int = 0
    further_sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.height < 1 or self.width < 1:
            raise ValueError(f"{self.num_frames} frames of {self.height}x{self.width}; all must be at least 1")
        for name in ("label_dropout", "image_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is no probability; use 0 to 1")

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """All sizes (height, width) trained on."""
        return {(self.height, self.width), *(self.further_sizes or ())}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where a run runs. Nothing here changes the numbers, except `exact`.

    Attributes:
        launcher: "process" trains here and now; "ray" starts workers with Ray Train.
        min_workers, max_workers: range of workers; with Ray the number may change while the run goes on.
        engine: "torch" keeps all state on every worker; "deepspeed" spreads it as `zero` says.
        zero: how DeepSpeed spreads state.
        cpus_per_worker, gpus_per_worker: what Ray reserves for a worker.
        max_failures: how often Ray restarts lost workers; -1 without limit.
        resize_interval_s: how often Ray looks whether there is room for more workers.
        price_per_hour: of one worker, in any currency; for the estimate and the cost so far.
        exact: sum gradients in the fixed tree; False takes the backend's all-reduce (equal to about 1e-6).
    """

    launcher: Literal["process", "ray"] = "process"
    min_workers: int = 1
    max_workers: int = 1
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_failures: int = 8
    resize_interval_s: float = 60.0
    price_per_hour: float = 0.0
    exact: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"workers {self.min_workers} to {self.max_workers}; use 1 <= min_workers <= max_workers")
        if self.launcher == "process" and self.max_workers > 1:
            raise ValueError(f"max_workers={self.max_workers} in one process; use launcher='ray' for more than one")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What a run shows of itself.

    Attributes:
        every_steps: steps between validations; 0 turns them off.
        batches: global batches of held-out (or, without any, training) samples whose loss is taken, with fixed noise.
        clips: sample clips made and stored as a video.
    """

    every_steps: int = 200
    batches: int = 1
    clips: int = 2


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run; presets are functions that return one.

    Attributes:
        name: of the preset.
        objective: what is trained.
        model: the system it belongs to.
        steps: last step.
        batch_size: samples of a global batch, whatever the number of workers.
        virtual_shards: into how many parts a batch is cut; the largest number of workers.
        seed: of everything random.
        optimizer: of the trained network.
        discriminator: of the decoder's discriminator; None trains the decoder without one.
        perceptual: network whose distance joins the decoder's reconstruction loss (`make weights` fetches it); None
            leaves it at the edges of the picture, which need no network.
        ema_decay: of the moving average that is exported.
        data: what it trains on.
        initialise_from: stage of the checkpoint whose temporal weights a video model starts from.
        train_all: train the image network of a video model too (the paper's text-to-video interpolation).
        lora_rank: train a change of this rank in the attention of the frozen image network; None trains none.
        precision: "bf16" keeps frozen weights in bfloat16 and computes in it; trained weights stay in float32.
        recompute: compute the frozen transformers of a video model again in the backward pass: less memory, 8 % more
            arithmetic.
        track: record the run in MLflow.
        log_every: steps between two points of the curves.
        threads: CPU threads of a worker; part of the arithmetic, so it does not follow the machine.
        watch: when a sample is bad.
        checkpoints: when the run saves itself.
        validation: when it shows itself.
        cluster: where it runs.
    """

    name: str
    objective: Objective
    model: tyro.conf.Fixed[ModelPreset]
    steps: int
    batch_size: int
    virtual_shards: int = 4
    seed: int = 0
    optimizer: OptimizerConfig
    discriminator: OptimizerConfig | None = None
    perceptual: Literal["stlpips-alex", "stlpips-vgg"] | None = None
    ema_decay: float = 0.9999
    data: DataConfig
    initialise_from: StageName | None = None
    train_all: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    lora_rank: int | None = None
    track: bool = True
    log_every: int = 10
    threads: int = 1
    watch: WatchConfig = field(default_factory=WatchConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.batch_size % self.virtual_shards:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into virtual_shards={self.virtual_shards}; "
                f"use a multiple of {self.virtual_shards}"
            )
        if self.cluster.max_workers > self.virtual_shards:
            raise ValueError(
                f"max_workers={self.cluster.max_workers} exceeds virtual_shards={self.virtual_shards}; "
                "use fewer workers or more virtual shards"
            )
        least = {"prediction": 3, "interpolation": 3}.get(self.objective, 1)
        if self.data.num_frames < least:
            raise ValueError(f"num_frames={self.data.num_frames} leaves {self.objective} none to learn; use {least} up")
        if self.lora_rank is not None and (self.lora_rank < 1 or self.train_all or self.objective not in LOW_RANK):
            allowed = f"use 1 or more, without train_all, for {', '.join(LOW_RANK)}"
            raise ValueError(f"lora_rank={self.lora_rank} does not go with {self.objective!r}; {allowed}")

    @property
    def is_partitioned(self) -> bool:
        """Whether no worker holds whole parameters (ZeRO-3)."""
        return self.cluster.engine == "deepspeed" and self.cluster.zero.stage == 3

    @property
    def numerics(self) -> dict[str, Any]:
        """What decides the numbers of a run: all but where it runs and when it saves and shows itself."""
        # Where nothing is scheduled to the end, more steps leave those before as they were.
        may_go_on = all(o is None or o.decay == "constant" for o in (self.optimizer, self.discriminator))
        without = (*WITHOUT_EFFECT, *(["steps"] if may_go_on else []))
        return {name: value for name, value in to_json(self).items() if name not in without}
