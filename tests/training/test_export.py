"""What a finished run leaves: parts of a checkpoint folder, and a registered model version."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.checkpoint import read_manifest, verify
from pipelines.models.lora import fuse_lora
from pipelines.networks import Networks
from tests.training.runs import go, tensors
from training.config import TrainConfig
from training.export import export
from training.recorder import register

MakeConfig = Callable[..., TrainConfig]
System = Any


def test_low_rank_change_of_the_image_network_opens_in_its_backbone(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("image", lora_rank=2))
    before = {p: d for p, d in read_manifest(Path(job.inputs.out)).files.items() if p.startswith("backbone/")}
    go(job)
    assert all(name.startswith(("weights/image/low_rank.", "moments/", "ema/")) for name in tensors(job))
    exported = export(job, Path(job.inputs.out))
    assert exported.parts == ["lora"]
    files = verify(Path(job.inputs.out)).files
    assert {path: digest for path, digest in files.items() if path.startswith("backbone/")} == before
    unet = Networks(job.inputs.out).unet
    averaged = {n.removeprefix("ema/image/low_rank.changes."): v for n, v in tensors(job).items() if "ema/" in n}
    name = next(n for n in averaged if n.endswith(".0.weight")).removesuffix(".0.weight")
    layer = unet.get_submodule(name.replace("-", "."))
    expected = layer.weight + averaged[f"{name}.1.weight"] @ averaged[f"{name}.0.weight"]
    fuse_lora(unet, load_file(Path(job.inputs.out) / "lora" / "pytorch_lora_weights.safetensors"))
    # Weights of a checkpoint are stored in half precision.
    torch.testing.assert_close(layer.weight, expected, rtol=1e-3, atol=1e-5)


def test_low_rank_change_beside_temporal_layers_is_exported_with_the_stage(
    system: System, make_config: MakeConfig
) -> None:
    job = system.job(make_config("keyframes", lora_rank=2))
    go(job)
    export(job, Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    own, shared = networks.stage("keyframes").network.unet.state_dict(), networks.unet.state_dict()
    changed = {name for name in own if not torch.equal(own[name], shared[name])}
    assert changed
    assert all(".attn" in name for name in changed)


def test_made_checkpoint_is_registered_with_its_lineage(
    system: System, make_config: MakeConfig, tracking_uri: str
) -> None:
    job = system.job(make_config("keyframes", steps=2))
    go(job)
    go(replace(job, config=replace(job.config, steps=3)))
    exported = export(job, Path(job.inputs.out))
    for part in exported.parts:
        register(job.run_uri, f"micro-{part.replace('/', '-')}", Path(job.inputs.out) / part, exported.lineage)
    client = MlflowClient(tracking_uri=tracking_uri)
    version = client.get_model_version_by_alias("micro-temporal-keyframes", "candidate")
    assert version.tags["data"] == exported.lineage["data"]
    assert version.tags["backbone"] == exported.lineage["backbone"]
    record = json.loads((Path(job.run_uri) / "run.json").read_text())
    assert version.run_id == record["mlflow_run_id"]
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(version.run_id, "loss")] == [0, 1, 2]


def test_unreachable_mlflow_does_not_stop_a_run(
    system: System, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job = system.job(make_config("image", steps=2))
    assert go(job).is_done
    register(job.run_uri, "micro", Path(job.inputs.out) / "backbone", {})
