"""Speed and memory of the models against diffusers' Stable Video Diffusion classes with the same weights.

`python tests/benchmarks/bench_models.py` runs on one thread and takes a few minutes; the full-size network is
`tests/pipelines/test_full_size.py`. Runs are interleaved and timed in CPU time; memory is the peak of the tensors made
during a call (activations and gradients, not weights), so neither depends on what else runs.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.models.attention import attend_over_frames
from pipelines.models.autoencoder import decode_windows
from pipelines.models.conditioning import Conditions
from pipelines.models.lean_backbone import recompute_transformers
from pipelines.models.svd import embed_time_ids, video_unet_from_svd
from pipelines.models.temporal_convolution import TimeConv
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet
from tests.pipelines.models.peak_memory import PeakMemory

Call = Callable[[], object]

WIDTHS = {"thin": (64, 128, 192), "wide": (128, 256, 512)}
HEADS = (2, 4, 8)
TOKEN_DIM = 64
TIME_ID_DIM = 32
SHAPE = (1, 8, 4, 16, 32)
TEMPORAL = ("temporal_", "time_mixer", "time_pos_embed")


def show(name: str, theirs: float, ours: float, unit: str, gate: float | None) -> None:
    """Print one row: both figures, their ratio and whether it keeps its limit."""
    ratio = ours / theirs
    verdict = "" if gate is None else f"  {'ok' if ratio <= gate else 'MISSED'} (limit {gate:.2f})"
    print(f"{name:58} {theirs:10.1f} {ours:10.1f} {unit:4} ratio {ratio:.3f}{verdict}", flush=True)


def cpu_ms(calls: tuple[Call, Call], repeats: int) -> tuple[float, float]:
    """Time two calls in turns; return the medians in ms of CPU time."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()
    for _ in range(repeats):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            spent.append(1e3 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def peak_mib(call: Call) -> float:
    """Run a call; return the peak of the tensors it made."""
    gc.collect()
    with PeakMemory() as memory:
        call()
    return memory.peak / 2**20


@dataclass
class Pair:
    """diffusers' network and ours with its weights, each as a function that predicts."""

    svd: UNetSpatioTemporalConditionModel
    ours: VideoUNet
    predict_svd: Callable[[], Tensor]
    predict_ours: Callable[[], Tensor]


def make_pair(widths: tuple[int, ...], num_tokens: int) -> Pair:
    """Build both networks with the same random weights; only temporal layers train."""
    torch.manual_seed(0)
    svd = UNetSpatioTemporalConditionModel(
        block_out_channels=widths,
        down_block_types=(*("CrossAttnDownBlockSpatioTemporal",) * 2, "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 2),
        num_attention_heads=HEADS,
        cross_attention_dim=TOKEN_DIM,
        addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=3 * TIME_ID_DIM,
    )
    ours = video_unet_from_svd(svd)
    ours.freeze_spatial()
    for name, parameter in svd.named_parameters():
        parameter.requires_grad_(any(part in name for part in TEMPORAL))
    noisy, image = torch.randn(2, *SHAPE)
    text, time_ids, timestep = torch.randn(1, num_tokens, TOKEN_DIM), torch.rand(1, 3), torch.tensor([300.0])
    both = torch.cat([noisy, image], dim=2)
    conditions = Conditions(text=text, context=image, class_labels=embed_time_ids(time_ids, TIME_ID_DIM))
    pair = Pair(
        svd=svd,
        ours=ours,
        predict_svd=lambda: svd(both, timestep, text, time_ids).sample,
        predict_ours=lambda: ours(noisy, timestep, conditions),
    )
    with torch.no_grad():
        torch.testing.assert_close(pair.predict_svd(), pair.predict_ours(), rtol=1e-4, atol=1e-4)
    return pair


def forward(predict: Callable[[], Tensor]) -> Call:
    """Make a call without gradients."""
    return torch.no_grad()(predict)


def step(predict: Callable[[], Tensor], network: nn.Module) -> Call:
    """Make a call that computes gradients and drops them."""

    def call() -> None:
        (predict() - 0.5).square().mean().backward()
        network.zero_grad(set_to_none=True)

    return call


def unets(repeats: int) -> None:
    """Forward pass and training step; the same layers train in both."""
    print("\nU-Net, 8 frames of 16x32 latents: diffusers, ours")
    for size, widths in WIDTHS.items():
        for num_tokens in (1, 77):
            pair = make_pair(widths, num_tokens)
            name = f"{size} {widths}, {num_tokens} tokens"
            calls = forward(pair.predict_svd), forward(pair.predict_ours)
            show(f"{name}, forward", *cpu_ms(calls, repeats), "ms", 1.0)
            show(f"{name}, forward", *map(peak_mib, calls), "MiB", None)
            calls = step(pair.predict_svd, pair.svd), step(pair.predict_ours, pair.ours)
            show(f"{name}, step", *cpu_ms(calls, repeats), "ms", 1.0)
            show(f"{name}, step", *map(peak_mib, calls), "MiB", 0.85)
    recompute_transformers(pair.ours.unet)
    show(f"{name}, recomputing, step", *cpu_ms(calls, repeats), "ms", None)
    show(f"{name}, recomputing, step", *map(peak_mib, calls), "MiB", 0.85)


def parts(repeats: int) -> None:
    """The two formulations that make the difference, each with its gradients."""
    print("\nForward and backward of parts: PyTorch's usual formulation, ours")
    for heads, width in ((8, 8), (2, 32), (5, 64)):
        inputs = torch.randn(3, 1, 8, 512, heads * width, requires_grad=True)
        gradient = torch.randn_like(inputs[0])

        def fused(inputs: Tensor = inputs, heads: int = heads, gradient: Tensor = gradient) -> None:
            folded = (rearrange(x, "b t n (h d) -> (b n) h t d", h=heads) for x in inputs)
            attended = functional.scaled_dot_product_attention(*folded)
            rearrange(attended, "(b n) h t d -> b t n (h d)", b=1).backward(gradient)

        def ours(inputs: Tensor = inputs, heads: int = heads, gradient: Tensor = gradient) -> None:
            attend_over_frames(*inputs, heads).backward(gradient)

        show(f"attention over 8 frames, {heads} heads of {width}", *cpu_ms((fused, ours), repeats), "ms", None)
    for channels, kernel in ((64, 1), (320, 1), (64, 3), (256, 3)):
        conv, volume = TimeConv(channels, channels, kernel), torch.randn(1, channels, 8, 16, 32, requires_grad=True)
        gradient = torch.randn_like(volume)

        def three(conv: TimeConv = conv, volume: Tensor = volume, gradient: Tensor = gradient) -> None:
            functional.conv3d(volume, conv.weight, conv.bias, padding=conv.padding).backward(gradient)

        def fast(conv: TimeConv = conv, volume: Tensor = volume, gradient: Tensor = gradient) -> None:
            conv(volume).backward(gradient)

        show(f"convolution (3, {kernel}, {kernel}), {channels} channels", *cpu_ms((three, fast), repeats), "ms", None)


@torch.no_grad()
def decoding() -> None:
    """Memory of decoding a long clip against a short one."""
    print("\nDecoding in windows: 16 frames, 256 frames")
    levels = (32, 64, 64)
    vae = AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
    )
    decoder = VideoDecoder(vae, DecoderConfig())

    def decode(num_frames: int) -> float:
        latents = torch.randn(1, num_frames, 4, 8, 16)
        return peak_mib(lambda: sum(part.shape[1] for part in decode_windows(decoder, latents, window=8, overlap=2)))

    show("decode, windows of 8 frames", decode(16), decode(256), "MiB", 1.1)


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times each call is timed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unets(options.repeats)
    parts(options.repeats)
    decoding()


if __name__ == "__main__":
    main()
