import ctypes
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.video_decode import VideoError
from preprocessing.sandbox import Sandbox, SandboxError


def count(upto: int) -> Iterator[int]:
    yield from range(upto)


def process_id() -> Iterator[int]:
    yield os.getpid()


def segfault() -> Iterator[int]:
    yield 1
    ctypes.string_at(0)


def hang() -> Iterator[int]:
    yield 1
    while True:
        pass


def bomb() -> Iterator[int]:
    yield len(bytearray(2**34))


def refuse() -> Iterator[int]:
    raise VideoError("no_frames", "nothing in it")
    yield 0


def defect() -> Iterator[int]:
    yield 1 // 0


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    # The child imports this file by name.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    box = Sandbox(memory_bytes=4 * 2**30, timeout_s=20.0)
    yield box
    box.close()


def run(sandbox: Sandbox, function: Any, *arguments: Any) -> list[Any]:
    function.__module__ = "test_sandbox"
    return list(sandbox.stream(function, *arguments))


def test_results_come_through_and_the_child_is_used_again(sandbox: Sandbox) -> None:
    assert run(sandbox, count, 5) == [0, 1, 2, 3, 4]
    assert run(sandbox, process_id) == run(sandbox, process_id)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(segfault, "crash"), (bomb, "memory"), (refuse, "no_frames"), (defect, "decode")],
)
def test_what_goes_wrong_has_a_reason_and_the_next_request_is_served(
    sandbox: Sandbox, function: Any, reason: str
) -> None:
    with pytest.raises(SandboxError) as caught:
        run(sandbox, function)
    assert caught.value.reason == reason
    assert run(sandbox, count, 2) == [0, 1]


def test_a_hanging_decoder_is_killed(sandbox: Sandbox) -> None:
    assert run(sandbox, count, 1) == [0]
    sandbox.timeout_s = 0.5
    with pytest.raises(SandboxError) as caught:
        run(sandbox, hang)
    assert caught.value.reason == "timeout"
    sandbox.timeout_s = 20.0
    assert run(sandbox, count, 2) == [0, 1]


def test_a_reader_that_stops_early_does_not_leave_stale_results(sandbox: Sandbox) -> None:
    stream = sandbox.stream(*_named(count), 100)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert run(sandbox, count, 3) == [0, 1, 2]


def _named(function: Any) -> list[Any]:
    function.__module__ = "test_sandbox"
    return [function]
