"""Leave when told to: SIGTERM, by which machines and batch systems announce that a process must go."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(call: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Carry out `call` on SIGTERM, instead of ending, while the block runs; gives a function that says whether it came.

    Does nothing outside the main thread, where Python takes no signals.
    """
    told = False

    def take(*_: object) -> None:
        nonlocal told
        told = True
        call()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: told
        return
    before = signal.signal(signal.SIGTERM, take)
    try:
        yield lambda: told
    finally:
        signal.signal(signal.SIGTERM, before)
