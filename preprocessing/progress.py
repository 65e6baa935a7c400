"""How far a run is: a bar, and the same figures for MLflow and Prometheus."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, start_http_server
from tqdm import tqdm

T = TypeVar("T")
Report = Callable[[Mapping[str, float], int], None]

logger = logging.getLogger(__name__)

MLFLOW_INTERVAL_S = 10.0
NAMES = {
    "groups": "groups committed",
    "groups_planned": "groups of the plan",
    "clips": "clips written by this process",
    "clips_quarantined": "clips put into quarantine by this process",
    "clips_per_s": "clips written per second by this process",
}


def bar(items: Iterable[T], total: int, title: str, unit: str, done: int = 0) -> "tqdm[T]":
    """A bar with the time left on a terminal, nothing elsewhere."""
    return tqdm(items, total=total, initial=done, desc=title, unit=unit, disable=None, file=sys.stderr)


class Progress:
    """Counts groups as they are committed and tells everyone.

    Args:
        planned: groups of the plan.
        done: groups that were committed before.
        reports: told the figures and the number of groups: every ten seconds, and at the end.
    """

    def __init__(self, planned: int, done: int, reports: Iterable[Report] = ()) -> None:
        self._reports, self._started, self._told = list(reports), time.monotonic(), time.monotonic()
        self.values = dict.fromkeys(NAMES, 0.0) | {"groups": float(done), "groups_planned": float(planned)}

    def follow(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Hand on rows (group, clips, rejected) of committed groups while showing them."""
        values = self.values
        shown = bar(rows, int(values["groups_planned"]), "encode", "group", int(values["groups"]))
        for row in shown:
            values["groups"] += 1
            values["clips"] += row["clips"]
            values["clips_quarantined"] += row["rejected"]
            values["clips_per_s"] = values["clips"] / max(time.monotonic() - self._started, 1e-6)
            shown.set_postfix_str(
                f"{values['clips']:.0f} clips, {values['clips_per_s']:.1f}/s, "
                f"{values['clips_quarantined']:.0f} quarantined"
            )
            logger.info("group committed group=%d clips=%d rejected=%d", row["group"], row["clips"], row["rejected"])
            if time.monotonic() - self._told > MLFLOW_INTERVAL_S:
                self.tell()
            yield row

    def tell(self) -> None:
        """Report the figures now."""
        self._told = time.monotonic()
        for report in self._reports:
            report(self.values, int(self.values["groups"]))


def serve_prometheus(progress: Progress, port: int, registry: CollectorRegistry = REGISTRY) -> int:
    """Answer `GET /metrics` with the figures of a run until the process ends; returns the port, chosen if 0 is asked.

    Raises:
        OSError: if the port is taken.
    """
    for name, purpose in NAMES.items():
        gauge = Gauge(f"videoldm_preprocessing_{name}", purpose, registry=registry)
        gauge.set_function(partial(progress.values.__getitem__, name))
    server, _ = start_http_server(port, registry=registry)
    return server.server_port
