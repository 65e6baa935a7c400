"""Runs recorded in a real MLflow store on SQLite."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.tracking import Run


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_reopened_run_continues_the_same_curves(tracking_uri: str) -> None:
    first = Run("training", "tiny", tracking_uri=tracking_uri)
    first.parameters({"steps": 10})
    first.metrics({"loss": 3.0}, step=1)
    second = Run("training", "tiny", run_id=first.id, tracking_uri=tracking_uri)
    second.parameters({"steps": 20})
    second.metrics({"loss": 2.0}, step=2)
    second.close()
    assert first.id is not None
    client = MlflowClient(tracking_uri)
    points = client.get_metric_history(first.id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0)]
    record = client.get_run(first.id)
    assert record.data.params == {"steps": "10"}
    assert record.data.tags["restarted.steps"] == "20"
    assert record.info.status == "FINISHED"


def test_registered_checkpoint_can_be_found_by_alias(tracking_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    run = Run("training", "tiny", tracking_uri=tracking_uri)
    run.register("driving", folder, alias="candidate")
    run.register("driving", folder, alias="candidate")
    version = MlflowClient(tracking_uri).get_model_version_by_alias("driving", "candidate")
    assert version.version in (2, "2")
    assert version.run_id == run.id
    files = MlflowClient(tracking_uri).list_artifacts(str(run.id), "adapter")
    assert [file.path for file in files] == ["adapter/config.json"]


def test_unreachable_store_stops_records_but_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    run = Run("training", "tiny", tracking_uri="http://127.0.0.1:9")
    run.metrics({"loss": 1.0}, step=1)
    run.close()
    assert [record.name for record in caplog.records if record.name.startswith("infra")] == ["infra.tracking"]
