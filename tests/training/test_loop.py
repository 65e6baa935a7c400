"""The loop: one result for every number of workers, restarts included; bad samples change nothing."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group

from pipelines.randomness import generator
from pipelines.shards import ClipRef
from training.config import OptimizerConfig, WatchConfig
from training.data import Order, Reader, Sample
from training.ema import MovingAverage
from training.loop import LoopConfig, Phase, Progress, StepResult, train
from training.reduction import Workers
from training.torch_engine import TorchEngine

Spawn = Callable[..., None]
CONFIG = LoopConfig(steps=12, batch_size=8, num_shards=4)
OPTIMIZER = OptimizerConfig(learning_rate=3e-2, clip_norm=0.5, warmup_steps=3, decay="cosine")


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    noise: Tensor

    def magnitude(self) -> Tensor:
        return self.inputs.abs().amax(1)

    def masked(self, keep: Tensor) -> "ToyBatch":
        return ToyBatch(torch.where(keep[:, None], self.inputs, 0), self.noise)


class ToySource:
    """Samples that are vectors drawn from their number; some may be spoilt."""

    digest = "toy"

    def __init__(self, size: int, spoilt: dict[str, float] | None = None) -> None:
        self.buckets = [{ClipRef(0, i // 5, i): f"s{i}" for i in range(size)}]
        self.spoilt = spoilt or {}

    def read(self, refs: Sequence[ClipRef]) -> list[Tensor]:
        items = [torch.randn(6, generator=generator("toy", ref.row)) for ref in refs]
        return [item * self.spoilt.get(f"s{ref.row}", 1.0) for ref, item in zip(refs, items, strict=True)]


def collate(samples: Sequence[Sample], items: Sequence[Tensor]) -> ToyBatch:
    noise = torch.stack([torch.randn(6, generator=generator(0, s.id, s.epoch)) for s in samples])
    return ToyBatch(torch.stack(list(items)), noise)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 6))

    def forward(self, batch: ToyBatch) -> Tensor:
        return (self.layers(batch.inputs + batch.noise) - batch.noise).square().mean(1)


class Run:
    """A run of the toy from its start, or from where another left off."""

    def __init__(self, source: ToySource, workers: Workers = Workers(), config: LoopConfig = CONFIG) -> None:  # noqa: B008
        self.network = Denoiser()
        self.engine = TorchEngine(self.network, dict(self.network.named_parameters()), OPTIMIZER)
        self.average = MovingAverage(0.9, self.engine.weights())
        self.progress = Progress()
        self.source, self.workers, self.config = source, workers, config

    def go(self, stop_after: int | None = None, **options: Any) -> list[StepResult]:
        order = Order(self.source.buckets, batch_size=self.config.batch_size, seed=4)
        reader = Reader(
            self.source,
            order,
            collate,
            shards=self.workers.leaves(self.config.num_shards),
            num_shards=self.config.num_shards,
            start=self.progress.step,
        )
        phase = Phase(name="toy", engine=self.engine, optimizer=OPTIMIZER, average=self.average)
        results = []
        for result in train([phase], reader, order.batch, self.workers, self.config, self.progress, **options):
            results.append(result)
            if stop_after == result.step:
                break
        reader.close()
        return results

    def tensors(self) -> dict[str, Tensor]:
        averages = {f"ema.{name}": value for name, value in self.average.tensors.items()}
        return {**self.engine.weights(), **self.engine.state().moments, **averages}


def losses(results: Sequence[StepResult]) -> list[float]:
    return [result.losses["toy"] for result in results]


def worker(rank: int, count: int, spoilt: dict[str, float], folder: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count)
    run = Run(ToySource(23, spoilt), Workers(rank=rank, count=count))
    results = run.go(wants_stop=lambda: rank == count - 1)
    assert all(result.stop for result in results)
    torch.save((losses(results), run.tensors(), dataclasses.asdict(run.progress)), f"{folder}/{rank}.pt")
    destroy_process_group()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("spoilt", [{}, {"s3": float("nan"), "s11": 1e5}])
def test_workers_get_the_bits_of_one(count: int, spoilt: dict[str, float], spawn: Spawn, tmp_path: Path) -> None:
    alone = Run(ToySource(23, spoilt))
    expected = losses(alone.go())
    spawn(worker, count, count, spoilt, str(tmp_path))
    for rank in range(count):
        actual, tensors, progress = torch.load(tmp_path / f"{rank}.pt")
        assert actual == expected
        assert progress == dataclasses.asdict(alone.progress)
        assert sorted(progress["quarantine"]) == sorted(spoilt)
        for name, value in alone.tensors().items():
            assert torch.equal(tensors[name], value), name


def test_training_lowers_the_loss() -> None:
    results = Run(ToySource(23), config=dataclasses.replace(CONFIG, steps=150)).go()
    assert sum(losses(results)[-10:]) < 0.7 * sum(losses(results)[:10])


def test_restart_from_saved_state_gives_the_same_bits() -> None:
    whole = Run(ToySource(23, {"s3": float("inf")}))
    expected = losses(whole.go())
    first = Run(ToySource(23, {"s3": float("inf")}))
    before = losses(first.go(stop_after=4))
    second = Run(first.source)
    second.network.load_state_dict(first.network.state_dict())
    second.engine = TorchEngine(
        second.network, dict(second.network.named_parameters()), OPTIMIZER, first.engine.state()
    )
    second.average = MovingAverage(0.9, first.average.tensors, first.average.updates)
    second.progress = Progress(**dataclasses.asdict(first.progress))
    assert before + losses(second.go()) == expected
    assert second.progress == whole.progress
    for name, value in whole.tensors().items():
        assert torch.equal(second.tensors()[name], value), name


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e4, -1e6])
def test_bad_sample_is_put_aside_in_its_step_and_changes_nothing(factor: float) -> None:
    spoilt = Run(ToySource(8, {"s5": factor}), config=dataclasses.replace(CONFIG, steps=1))
    (result,) = spoilt.go()
    assert list(result.put_aside) == ["s5"]
    # The same step on clean data with the sample's weight set to nothing from the start.
    clean = Run(ToySource(8), config=dataclasses.replace(CONFIG, steps=1))
    clean.progress.quarantine["s5"] = "told so"
    clean.go()
    for name, value in clean.tensors().items():
        assert torch.equal(spoilt.tensors()[name], value), name
    assert spoilt.progress.applied == 7


def test_outlying_loss_is_put_aside_once_the_mean_is_known() -> None:
    watch = WatchConfig(max_magnitude=1e30, max_loss_ratio=100)
    run = Run(ToySource(40, {"s39": 1e4}), config=dataclasses.replace(CONFIG, steps=20, watch=watch))
    order = Order(run.source.buckets, batch_size=8, seed=4)
    assert all(sample.id != "s39" for sample in order.batch(0)), "the mean must be known before the outlier comes"
    results = run.go()
    assert [name for result in results for name in result.put_aside] == ["s39"]
    assert "times the mean" in run.progress.quarantine["s39"]


def test_clean_run_puts_nothing_aside() -> None:
    run = Run(ToySource(64), config=dataclasses.replace(CONFIG, steps=300))
    run.go()
    assert run.progress.quarantine == {}
    assert run.progress.applied == 300 * 8


def test_run_stops_when_everything_is_bad() -> None:
    run = Run(
        ToySource(64, {f"s{i}": float("nan") for i in range(64)}),
        config=dataclasses.replace(CONFIG, watch=WatchConfig(patience=3)),
    )
    before = run.tensors()
    with pytest.raises(RuntimeError, match="in a row are bad"):
        run.go()
    for name, value in run.engine.weights().items():
        assert torch.equal(before[name], value), name


def test_ledger_tells_two_histories_apart() -> None:
    first, second = Run(ToySource(23)), Run(ToySource(23, {"s2": float("nan")}))
    first.go()
    second.go()
    assert first.progress.ledger != second.progress.ledger


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=6 does not divide into 4"):
        LoopConfig(steps=1, batch_size=6, num_shards=4)
