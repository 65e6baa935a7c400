"""What workers run: the contract between the service, which moves work about, and the stages, which do it."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.artifacts import Tensors
from serving.records import TaskSpec

State = Tensors
"""Everything a stage needs to go on after a step, as plain tensors."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One task, with its inputs read from storage.

    Attributes:
        job: its id.
        request: with a value for every field.
        stage: what to run.
        segment: for which part of the video.
        inputs: outputs of the tasks it needs, in their order.
        files: what the caller uploaded, by field; only for tasks that need no other.
        state: what an earlier run of the task yielded last.
    """

    job: str
    request: dict[str, Any]
    stage: str
    segment: int
    inputs: tuple[bytes, ...]
    files: dict[str, bytes]
    state: State | None


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a stage made: `data` for the stages behind it, `results` for callers, by variant and file suffix."""

    data: bytes
    suffix: str
    results: dict[str, tuple[bytes, str]] = field(default_factory=dict)


class StageSet(Protocol):
    """All stages of a system. Results depend on the checkpoint and the call alone."""

    @property
    def pools(self) -> dict[str, tuple[str, ...]]:
        """Names of the worker pools (one Serve deployment each) and the stages that each can run."""

    def describe(self, checkpoint: str) -> tuple[str, dict[str, Any]]:
        """Digest of a checkpoint, and what the API must know of it, without loading weights."""

    def load(self, checkpoint: str, pool: str) -> Any:
        """Load what a pool needs of a checkpoint."""

    def plan(self, request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
        """Tasks of a request, with their steps and cost, before any work starts."""

    def run(self, model: Any, call: Call) -> Generator[State, None, Output]:
        """Run a task: yield the state after each step, return the output; any state yielded can be started from."""

    def preview(self, model: Any, state: State) -> bytes | None:
        """A small JPEG of where a task stands; None if there is nothing to see."""
