"""The gates of training that compare costs with the plain way of doing the same: diffusers, torch, stock DeepSpeed.

Times are CPU times of one thread, so that they do not depend on what else runs; bytes and arithmetic are counted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.checkpoint import WEIGHTS
from pipelines.models.autoencoder import encode_moments
from pipelines.models.conditioning import Conditions
from pipelines.models.lean_backbone import recompute_transformers
from pipelines.models.svd import video_unet_from_svd
from pipelines.models.video_unet import VideoUNet
from pipelines.presets import driving, tiny
from tests.benchmarks.training_gates import Row, spawn
from tests.benchmarks.training_networks import OPTIMIZER, Clips, Video, cpu_s, one_worker, stock_engine, trained
from tests.pipelines.models.peak_memory import PeakMemory
from training.config import TrainConfig, ZeroConfig
from training.ema import MovingAverage
from training.estimate import Meter, estimate
from training.loop import LoopConfig, Phase, Progress, train
from training.presets import make_preset
from training.reduction import Workers
from training.task import put_part
from training.torch_engine import OptimizerState, TorchEngine

ROOT = Path(__file__).resolve().parents[2]
RESTARTS = 5
"""Of each kind, in turn; their median counts."""


def t5(folder: Path, amount: int) -> list[Row]:
    """From the start of a worker's process to its first resumed step: ours, and stock with universal checkpoint.

    Ray's own part (it notices, it starts a process) is the same for both and left out.
    """
    seen: dict[str, list[float]] = {}
    for kind in ("save", "convert", *("ours", "stock") * RESTARTS):
        line = [sys.executable, str(ROOT / "tests/benchmarks/training_restart.py"), kind, str(folder)]
        finished = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        seen.setdefault(kind, []).append(json.loads(finished.stdout.strip().splitlines()[-1])["cpu_s"])
    typical = {kind: median(values) for kind, values in seen.items()}
    same, changed = typical["ours"] / typical["stock"], typical["ours"] / (typical["stock"] + typical["convert"])
    figures = (
        f"CPU s: ours {typical['ours']:.1f}, stock {typical['stock']:.1f}, its conversion {typical['convert']:.1f}"
    )
    return [
        Row("T5", f"restart at another worker count / stock, which converts ({figures})", changed, 1.0, 0.5),
        Row("T5", "restart at the same worker count / stock", same, 1.0, 0.5),
    ]


def write_weights(video: VideoUNet, folder: Path) -> None:
    save_file({name: value.contiguous() for name, value in video.temporal_state_dict().items()}, folder / WEIGHTS)


def t7(folder: Path, amount: int) -> list[Row]:
    """Adapter against two bytes a parameter; resume state against DeepSpeed's checkpoint of the same network."""
    model = driving()
    # Driving's U-Net at an eighth of its width: the share of temporal layers is about the original's.
    widths = tuple(max(32, channels // 8 // 32 * 32) for channels in model.unet["block_out_channels"])
    unet = {**model.unet, "block_out_channels": widths, "cross_attention_dim": 64}
    stages = {"keyframes": replace(model.stages["prediction"], temporal=tiny().stages["keyframes"].temporal)}
    config = replace(make_preset("tiny-keyframes"), precision="bf16", model=replace(model, unet=unet, stages=stages))
    network = Video(config)
    parameters = trained(network)
    count = sum(parameter.numel() for parameter in parameters.values())
    put_part(folder, "temporal", partial(write_weights, network.video), name="driving", record={})
    adapter = (folder / "temporal" / WEIGHTS).stat().st_size / (2 * count)
    state = {f"{name}.{kind}": parameter.detach() for name, parameter in parameters.items() for kind in "wmv"}
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "state.safetensors")
    own = (folder / "state.safetensors").stat().st_size
    engine = stock_engine(Video(config), bf16=True)
    batch = Clips(1, 2, (8, 16))
    batch.latents = batch.latents.bfloat16()
    engine.backward(engine(batch).mean())
    engine.step()
    engine.save_checkpoint(str(folder / "stock"), tag="s")
    stock = sum(path.stat().st_size for path in (folder / "stock").rglob("*") if path.is_file())
    return [
        Row("T7", "adapter file / 2 bytes a trained parameter", adapter, 1.05, 1.02),
        Row("T7", "resume state (weights, moments) / stock checkpoint", own / stock, 0.8, 0.7),
    ]


def load_worker(rank: int, count: int, place: str, saved: str | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE=str(count))
    from torch.distributed import destroy_process_group, init_process_group  # noqa: PLC0415

    from training.engine import DeepSpeedEngine  # noqa: PLC0415

    init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=count)
    network = nn.Sequential(*[nn.Linear(512, 512) for _ in range(12)])
    parameters = trained(network)

    def load() -> Any:
        state = OptimizerState(updates=1, moments=torch.load(saved)) if saved else None
        return DeepSpeedEngine(network, parameters, OPTIMIZER, ZeroConfig(stage=2), state)

    # Once for what any start costs.
    engine = load()
    if saved is None:
        engine.step(torch.ones(sum(p.numel() for p in parameters.values())), 1e-4)
        torch.save(engine.state().moments, f"{place}-{rank}.pt")
    else:
        Path(f"{place}-{rank}.json").write_text(json.dumps(min(cpu_s(load) for _ in range(3))))
    destroy_process_group()


