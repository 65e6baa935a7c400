"""Engines: every ZeRO stage and worker count takes the same steps as plain torch, and loads any other's state."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group

from training.config import OptimizerConfig, ZeroConfig
from training.reduction import Workers, combine, local_sums
from training.torch_engine import Engine, OptimizerState, TorchEngine

Spawn = Callable[..., None]

SHARDS = 4
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01)


class Toy(nn.Module):
    """Frozen and trained layers in turn, sizes that no worker count divides, and a parameter no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
        self.middle = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 7, 3, padding=1))
        self.last = nn.Conv2d(7, 3, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, images: Tensor) -> Tensor:
        return (self.last(self.middle(self.first(images))) - images).square().mean((1, 2, 3))


def images(step: int, shard: int) -> Tensor:
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(100 * step + shard))


def train(engine: Engine, steps: range, workers: Workers) -> list[Tensor]:
    losses = []
    for step in steps:

        def leaf(shard: int, step: int = step) -> Tensor:
            loss = engine.network(images(step, shard)).sum() / 8
            losses.append(loss.detach())
            return engine.gradient(loss)

        total = combine(local_sums(leaf, SHARDS, workers), SHARDS, workers)
        engine.step(total, learning_rate=1e-2 / (1 + step))
    return losses


def snapshot(engine: Engine) -> dict[str, Tensor]:
    state = engine.state()
    return {
        **{f"weight.{name}": value.clone() for name, value in engine.weights().items()},
        **state.moments,
        "updates": torch.tensor(state.updates),
    }


def load(network: nn.Module, saved: Mapping[str, Tensor]) -> OptimizerState:
    weights = {name.removeprefix("weight."): value for name, value in saved.items() if name.startswith("weight.")}
    network.load_state_dict(weights, strict=False)
    moments = {name: value for name, value in saved.items() if name.startswith("exp_avg")}
    return OptimizerState(updates=int(saved["updates"]), moments=moments)


def torch_reference(first: int, last: int, saved: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    network = Toy()
    state = load(network, saved) if saved else None
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    engine = TorchEngine(network, trained, OPTIMIZER, state)
    train(engine, range(first, last), Workers())
    return snapshot(engine)


def deepspeed_worker(rank: int, count: int, zero: ZeroConfig, steps: range, folder: str, saved: Any) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/group{steps.start}", rank=rank, world_size=count)
    from training.engine import DeepSpeedEngine  # noqa: PLC0415 - importing it takes seconds in the parent

    network = Toy()
    state = load(network, torch.load(saved)) if saved else None
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    engine = DeepSpeedEngine(network, trained, OPTIMIZER, zero, state)
    train(engine, steps, Workers(rank=rank, count=count))
    torch.save(snapshot(engine), f"{folder}/{steps.stop}-{rank}.pt")
    destroy_process_group()


def run_deepspeed(
    spawn: Spawn, zero: ZeroConfig, count: int, steps: range, folder: Path, saved: Path | None = None
) -> dict[str, Tensor]:
    import training.engine  # noqa: F401, PLC0415 - seconds, once here instead of in each worker

    spawn(deepspeed_worker, count, count, zero, steps, str(folder), saved)
    results = [torch.load(folder / f"{steps.stop}-{rank}.pt") for rank in range(count)]
    for result in results[1:]:
        assert_same(result, results[0])
    return results[0]


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stage_takes_the_steps_of_plain_torch(stage: Any, count: int, tmp_path: Path, spawn: Spawn) -> None:
    actual = run_deepspeed(spawn, ZeroConfig(stage=stage), count, range(5), tmp_path)
    assert_same(actual, torch_reference(0, 5))
    assert torch.equal(actual["weight.unused"], torch_reference(0, 5)["weight.unused"])


@pytest.mark.slow
def test_three_workers_take_the_steps_of_one(tmp_path: Path, spawn: Spawn) -> None:
    assert_same(run_deepspeed(spawn, ZeroConfig(stage=2), 3, range(4), tmp_path), torch_reference(0, 4))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_state_in_cpu_memory_takes_the_same_steps(stage: Any, tmp_path: Path, spawn: Spawn) -> None:
    zero = ZeroConfig(stage=stage, offload="cpu")
    assert_same(run_deepspeed(spawn, zero, 2, range(4), tmp_path), torch_reference(0, 4))


@pytest.mark.slow
def test_state_moves_between_stages_and_worker_counts_without_conversion(tmp_path: Path, spawn: Spawn) -> None:
    run_deepspeed(spawn, ZeroConfig(stage=2), 2, range(0, 3), tmp_path)
    run_deepspeed(spawn, ZeroConfig(stage=3), 4, range(3, 5), tmp_path, tmp_path / "3-0.pt")
    run_deepspeed(spawn, ZeroConfig(stage=0), 1, range(5, 6), tmp_path, tmp_path / "5-0.pt")
    run_deepspeed(spawn, ZeroConfig(stage=1), 2, range(6, 8), tmp_path, tmp_path / "6-0.pt")
    saved = torch.load(tmp_path / "8-0.pt")
    assert_same(torch_reference(8, 10, saved), torch_reference(0, 10))


def test_torch_engine_resumes_with_the_same_bits() -> None:
    assert_same(torch_reference(2, 5, torch_reference(0, 2)), torch_reference(0, 5))


def test_torch_engine_step_equals_backward_and_adamw() -> None:
    network = Toy()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad and name != "unused"}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.01)
    for step in range(3):
        for shard in range(SHARDS):
            (network(images(step, shard)).sum() / 8).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        optimizer.zero_grad()
    ours = torch_reference(0, 3)
    for name, parameter in trained.items():
        torch.testing.assert_close(ours[f"weight.{name}"], parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"stage": 0, "offload": "cpu"}, {"stage": 2, "offload": "nvme"}, {"stage": 1, "offload_parameters": True}]
)
def test_impossible_offload_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stage"):
        ZeroConfig(**wrong)
