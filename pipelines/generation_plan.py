"""What a generation will do, known from settings alone: the order of the stages, their lengths and their work."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.conditions import Wish, check_wish
from pipelines.config import StageConfig, StageName
from pipelines.diffusion.windows import interpolated_length, plan_rollout, window_starts
from pipelines.models.latent_space import spatial_factor
from pipelines.networks import UPSAMPLER, Networks
from pipelines.presets import PRESETS
from pipelines.stages import Sampling
from pipelines.tensors import VideoFrames

Step = Literal["image", "keyframes", "prediction", "interpolation", "upsampler"]
Start = Literal["picture", "boxes", "image", "keyframes", "prediction"]

PASSES = 2
SEGMENT_FRAMES, SEGMENT_OVERLAP = 26, 2
"""Frames that the upsampler keeps in memory at once: four windows of 8, each sharing 2 with the next."""
GAPS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to make.

    Attributes:
        wish: what the clip shows.
        picture: a first frame to go on from (1 H W 3).
        steps: stages to run; None runs all that the checkpoint has and the clip needs.
        num_frames: frames of the finished clip; default what the first stage makes at once, interpolated.
        minutes: length instead of num_frames.
        size: height and width before upsampling; default those trained on.
        num_steps: denoising steps of every stage; default each stage's own.
        guidance_scale: of the stages before interpolation; default each stage's own.
        guidance_last: of those stages, at the last frame of a window; default the same at every frame.
        guidance_interval: noise (sigma / alpha) between which those stages are guided; default at every step.
        paper_mode: sample as the paper does.
    """

    wish: Wish = field(default_factory=Wish)
    picture: VideoFrames | None = None
    steps: tuple[Step, ...] | None = None
    num_frames: int | None = None
    minutes: float | None = None
    size: tuple[int, int] | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_last: float | None = None
    guidance_interval: tuple[float, float] | None = None
    paper_mode: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of one clip.

    Attributes:
        start: what makes the first frames.
        num_keyframes: frames before interpolation.
        started_frames: those of them made before the roll-out.
        passes: of interpolation.
        num_frames: of the finished clip.
        fps: of the finished clip.
        rates: frame rate that each pass of interpolation reaches.
        upsamples: whether the upsampler runs.
        size: height and width before upsampling.
    """

    start: Start
    num_keyframes: int
    started_frames: int
    passes: int
    num_frames: int
    fps: float
    rates: tuple[float, ...]
    upsamples: bool
    size: tuple[int, int]

    @property
    def rolls_out(self) -> bool:
        """Whether prediction goes on from the first frames."""
        return self.num_keyframes > self.started_frames


def make_plan(networks: Networks, request: Request) -> Plan:
    """Decide what runs.

    Raises:
        ValueError: if the request does not fit the checkpoint.
    """
    check_wish(networks, request.wish)
    config, start, runs = networks.first_config(), _start(networks, request), _runs(networks, request)
    if config.temporal.svd_eps:
        raise ValueError(
            f"{networks.manifest.name!r} has the layout of Stable Video Diffusion, whose picture embedding and motion "
            "number are not made here; `python -m pipelines export` gives the folder that diffusers samples"
        )
    passes = PASSES if runs("interpolation") else 0
    rates = interpolation_rates(config.fps, networks.stage_config("interpolation") if passes else None)
    fps = rates[-1] if rates else config.fps
    num_frames = _num_frames(request, interpolated_length(config.num_frames, passes), fps)
    num_keyframes = -(-(num_frames - 1) // 4**passes) + 1
    if num_keyframes == 1:
        passes, rates = 0, ()
    started = num_keyframes
    if start in ("picture", "boxes", "image"):
        started = 1
        if num_keyframes > 1 and not runs("prediction"):
            raise ValueError(
                f"{networks.manifest.name!r} cannot go on from a first frame: that needs the stage 'prediction'; "
                f"it has {', '.join(networks.stage_names())} (or ask for 1 frame)"
            )
    elif start == "keyframes" and runs("prediction"):
        started = min(num_keyframes, config.num_frames)
    size = request.size or (config.height, config.width)
    networks.latent_shape(config, num_keyframes, size=size)
    return Plan(
        start=start,
        num_keyframes=num_keyframes,
        started_frames=started,
        passes=passes,
        num_frames=num_frames,
        fps=fps,
        rates=rates,
        upsamples=runs("upsampler"),
        size=size,
    )


def interpolation_rates(fps: float, config: StageConfig | None) -> tuple[float, ...]:
    """Frame rate that each pass reaches: four times the one before, or the trained rate next to that.

    The paper trains key frames at 2 fps and interpolates them as if they had 1.875, to 7.5 and 30 (table 6).
    """
    rates = []
    for _ in range(PASSES if config is not None else 0):
        fps *= 4
        assert config is not None
        near = [rate for rate in (config.fps / 4, config.fps) if abs(rate - fps) < 0.1 * fps]
        fps = near[0] if near else fps
        rates.append(fps)
    return tuple(rates)


def sampling_of(name: str, config: StageConfig, stage: StageName, request: Request, seed: int) -> Sampling:
    """How a stage samples: as the checkpoint says, as the paper did, or as the request says.

    Args:
        name: of the system.
        config: of the stage.
        stage: its name.
        request: what may change it.
        seed: of the clip.
    """
    sampler, scale = config.sampler, config.guidance_scale
    if request.paper_mode:
        paper = paper_config(name, stage)
        sampler, scale = paper.sampler, paper.guidance_scale
        if config.noise.zero_terminal_snr:
            # Such a model must start at the last timestep, which the paper's spacing leaves out.
            sampler = replace(sampler, spacing="trailing", steps_offset=0)
    if request.num_steps is not None:
        sampler = replace(sampler, num_steps=request.num_steps)
    if stage not in ("keyframes", "prediction"):
        return Sampling(sampler=sampler, guidance_scale=scale, seed=seed)
    return Sampling(
        sampler=sampler,
        guidance_scale=scale if request.guidance_scale is None else request.guidance_scale,
        guidance_last=request.guidance_last,
        guidance_interval=request.guidance_interval,
        seed=seed,
    )


def paper_config(name: str, stage: StageName) -> StageConfig:
    """Settings of a stage in the paper's own system.

    Raises:
        ValueError: if a system is not the paper's, or the paper has no such stage.
    """
    paper = f"{name.removesuffix('-paper')}-paper"
    if paper not in PRESETS:
        systems = [known.removesuffix("-paper") for known in PRESETS if known.endswith("-paper")]
        raise ValueError(f"paper mode: {name!r} is no system of the paper; it has {', '.join(systems)}")
    preset = PRESETS[paper]()
    stages = dict(preset.stages)
    if preset.upsampler is not None:
        stages["upsampler"] = preset.upsampler.stage
    if stage not in stages:
        raise ValueError(f"paper mode: {name!r} has no {stage} in the paper; it has {', '.join(stages)}")
    return stages[stage]


def work(networks: Networks, request: Request, plan: Plan) -> dict[str, float]:
    """Work of every step of each stage, and of each decoded frame, in parts of one total; for progress and its end.

    A step costs as its latent positions times the weights of its networks, twice with guidance.
    """
    name, (height, width) = networks.manifest.name, plan.size
    factor = spatial_factor(networks.autoencoder)
    area = height * width / factor**2

    def denoising(stage: StageName, frames: int, positions: float, parts: str) -> float:
        sampling = sampling_of(name, networks.stage_config(stage), stage, request, 0)
        sides = 1 if sampling.guidance_scale in (0.0, 1.0) and sampling.guidance_last is None else 2
        return sampling.sampler.num_steps * frames * positions * sides * networks.weight_bytes(parts)

    first: StageName = "keyframes" if "keyframes" in networks.stage_names() else "prediction"
    amounts: dict[str, float] = {}
    if plan.start in ("boxes", "image"):
        amounts["image"] = denoising(first, 1, area, "backbone/unet")
    elif plan.start == "keyframes":
        amounts["keyframes"] = denoising("keyframes", plan.started_frames, area, "backbone/unet")
    if plan.rolls_out or plan.start == "prediction":
        config = networks.stage_config("prediction")
        frames = config.num_frames * len(plan_rollout(plan.num_keyframes, config.num_frames, 1))
        amounts["prediction"] = denoising("prediction", frames, area, "backbone/unet")
    if plan.passes:
        gaps = sum((plan.num_keyframes - 1) * 4**done for done in range(plan.passes))
        amounts["interpolation"] = denoising("interpolation", 5 * gaps, area, "backbone/unet")
    # A decoder works at the size of the picture with few channels: about ten times a latent's share of its weights.
    amounts["decode"] = 10 * plan.num_frames * area * networks.weight_bytes("backbone/vae")
    if plan.upsamples:
        starts = window_starts(plan.num_frames, SEGMENT_FRAMES, SEGMENT_OVERLAP)
        large = float(height * width) * (1 if networks.has(f"{UPSAMPLER}/vae") else 16)
        amounts["upsample"] = denoising("upsampler", SEGMENT_FRAMES * len(starts), large, f"{UPSAMPLER}/unet")
    total = sum(amounts.values())
    return {stage: amount / total for stage, amount in amounts.items()}


def _start(networks: Networks, request: Request) -> Start:
    held, steps = networks.stage_names(), request.steps
    missing = [step for step in steps or () if step != "image" and step not in held]
    if missing:
        raise ValueError(f"{networks.manifest.name!r} has no stage {missing[0]!r}; it has image, {', '.join(held)}")
    if request.picture is not None and request.wish.boxes is not None:
        raise ValueError("a picture and boxes both decide the first frame; give one of them")
    if request.picture is not None:
        return "picture"
    if request.wish.boxes is not None:
        return "boxes"
    if steps is not None:
        starts: tuple[Start, ...] = ("image", "keyframes", "prediction")
        first = next((start for start in starts if start in steps), None)
        if first is None:
            raise ValueError(f"stages {', '.join(steps)} make no first frame; add one of {', '.join(starts)}")
        return first
    is_text = networks.condition_kind == "text"
    if "prediction" in held and ((is_text and not request.paper_mode) or (request.paper_mode and not is_text)):
        return "image"
    return "keyframes" if "keyframes" in held else "prediction"


def _runs(networks: Networks, request: Request) -> Callable[[Step], bool]:
    held = networks.stage_names()
    return lambda step: step in held and (request.steps is None or step in request.steps)


def _num_frames(request: Request, default: int, fps: float) -> int:
    if request.num_frames is not None and request.minutes is not None:
        raise ValueError(f"num_frames={request.num_frames} and minutes={request.minutes}; give one of them")
    if request.minutes is not None and not 0 < request.minutes < math.inf:
        raise ValueError(f"minutes={request.minutes}; give a positive number")
    if request.num_frames is not None and request.num_frames < 1:
        raise ValueError(f"num_frames={request.num_frames}; give 1 or more")
    if request.minutes is not None:
        return max(1, round(request.minutes * 60 * fps))
    return request.num_frames or default
