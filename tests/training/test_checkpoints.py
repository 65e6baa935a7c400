"""Checkpoints: what is committed comes back, anything else is refused with its cause."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoints import Checkpoint, CheckpointStore, read_manifest, refuse_other_run
from training.config import CheckpointConfig

IDENTITY = {"config": {"batch_size": 4, "optimizer": {"learning_rate": 1e-4}}, "shards": "abc", "backbone": "def"}


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {name: {"a.b": torch.randn(3, 5, generator=generator)} for name in ("weights", "moments", "ema")}


def store(folder: Path, **config: Any) -> CheckpointStore:
    return CheckpointStore(str(folder), CheckpointConfig(**config))


def save(target: CheckpointStore, step: int, metric: float | None = None) -> None:
    target.save(step, tensors(step), identity=IDENTITY, progress={"step": step, "ledger": "x"}, metric=metric)
    target.wait()


def newest(folder: Path) -> Checkpoint:
    found = store(folder).newest()
    assert found is not None
    return found


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").iterdir())


def test_newest_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert store(tmp_path).newest() is None
    target = store(tmp_path)
    for step in (5, 10):
        save(target, step)
    found = newest(tmp_path)
    assert (found.step, found.identity, found.progress) == (10, IDENTITY, {"step": 10, "ledger": "x"})
    for name, values in found.load().items():
        assert torch.equal(values["a.b"], tensors(10)[name]["a.b"])


def test_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    target = store(tmp_path)
    save(target, 5)
    save(target, 10)
    folder = Path(newest(tmp_path).uri)
    (folder / "manifest.json").unlink()
    assert newest(tmp_path).step == 5


def test_retention_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    target = store(tmp_path, keep_last=2, keep_best=True)
    for step, metric in ((1, 0.9), (2, 0.2), (3, 0.5), (4, 0.4), (5, 0.3)):
        save(target, step, metric)
    assert steps(tmp_path) == [2, 4, 5]


def test_retention_keeps_one_per_interval(tmp_path: Path) -> None:
    target = store(tmp_path, keep_last=1, keep_every_hours=1000.0)
    for step in (1, 2, 3, 4):
        save(target, step)
    assert steps(tmp_path) == [1, 4]


Change = Callable[[dict[str, Any]], object]


def in_manifest(change: Change, folder: Path) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def in_file(name: str, change: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def flip_bit(place: float, data: bytes) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def move(name: str, onto: str, folder: Path) -> None:
    os.replace(folder / name, folder / onto)


def edit_tensor(name: str, folder: Path) -> None:
    values = load_file(folder / name)
    values["a.b"][0, 0] += 1e-6
    save_file(values, folder / name)


def take_other_manifest(folder: Path) -> None:
    (other,) = (path for path in folder.parent.iterdir() if path != folder)
    (folder / "manifest.json").write_bytes((other / "manifest.json").read_bytes())


def set_to_11(key: str, values: dict[str, Any]) -> None:
    values[key] = 11


def drop(key: str, values: dict[str, Any]) -> None:
    del values[key]


NAMES = ("weights.safetensors", "moments.safetensors", "ema.safetensors")
MUTATIONS: dict[str, Callable[[Path], None]] = {
    **{f"{n} missing": partial(remove, n) for n in NAMES},
    **{f"{n} empty": partial(in_file, n, lambda data: b"") for n in NAMES},
    **{f"{n} truncated": partial(in_file, n, lambda data: data[:60]) for n in NAMES},
    **{f"{n} padded": partial(in_file, n, lambda data: data + b"0") for n in NAMES},
    **{f"{n} edited": partial(edit_tensor, n) for n in NAMES},
    **{
        f"{n} bit flipped at {place}": partial(in_file, n, partial(flip_bit, place))
        for n in NAMES
        for place in (0.0, 0.3, 0.6, 0.99)
    },
    **{f"{NAMES[i]} in place of {NAMES[i - 1]}": partial(move, NAMES[i], NAMES[i - 1]) for i in range(3)},
    **{
        f"manifest's {key} changed": partial(in_manifest, partial(set_to_11, key))
        for key in ("step", "saved_at", "metric", "layout", "seal")
    },
    **{
        f"manifest's {key} removed": partial(in_manifest, partial(drop, key))
        for key in ("step", "identity", "progress", "files", "seal", "layout")
    },
    "manifest's progress edited": partial(in_manifest, lambda v: v["progress"].update(step=3)),
    "manifest's file list shortened": partial(in_manifest, lambda v: v["files"].popitem()),
    "manifest's digest changed": partial(in_manifest, lambda v: v["files"].update({NAMES[2]: "0" * 64})),
    "manifest empty": partial(in_file, "manifest.json", lambda data: b""),
    "manifest truncated": partial(in_file, "manifest.json", lambda data: data[:40]),
    "manifest a list": partial(in_file, "manifest.json", lambda data: b"[]"),
    "manifest of another checkpoint": take_other_manifest,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_checkpoint_is_refused_with_its_cause(name: str, tmp_path: Path) -> None:
    target = store(tmp_path)
    save(target, 5)
    save(target, 10)
    folder = Path(newest(tmp_path).uri)
    MUTATIONS[name](folder)
    with pytest.raises(ValueError, match=r"delete this checkpoint's folder to go on|layout") as caught:
        newest(tmp_path).load()
    assert folder.name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"shards": "other"}, "shards='abc', this run has 'other'"),
        ({"backbone": None}, "backbone='def'"),
        ({"config": {"batch_size": 8, "optimizer": {"learning_rate": 1e-4}}}, "config.batch_size=4"),
        ({"config": {"batch_size": 4, "optimizer": {"learning_rate": 2e-4}}}, "config.optimizer.learning_rate=0.0001"),
        ({"config": {"batch_size": 4, "optimizer": {"learning_rate": 1e-4}, "new": 1}}, "config.new=None"),
    ],
)
def test_checkpoint_of_another_run_is_refused(change: dict[str, Any], cause: str, tmp_path: Path) -> None:
    save(store(tmp_path), 5)
    found = newest(tmp_path)
    refuse_other_run(found.identity, IDENTITY, found.uri)
    with pytest.raises(ValueError, match=cause.replace(".", r"\.")):
        refuse_other_run(found.identity, {**IDENTITY, **change}, found.uri)


def test_failed_write_is_told_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    save(store(tmp_path), 5)
    blocked = CheckpointStore(str(tmp_path / "file"), CheckpointConfig())
    (tmp_path / "file").write_text("a file where a folder is needed")
    blocked.save(6, tensors(6), identity=IDENTITY, progress={})
    with pytest.raises(OSError, match="file"):
        blocked.wait()
    assert newest(tmp_path).step == 5


def test_save_copies_progress_and_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    target = store(tmp_path)
    progress = {"step": 5}
    target.save(5, tensors(5), identity=IDENTITY, progress=progress)
    progress["step"] = 6
    target.wait()
    assert newest(tmp_path).progress == {"step": 5}


def test_manifest_of_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        read_manifest(str(tmp_path))
