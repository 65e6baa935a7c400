"""What the job store is given and gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Clock = Callable[[], float]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

UNFINISHED = ("queued", "in_progress")
WEBHOOK_TYPES = {"completed": "video.completed", "failed": "video.failed", "cancelled": "video.failed"}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One stage of one segment: what it needs (positions of earlier tasks), its steps and its cost."""

    stage: str
    segment: int
    needs: tuple[int, ...]
    num_steps: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """An accepted request, ready to be stored. `fingerprint` identifies the request's content."""

    id: str
    tenant: str
    release: str
    request: dict[str, Any]
    fingerprint: str
    tasks: tuple[TaskSpec, ...]
    priority: int = 0
    idempotency_key: str | None = None
    replay_window_s: float = 0.0
    parent: str | None = None
    deadline_s: float | None = None
    callback_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as callers see it. Times are seconds since 1970; `results` maps a variant to its stored file."""

    id: str
    tenant: str
    release: str
    status: Status
    request: dict[str, Any]
    parent: str | None
    priority: int
    created_at: float
    started_at: float | None
    completed_at: float | None
    deadline_at: float | None
    error_code: str | None
    error_message: str | None
    preview: str | None
    results: dict[str, Any]
    num_steps: int
    steps_done: int = 0
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status not in UNFINISHED


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much unfinished work the whole service takes in."""

    max_unfinished: int


class QueueFullError(Exception):
    """No room for a job.

    Args:
        message: what is full.
        retry_after_s: estimate of the time until a place is free.
        is_everybodys: whether the whole service is full, not this tenant's share of it alone.
    """

    def __init__(self, message: str, retry_after_s: float, *, is_everybodys: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.is_everybodys = retry_after_s, is_everybodys


class ConflictError(Exception):
    """The idempotency key was used before for another request."""
