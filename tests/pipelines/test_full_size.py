"""The video U-Net of Stable Diffusion 2.1's shape with all its weights, once, in a process of its own.

`VIDEOLDM_FULL_SIZE=1 pytest tests/pipelines/test_full_size.py` also gives it frames of full size.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pipelines.models import architectures
from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from tests.peak import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
IS_WHOLE = os.environ.get("VIDEOLDM_FULL_SIZE") == "1"
SHAPE = (1, 8, 4, 40, 64) if IS_WHOLE else (1, 8, 4, 8, 8)
"""8 frames of 320x512 pixels if asked for: minutes on processors without bfloat16; else 64x64, the same network."""
LIMIT_BYTES = 12 * 2**30
"""Half of the machine that the network must fit on, so that it does not swap beside others."""

ARITHMETIC = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}


class Float32Arithmetic(TorchDispatchMode):
    """Multiply bfloat16 tensors in float32, each operation by itself, as processors with bfloat16 add products.

    Others emulate it: a convolution takes two hundred times as long as in float32.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function.overloadpacket not in ARITHMETIC:
            return function(*args, **(kwargs or {}))
        widened = tree_map_only(torch.Tensor, lambda tensor: tensor.float(), args)
        return function(*widened, **(kwargs or {})).to(args[0].dtype)


def forward() -> dict[str, float]:
    with torch.device("meta"):
        config = TemporalConfig(mix="scalar", cross_attention_dim=1024)
        network = VideoUNet(UNet2DConditionModel(**architectures.sd21_unet()), config)
    network = network.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    # Drawing a billion values takes most of a minute: a million are repeated.
    drawn = torch.randn(2**20, generator=generator)
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 0
        values = drawn * fan**-0.5 if fan else 1.0 + 0.02 * drawn
        for piece in parameter.view(-1).split(len(values)):
            piece.copy_(values[: len(piece)])
    noisy = torch.randn(SHAPE, generator=generator).bfloat16()
    text = torch.randn((1, 77, 1024), generator=generator).bfloat16()
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.no_grad(), contextlib.nullcontext() if native else Float32Arithmetic():
        started, started_cpu = time.perf_counter(), time.process_time()
        prediction = network(noisy, torch.tensor([500.0]), Conditions(text=text))
    assert prediction.shape == SHAPE
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "is_finite": bool(prediction.isfinite().all()),
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - started_cpu,
        "peak_bytes": peak_bytes(),
        "swaps": resource.getrusage(resource.RUSAGE_SELF).ru_nswap,
    }


@pytest.mark.slow
def test_stable_diffusion_21_video_unet_runs_in_bfloat16_in_half_the_memory() -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < LIMIT_BYTES // 2:
        pytest.skip(f"{available / 2**30:.1f} GiB of memory are free, the network takes about 6")
    command = [sys.executable, __file__]
    answer = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True)
    measured = json.loads(answer.stdout.splitlines()[-1])
    assert measured["parameters"] == pytest.approx((865.91 + 656.08) * 1e6, rel=1e-3)
    assert measured["is_finite"]
    assert measured["peak_bytes"] < LIMIT_BYTES


if __name__ == "__main__":
    print(json.dumps(forward()))
