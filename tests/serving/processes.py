"""The processes below one of ours, looked at while they come and go."""

import contextlib

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """Living processes below `pid` that have a command line."""
    alive = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and process.cmdline():
                alive.append(process)
    return alive


def cpu_s(pid: int) -> float:
    """CPU seconds that `pid` and everything below it have used, ended children included."""
    total = 0.0
    for process in [psutil.Process(pid), *descendants(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_bytes(pid: int) -> int:
    """Memory of `pid` and everything below it; pages that several share are divided among them."""
    total = 0
    for process in [psutil.Process(pid), *descendants(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total
