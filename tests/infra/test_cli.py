"""Exit codes and one-line errors of the command lines."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from infra.cli import ExitCode, IncompleteError, outcome


def _raiser(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (lambda: None, 0),
        (lambda: ExitCode.DONE_WITH_QUARANTINE, 3),
        (_raiser(ValueError("height=7 is odd;\nuse 8")), 2),
        (_raiser(FileNotFoundError("no such file")), 2),
        (_raiser(IncompleteError("2 of 3 shards")), 4),
        (_raiser(KeyboardInterrupt()), 4),
    ],
)
def test_outcome_turns_ends_into_exit_codes(
    command: Callable[[], ExitCode | None], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(command) == code
    error = capsys.readouterr().err
    assert error.count("\n") == (1 if code in (2, 4) else 0)


def test_outcome_lets_defects_keep_their_traceback() -> None:
    with pytest.raises(KeyError):
        outcome(_raiser(KeyError("defect")))


def test_process_runs_its_exit_functions_and_ends_with_the_code() -> None:
    program = (
        "import atexit; from infra.cli import ExitCode, run_command; atexit.register(print, 'left');"
        "run_command(lambda: print('done') or ExitCode.DONE_WITH_QUARANTINE)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (3, "done\nleft\n")
