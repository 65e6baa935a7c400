"""Whole runs in one process: restarts, refusals, export."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.checkpoint import read_manifest, verify
from pipelines.digests import network_digest
from pipelines.models.conditioning import Conditions
from pipelines.networks import Networks
from training.checkpoints import CheckpointStore
from training.config import OptimizerConfig, TrainConfig
from training.export import export
from training.reduction import Workers
from training.worker import STOP, Job, Outcome, run_worker

MakeConfig = Callable[..., TrainConfig]
System = Any


def go(job: Job) -> Outcome:
    outcome = run_worker(job, Workers(), torch.device("cpu"))
    if outcome.error is not None:
        raise ValueError(outcome.error)
    return outcome


def tensors(job: Job) -> dict[str, torch.Tensor]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return {f"{file}/{name}": value for file, values in found.load().items() for name, value in values.items()}


def progress(job: Job) -> dict[str, Any]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return dict(found.progress["loop"])


@pytest.mark.parametrize("objective", ["image", "keyframes"])
def test_run_in_parts_equals_run_in_one(objective: str, system: System, make_config: MakeConfig) -> None:
    config = make_config(objective)
    whole, parts = system.job(config, "whole"), system.job(config, "parts")
    assert go(whole).step == 6
    for steps in (1, 4, 6):
        go(replace(parts, config=replace(config, steps=steps)))
    assert progress(parts) == progress(whole)
    expected = tensors(whole)
    assert tensors(parts).keys() == expected.keys()
    for name, value in tensors(parts).items():
        assert torch.equal(value, expected[name]), name


def test_keyframes_train_temporal_layers_only(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("keyframes"))
    before = dict(read_manifest(Path(job.inputs.out)).files)
    go(job)
    assert all(".video.temporal." in name.replace("/", ".") for name in tensors(job) if name.startswith("weights"))
    export(job, Path(job.inputs.out))
    manifest = verify(Path(job.inputs.out))
    assert {path: digest for path, digest in manifest.files.items() if path.startswith("backbone/")} == before
    stage = Networks(job.inputs.out).stage("keyframes")
    averaged = {n.split("/video.temporal.")[1]: v for n, v in tensors(job).items() if n.startswith("ema/")}
    for name, value in stage.network.temporal_state_dict().items():
        assert torch.equal(value, averaged[name]), name
    noisy = torch.randn(2, 5, 4, 2, 3)
    prediction = stage.network(noisy, torch.tensor([5.0, 900.0]), Conditions(text=torch.randn(2, 1, 12)))
    assert prediction.shape == noisy.shape
    assert manifest.history[-1]["step"] == 6


def test_image_run_exports_a_backbone_that_loads(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("image"))
    go(job)
    export(job, Path(job.inputs.out))
    networks = Networks(job.inputs.out)
    averaged = {name: value for name, value in tensors(job).items() if name.startswith("ema/image/unet.")}
    for name, value in networks.unet.state_dict().items():
        assert torch.equal(value, averaged[f"ema/image/unet.{name}"]), name
    scheduler = json.loads((Path(job.inputs.out) / "backbone/scheduler/scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_image_run_overfits_its_clips(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=1, ema_decay=0.9)
    start = go(system.job(config)).loss
    config = replace(config, steps=60, batch_size=8)
    assert go(system.job(config, "long")).loss < 0.9 * start


def test_stop_file_saves_the_run_and_leaves(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("image", steps=400))
    Path(job.run_uri).mkdir(parents=True)
    (Path(job.run_uri) / STOP).touch()
    outcome = go(job)
    assert not outcome.is_done
    assert progress(job)["step"] == outcome.step == 1
    (Path(job.run_uri) / STOP).unlink()
    assert go(replace(job, config=replace(job.config, steps=3))).is_done


def test_time_limit_ends_a_run_as_done(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("image", steps=10**6), seconds=0.5)
    outcome = go(job)
    assert outcome.is_done
    assert progress(job)["step"] == outcome.step < 10**6


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"batch_size": 8}, "config.batch_size=4, this run has 8"),
        ({"optimizer": OptimizerConfig(learning_rate=2e-2)}, "config.optimizer.learning_rate=0.01"),
        ({"seed": 1}, "config.seed=0"),
    ],
)
def test_run_with_other_settings_does_not_go_on(
    changes: dict[str, Any], cause: str, system: System, make_config: MakeConfig
) -> None:
    job = system.job(make_config("image", steps=2))
    go(job)
    before = tensors(job)
    with pytest.raises(ValueError, match=cause.replace(".", r"\.")):
        go(replace(job, config=replace(job.config, **changes)))
    assert tensors(job).keys() == before.keys()


def test_run_with_other_data_or_backbone_does_not_go_on(
    system: System, make_config: MakeConfig, make_shards: Callable[..., str], tmp_path: Path
) -> None:
    job = system.job(make_config("keyframes", steps=2))
    go(job)
    digest = network_digest(Path(job.inputs.out) / "backbone" / "vae")
    other = make_shards(tmp_path / "other", digest, clips=7)
    with pytest.raises(ValueError, match="was made with data="):
        go(replace(job, inputs=replace(job.inputs, shards=other)))
    image = system.job(make_config("image", steps=1))
    go(image)
    export(image, Path(image.inputs.out))
    with pytest.raises(ValueError, match="was made with backbone="):
        go(job)


def test_shards_of_another_autoencoder_are_refused(
    system: System, make_config: MakeConfig, make_shards: Callable[..., str], tmp_path: Path
) -> None:
    job = system.job(make_config("image"))
    shards = make_shards(tmp_path / "foreign", "f" * 64)
    with pytest.raises(ValueError, match="made with autoencoder ffffffffffff"):
        go(replace(job, inputs=replace(job.inputs, shards=shards)))


def test_shards_with_too_short_clips_are_refused(system: System, make_config: MakeConfig) -> None:
    config = make_config("keyframes")
    with pytest.raises(ValueError, match="hold no clips of 7 or more frames of 16x24; they hold 6x16x24@4"):
        go(system.job(replace(config, data=replace(config.data, num_frames=7))))


def test_bad_sample_is_named_and_the_run_goes_on(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=8)
    config = replace(config, watch=replace(config.watch, max_magnitude=4.0))
    outcome = go(system.job(config))
    assert outcome.step == 8
    assert outcome.put_aside
    assert all(name.startswith("clip") and "above 4" in why for name, why in outcome.put_aside.items())


def test_exported_weights_do_not_depend_on_validation(system: System, make_config: MakeConfig) -> None:
    quiet = make_config("keyframes")
    shown = replace(quiet, validation=replace(quiet.validation, every_steps=2))
    go(system.job(quiet, "quiet"))
    go(system.job(shown, "shown"))
    expected = tensors(system.job(quiet, "quiet"))
    for name, value in tensors(system.job(shown, "shown")).items():
        assert torch.equal(value, expected[name]), name


def test_full_disk_ends_the_run_with_its_last_checkpoint_untouched(
    system: System, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = system.job(make_config("image", steps=2))
    go(job)
    before = tensors(job)

    def no_space(local: Path, uri: str) -> None:
        raise OSError(28, "No space left on device", uri)

    monkeypatch.setattr("infra.storage.publish", no_space)
    with pytest.raises(ValueError, match=r"cannot save itself.*No space left"):
        go(replace(job, config=replace(job.config, steps=400)))
    monkeypatch.undo()
    assert progress(job)["step"] == 2
    for name, value in tensors(job).items():
        assert torch.equal(value, before[name]), name


def test_weights_file_holds_trained_parameters_in_fp32(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("keyframes", precision="bf16", steps=2))
    assert torch.isfinite(torch.tensor(go(job).loss))
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    weights = load_file(Path(found.uri) / "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