def t8(folder: Path, amount: int) -> list[Row]:
    """Load the ZeRO-2 state of two workers at one and four, and what these saved themselves."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    # Before the fork, so that it is imported once.
    import training.engine  # noqa: F401, PLC0415

    for count in (1, 2, 4):
        spawn(load_worker, count, count, str(folder / f"by{count}"), None)
    ratios = []
    for count in (1, 4):
        seconds = []
        for saver in (2, count):
            place = folder / f"by{saver}-at{count}"
            spawn(load_worker, count, count, str(place), str(folder / f"by{saver}-0.pt"))
            seconds.append(min(json.loads((folder / f"{place.name}-{r}.json").read_text()) for r in range(count)))
        ratios.append(seconds[0] / seconds[1])
    what = "load at 1 and 4 workers what 2 saved / what they saved; no conversion process"
    return [Row("T8", what, max(ratios), 1.5, 1.2)]


def t10(folder: Path, amount: int) -> list[Row]:
    """A step of the loop with DeepSpeed ZeRO-2 against a bare torch loop; both of about a second."""
    one_worker()
    from training.engine import DeepSpeedEngine  # noqa: PLC0415

    config, shards, clips = make_preset("tiny-keyframes"), 2, 2
    torch.manual_seed(0)
    bare, ours = Video(config), Video(config)
    batches = [Clips(clips, 8, (8, 16)) for _ in range(shards)]
    optimizer = torch.optim.AdamW(trained(bare).values(), lr=1e-4)
    average = MovingAverage(0.99, dict(trained(bare)))

    def bare_step() -> None:
        for batch in batches:
            (bare(batch).sum() / (shards * clips)).backward()
        torch.nn.utils.clip_grad_norm_(trained(bare).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(trained(bare))

    engine = DeepSpeedEngine(ours, trained(ours), OPTIMIZER, ZeroConfig(stage=2))
    phase = Phase(name="video", engine=engine, optimizer=OPTIMIZER, average=MovingAverage(0.99, engine.weights()))
    loop = LoopConfig(steps=100, batch_size=shards * clips, num_shards=shards)
    reader = ((step, dict(enumerate(batches))) for step in range(100))
    from training.data import Sample  # noqa: PLC0415

    samples = [Sample(str(i), 0, None) for i in range(shards * clips)]  # type: ignore[arg-type]
    steps = train([phase], reader, lambda step: samples, Workers(), loop, Progress())  # type: ignore[arg-type]
    bare_step()
    next(steps)
    pairs = [(cpu_s(bare_step), cpu_s(lambda: next(steps))) for _ in range(6)]
    theirs, own = (min(values) for values in zip(*pairs, strict=True))
    return [Row("T10", f"step of loop and ZeRO-2 / bare torch, steps of {theirs:.1f} CPU s", own / theirs, 1.08, 1.05)]


def t11(folder: Path, amount: int) -> list[Row]:
    """Memory and arithmetic of a step against diffusers' class of the same layers, on the meta device."""
    size = (1, 16, 4, 32, 32)
    with torch.device("meta"):
        # Its mix factors come from a constructor that knows no device context.
        svd = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)).to("meta")
        noisy, image = torch.empty(size), torch.empty(size)
        text, time_ids, timestep = torch.empty(1, 1, 1024), torch.empty(1, 3), torch.empty(1)
        labels = torch.empty(1, 768)
        ours = video_unet_from_svd(svd)
    ours.freeze_spatial()
    for name, parameter in svd.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("temporal_", "time_mixer", "time_pos_embed")))
    both = torch.cat([noisy, image], dim=2)
    conditions = Conditions(text=text, context=image, class_labels=labels)

    def measure(network: nn.Module, predict: Callable[[], Tensor]) -> tuple[float, float]:
        with Meter() as meter:
            torch.autograd.grad(predict().square().mean(), list(trained(network).values()), allow_unused=True)
        return float(meter.peak), float(meter.flops)

    def predict_svd() -> Tensor:
        return svd(both, timestep, text, time_ids).sample

    plain = measure(svd, predict_svd)
    svd.train()
    svd.enable_gradient_checkpointing()
    checkpointed = measure(svd, predict_svd)
    recompute_transformers(ours.unet)
    own = measure(ours, lambda: ours(noisy, timestep, conditions))
    return [
        Row("T11", "peak of activations / diffusers' gradient checkpointing", own[0] / checkpointed[0], 1.0, 0.97),
        Row("T11", "arithmetic / the same", own[1] / checkpointed[1], 0.95, 0.90),
        Row("T11", "peak of activations / diffusers without checkpointing", own[0] / plain[0], 0.65, 0.60),
        Row("T11", "arithmetic / the same", own[1] / plain[1], 1.10, 1.08),
    ]


