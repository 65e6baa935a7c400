"""What the C library does with the memory of tensors that are gone."""

import ctypes

# mallopt(3): M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX.
_TRIM, _NEVER = -1, 2**31 - 1
_MAPPED, _NONE = -4, 0
_ARENAS, _ONE = -8, 1


def keep_freed_memory() -> None:
    """Keep what is freed for the next tensor, in this process.

    glibc gives all above some MiB back to the system when it is free; a network on a CPU then spends up to half of its
    time on the page faults of getting it again. Memory stays at its peak instead. Does nothing where the C library has
    no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM, _NEVER)
        # No threshold would do: what is larger than 32 MiB is always mapped, and unmapped when free.
        mallopt(_MAPPED, _NONE)
        # Arenas of threads keep nothing large. A thread that has one by now keeps it, unless MALLOC_ARENA_MAX is 1.
        mallopt(_ARENAS, _ONE)
