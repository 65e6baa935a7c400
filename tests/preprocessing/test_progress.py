from collections.abc import Mapping
from urllib.request import urlopen

from prometheus_client import CollectorRegistry

from preprocessing.progress import Progress, serve_prometheus


def test_figures_reach_prometheus_and_reports() -> None:
    told: list[tuple[dict[str, float], int]] = []

    def report(values: Mapping[str, float], step: int) -> None:
        told.append((dict(values), step))

    progress = Progress(planned=5, done=2, reports=[report])
    port = serve_prometheus(progress, 0, CollectorRegistry())
    rows = [{"group": 2, "clips": 7, "rejected": 1}, {"group": 3, "clips": 3, "rejected": 0}]
    assert list(progress.follow(rows)) == rows
    progress.tell()
    values, step = told[-1]
    assert step == 4
    assert (values["groups"], values["groups_planned"], values["clips"], values["clips_quarantined"]) == (4, 5, 10, 1)
    assert values["clips_per_s"] > 0
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "videoldm_preprocessing_clips 10.0" in text
    assert "videoldm_preprocessing_groups_planned 5.0" in text