def t12(folder: Path, amount: int) -> list[Row]:
    """Samples a CPU second with cached latents against encoding in the loop, inverted so that less is better."""
    config = make_preset("tiny-keyframes")
    vae = AutoencoderKL(**config.model.autoencoder).requires_grad_(False)
    network = Video(config)
    engine = TorchEngine(network, trained(network), OPTIMIZER)
    batch = Clips(2, 8, (8, 16))
    frames = torch.rand(2, 8, 3, 64, 128)

    def step() -> None:
        engine.step(engine.gradient(network(batch).mean()), 1e-4)

    def encode() -> None:
        with torch.no_grad():
            encode_moments(vae, frames)

    step(), encode()
    steps, encodings = (min(cpu_s(call) for _ in range(4)) for call in (step, encode))
    gain = (steps + encodings) / steps
    what = f"1 / gain of cached latents, the gain being {gain:.2f}: autoencoder and U-Net of tiny"
    return [Row("T12", what, 1 / gain, 1 / 1.4, 1 / 1.6)]


def t14(folder: Path, amount: int) -> list[Row]:
    """Estimate against a real step: the most memory of tensors, and the time at a rate measured on another run."""

    def run(frames: int, clips: int) -> tuple[float, float, TrainConfig]:
        config = replace(make_preset("tiny-keyframes"), batch_size=2 * clips)
        config = replace(config, data=replace(config.data, num_frames=frames))
        network = Video(config)
        engine = TorchEngine(network, trained(network), OPTIMIZER)
        average = MovingAverage(0.99, engine.weights())
        batches = [Clips(clips, frames, (8, 16)) for _ in range(2)]

        def step() -> None:
            total = engine.gradient(network(batches[0]).mean())
            total.add_(engine.gradient(network(batches[1]).mean()))
            engine.step(total, 1e-4)
            average.update(engine.weights())

        step()
        seconds = min(cpu_s(step) for _ in range(4))
        state = sum(p.nbytes for p in network.parameters()) + sum(t.nbytes for t in average.tensors.values())
        state += sum(t.nbytes for t in engine.state().moments.values())
        with PeakMemory() as memory:
            step()
        return seconds, float(memory.peak + state), config

    seconds, _, config = run(5, 3)
    rate = estimate(config, workers=1, flops_per_s=1.0).step_s / seconds
    seconds, size, config = run(8, 3)
    found = estimate(config, workers=1, flops_per_s=rate)
    memory = abs((found.state_bytes[0] + found.activation_bytes) / size - 1)
    return [
        Row("T14", f"memory, estimate against {size / 2**20:.0f} MiB counted: error", memory, 0.2, 0.1),
        Row("T14", f"step, estimate against {seconds:.2f} CPU s: error", abs(found.step_s / seconds - 1), 0.3, 0.2),
    ]
