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
from pipelines.configs import from_json, to_json
from pipelines.digests import network_digest
from pipelines.models.conditioning import Conditions
from pipelines.networks import Networks
from tests.training.runs import go, progress, tensors
from training.checkpoints import CheckpointStore
from training.checkpoints import read_manifest as read_run
from training.config import CheckpointConfig, ClusterConfig, OptimizerConfig, TrainConfig
from training.export import export
from training.recorder import FIGURES
from training.reduction import Workers
from training.worker import STOP, run_worker

MakeConfig = Callable[..., TrainConfig]
System = Any


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
        assert torch.equal(value, averaged[name].half().float()), name
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
        assert torch.equal(value, averaged[f"ema/image/unet.{name}"].half().float()), name
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


def test_clips_of_a_further_size_are_trained_on(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=2)
    other = replace(config.data, height=24, width=16)
    with pytest.raises(ValueError, match="of 24x16; they hold 6x16x24@4"):
        go(system.job(replace(config, data=other)))
    assert go(system.job(replace(config, data=replace(other, further_sizes=((16, 24),))))).is_done


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


def test_best_checkpoint_is_kept_by_its_validation_loss(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=8)
    kept = replace(config.checkpoints, every_steps=2, keep_last=1, keep_best=True)
    job = system.job(replace(config, checkpoints=kept, validation=replace(config.validation, every_steps=2)))
    go(job)
    found = [read_run(str(path.parent)) for path in sorted(Path(job.run_uri).glob("checkpoints/*/manifest.json"))]
    metrics = {one.step: one.metric for one in found}
    assert 8 in metrics
    assert None not in metrics.values()
    assert len(metrics) == (1 if min(metrics, key=lambda step: metrics[step] or 0.0) == 8 else 2)


def test_run_publishes_its_figures_and_can_be_started_again_from_its_config(
    system: System, make_config: MakeConfig
) -> None:
    config = make_config("keyframes", steps=4, cluster=ClusterConfig(price_per_hour=3600.0))
    job = system.job(replace(config, validation=replace(config.validation, every_steps=4)))
    seen: dict[str, float] = {}
    outcome = run_worker(job, Workers(), torch.device("cpu"), publish=seen.update)
    assert outcome.is_done
    assert set(FIGURES) - {"tflops", "tflops_per_worker"} <= set(seen)
    found = CheckpointStore(job.run_uri, config.checkpoints).newest()
    assert found is not None
    assert seen["cost"] == pytest.approx(found.worker_s, rel=1e-6)
    saved = json.loads((Path(job.run_uri) / "config.json").read_text())
    assert to_json(from_json(TrainConfig, saved, where="config.json")) == to_json(job.config)
    with pytest.raises(ValueError, match="unknown field 'learning_rat'; did you mean 'learning_rate'"):
        from_json(TrainConfig, {**saved, "optimizer": {"learning_rat": 1.0}}, where="config.json")
    with pytest.raises(ValueError, match="unknown field 'conditon'; did you mean 'condition'"):
        from_json(TrainConfig, {**saved, "model": {**saved["model"], "conditon": 1}}, where="config.json")


def test_notice_saves_the_run_between_two_checkpoints(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=6, checkpoints=CheckpointConfig(every_steps=5, keep_last=9))
    job, asked = system.job(config), iter([False, True, False, False, False, False])
    assert run_worker(job, Workers(), torch.device("cpu"), must_save=lambda: next(asked)).is_done
    saved = sorted(path.name[:13] for path in Path(job.run_uri).glob("checkpoints/*"))
    assert saved == ["step-00000002", "step-00000005", "step-00000006"]


def test_worker_that_must_go_saves_the_run_and_leaves(system: System, make_config: MakeConfig) -> None:
    job = system.job(make_config("image", steps=400))
    asked = iter([False] * 3 + [True] * 400)
    outcome = run_worker(job, Workers(), torch.device("cpu"), is_leaving=lambda: next(asked))
    assert (outcome.is_done, outcome.step) == (False, 4)
    assert progress(job)["step"] == 4


def test_run_of_nothing_but_bad_samples_ends_with_its_reason(system: System, make_config: MakeConfig) -> None:
    config = make_config("image", steps=400)
    job = system.job(replace(config, watch=replace(config.watch, max_magnitude=0.01, patience=3)))
    with pytest.raises(ValueError, match=r"step 1: 8 samples in a row are bad, the last: input reaches"):
        go(job)
