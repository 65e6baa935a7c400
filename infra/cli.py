"""What every command line shares: exit codes, one-line errors, typed arguments, log format."""

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from infra.storage import STORE_ERRORS

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """What a command says to the shell."""

    DONE = 0
    BAD_ARGUMENTS = 2
    DONE_WITH_QUARANTINE = 3
    INCOMPLETE = 4


class IncompleteError(Exception):
    """Work stopped before its end for a reason outside the arguments; running the same command again goes on."""


def run_command(command: Callable[[], ExitCode | None]) -> NoReturn:
    """Run a command and end the process with its exit code (see `outcome`).

    The process ends without unloading native libraries: Arrow and Ray now and then abort while their threads are torn
    down, which would turn a finished command into a failed one.
    """
    code = outcome(command)
    logging.shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def outcome(command: Callable[[], ExitCode | None]) -> int:
    """Run a command and return its exit code.

    Bad arguments, files, configs, stores (ValueError, OSError) end as one line on standard error and code 2, unfinished
    work (IncompleteError, Ctrl-C) as one line and code 4. A traceback means a defect of the program.
    """
    configure_logs()
    try:
        return int(command() or ExitCode.DONE)
    except (ValueError, *STORE_ERRORS) as err:
        return _complain(ExitCode.BAD_ARGUMENTS, err)
    except IncompleteError as err:
        return _complain(ExitCode.INCOMPLETE, err)
    except KeyboardInterrupt:
        return _complain(ExitCode.INCOMPLETE, "interrupted; run the same command again to go on")


def configure_logs() -> None:
    """Send log lines to standard error in one format; the level comes from VIDEOLDM_LOG (default WARNING)."""
    logging.basicConfig(
        level=os.environ.get("VIDEOLDM_LOG", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )


def parse(command: type[T] | Callable[..., T], arguments: Sequence[str], *, program: str) -> T:
    """Parse `arguments` with tyro into a dataclass, a union of them, or a function call; exits with 2 on misuse."""
    return tyro.cli(command, args=list(arguments), prog=program, config=(tyro.conf.OmitArgPrefixes,))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: if the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise ValueError(f"no file at {str(path)!r}; give the path of a JSON file") from err
    except json.JSONDecodeError as err:
        raise ValueError(f"{str(path)!r} is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds a {type(value).__name__}; a JSON object is needed")
    return value


def _complain(code: ExitCode, message: object) -> int:
    line = " ".join(str(message).split()) or type(message).__name__
    print(f"error: {line}", file=sys.stderr)
    logger.debug("command failed", exc_info=True)
    return int(code)
