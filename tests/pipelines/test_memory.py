import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from pipelines.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    # 192 MiB at once: glibc gives all above 64 back when they are free.
    for _ in range(5):
        [torch.ones(2**21) for _ in range(24)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_freed_tensors_are_not_faulted_in_again():
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] * 3 < faults["given back"], faults
