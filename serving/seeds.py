"""Seeds of a job's segments."""

import hashlib


def segment_seed(seed: int, segment: int) -> int:
    """Derive the seed of a segment: the job's own for the first, an unrelated one for each further one."""
    if segment == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{segment}".encode()).digest()[:6], "little")
