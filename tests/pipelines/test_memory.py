import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pipelines.checkpoint import PRETRAINED
from pipelines.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
vae = AutoencoderKL.from_pretrained(PRETRAINED / "synthetic_driving" / "backbone" / "vae", use_safetensors=True)
def encode():
    # Tensors of 32 MiB and more, which no threshold of glibc keeps.
    with torch.inference_mode():
        vae.encode(torch.zeros(4, 3, 256, 512))
encode()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    encode()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_encoding_does_not_fault_freed_tensors_in_again():
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] * 10 < faults["given back"], faults
