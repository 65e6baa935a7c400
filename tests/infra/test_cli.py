"""Exit codes and one-line errors of the command lines."""

from collections.abc import Callable

import pytest

from infra.cli import ExitCode, IncompleteError, run_command


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
def test_run_command_turns_outcomes_into_exit_codes(
    command: Callable[[], ExitCode | None], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(command)
    assert left.value.code == code
    error = capsys.readouterr().err
    assert error.count("\n") == (1 if code in (2, 4) else 0)


def test_run_command_lets_defects_keep_their_traceback() -> None:
    with pytest.raises(KeyError):
        run_command(_raiser(KeyError("defect")))
