import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from pipelines.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
layers = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.SiLU(), torch.nn.Conv2d(32, 32, 3))
def work():
    # Tensors of 32 MiB and more, which no threshold of glibc keeps.
    with torch.inference_mode():
        layers(torch.zeros(4, 3, 256, 512))
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_convolutions_do_not_fault_freed_tensors_in_again():
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] * 10 < faults["given back"], faults
