"""What the C library does with the memory of tensors that are gone."""

import ctypes

# mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and the largest values that every glibc takes.
_TRIM, _NEVER = -1, 2**31 - 1
_MMAP, _LARGEST_MMAP = -3, 2**25


def keep_freed_memory() -> None:
    """Keep what is freed for the next tensor, in this process.

    glibc gives all above some MiB back to the system when it is free; a network on a CPU then spends up to a third of
    its time on the page faults of getting it again. Memory stays at its peak instead. Does nothing where the C library
    has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM, _NEVER)
        mallopt(_MMAP, _LARGEST_MMAP)
