"""Every stage trained on one clip of synthetic driving: how far its loss falls, and what its samples show.

`python tests/pipelines/overfit.py OUT.png [STEPS]` draws what each stage makes below the clip itself; the 400 steps it
takes for each take about a quarter of an hour of one core.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines import stages
from pipelines.config import StageConfig
from pipelines.diffusion.frame_masks import (
    draw_levels,
    draw_num_context,
    interpolation_mask,
    noisy_context,
    prediction_mask,
)
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.objective import denoising_loss, draw_noise
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models.conditioning import Conditions
from pipelines.models.discriminator import DiscriminatorConfig, VideoDiscriminator, adaptive_weight
from pipelines.models.latent_space import latent_scaling
from pipelines.models.temporal import TemporalConfig
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import Stage
from pipelines.pixels import to_float, to_uint8
from pipelines.stage_inputs import with_low_resolution
from pipelines.video_io import contact_sheet
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene
from training.objectives import adversarial_losses, discriminator_losses, reconstruction_losses

NUM_FRAMES, HEIGHT, WIDTH = 5, 32, 64
BATCH = 2
PATCH = 32
LEVEL = 30
NOISE = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
SAMPLING = stages.Sampling(sampler=SamplerConfig(name="dpm_solver", num_steps=12), guidance_scale=1.0, seed=0)
CONTEXT = TemporalConfig(
    mix="scalar", cross_attention_dim=None, context_channels=5, context_width=16, embeds_context_level=True
)
TEMPORAL = {
    "keyframes": TemporalConfig(mix="scalar", cross_attention_dim=None),
    "prediction": CONTEXT,
    "interpolation": CONTEXT,
    "upsampler": TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3, context_width=16),
}


@dataclass
class Learnt:
    """A stage after its run: losses before and after, and the frames it makes."""

    before: float
    after: float
    frames: Tensor


def driving_clip() -> Tensor:
    """Frames (1 t 3 H W) of a drive by day, half a second apart."""
    drive = Drive(draw_scene(2, 0), 4.0, HEIGHT, WIDTH)
    images = [torch.from_numpy(drive.frame(0.5 * index).image.copy()) for index in range(NUM_FRAMES)]
    return to_float(torch.stack(images))[None]


def learn(network: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float) -> tuple[float, float]:
    """Take steps of AdamW; returns the mean loss on the same noise before and after."""

    @torch.no_grad()
    def mean_loss() -> float:
        return torch.stack([loss(-1 - number) for number in range(4)]).mean().item()

    before = mean_loss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return before, mean_loss()


def learn_decoder(clip: Tensor, steps: int) -> tuple[Learnt, VideoDecoder]:
    """Train an autoencoder with temporal layers, from halfway on against a discriminator of volumes."""
    torch.manual_seed(0)
    channels = (16, 32, 32)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    decoder, judge = VideoDecoder(vae, DecoderConfig()), VideoDiscriminator(DiscriminatorConfig(width=8))
    judged = torch.optim.AdamW(judge.parameters(), lr=1e-3, betas=(0.5, 0.9))

    def reconstructed() -> Tensor:
        mean = vae.encode(clip[0]).latent_dist.mean[None]
        return decoder(latent_scaling(vae).normalise(mean).contiguous())

    def loss(step: int) -> Tensor:
        frames = reconstructed()
        reconstruction = reconstruction_losses(frames, clip, 1.0).mean()
        if step < steps // 2:
            return reconstruction
        judged.zero_grad()
        discriminator_losses(judge(clip), judge(frames.detach())).mean().backward()
        judged.step()
        adversarial = adversarial_losses(judge(frames)).mean()
        return reconstruction + adversarial * adaptive_weight(
            reconstruction, adversarial, decoder.last_weight(), scale=0.1
        )

    before, after = learn(decoder, loss, steps, 4e-3)
    with torch.no_grad():
        mean = vae.encode(clip[0]).latent_dist.mean
        vae.register_to_config(scaling_factor=1 / mean.std().item(), shift_factor=mean.mean().item())
        return Learnt(before, after, reconstructed()), decoder.requires_grad_(False)


def make_stage(name: str, size: tuple[int, int]) -> Stage:
    """A small stage with random weights; its image layers learn as well."""
    torch.manual_seed(1)
    is_upsampler = name == "upsampler"
    unet = UNet2DModel(
        in_channels=6 if is_upsampler else 4,
        out_channels=3 if is_upsampler else 4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D" if is_upsampler else "AttnDownBlock2D"),
        up_block_types=("UpBlock2D" if is_upsampler else "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
        add_attention=not is_upsampler,
        class_embed_type="timestep" if is_upsampler else None,
    )
    config = StageConfig(
        temporal=TEMPORAL[name],
        noise=NOISE,
        sampler=SAMPLING.sampler,
        guidance_scale=1.0,
        num_frames=NUM_FRAMES,
        fps=2.0,
        height=size[0],
        width=size[1],
        context_level=LEVEL,
    )
    network = VideoUNet(unet, config.temporal)
    return Stage(network, config, NoiseSchedule(NOISE), torch.device("cpu"), torch.float32)


def learn_stage(stage: Stage, clip: Tensor, tell: Callable[[list[torch.Generator]], Conditions], steps: int) -> Learnt:
    """Denoise one clip, over and over; `tell` gives its conditions. The frames are left to the caller."""
    many = clip.repeat(BATCH, 1, 1, 1, 1)

    def loss(step: int) -> Tensor:
        random = [torch.Generator().manual_seed(BATCH * (step + 100) + index) for index in range(BATCH)]
        timestep, noise = draw_noise(stage.schedule, many, random)
        conditions = tell(random)
        return denoising_loss(
            lambda noisy, at: stage.network(noisy, at, conditions), many, stage.schedule, timestep, noise
        ).mean()

    return Learnt(*learn(stage.network, loss, steps, 3e-3), frames=clip)


def given_frames(stage: Stage, latents: Tensor, name: str) -> Callable[[list[torch.Generator]], Conditions]:
    """Context of a training clip: 0, 1 or 2 first frames, or both ends, with noise of a known level."""
    many = latents.repeat(BATCH, 1, 1, 1, 1)

    def tell(random: list[torch.Generator]) -> Conditions:
        if name == "keyframes":
            return Conditions()
        mask = (
            prediction_mask(draw_num_context(random), NUM_FRAMES)
            if name == "prediction"
            else interpolation_mask(BATCH, NUM_FRAMES)
        )
        level = draw_levels(250, random)
        noise = torch.cat([torch.randn(latents.shape, generator=own) for own in random])
        return Conditions(context=noisy_context(many, mask, level, noise, stage.schedule), context_level=level)

    return tell


def learn_latent_stage(name: str, latents: Tensor, decoder: VideoDecoder, steps: int) -> Learnt:
    """Train a stage on the clip's latents and let it make the clip again, from what it is given."""
    stage = make_stage(name, (HEIGHT, WIDTH))
    learnt = learn_stage(stage, latents, given_frames(stage, latents, name), steps)
    stage.network.requires_grad_(False)
    nothing = Conditions(), Conditions()
    if name == "keyframes":
        states = stages.keyframes(stage, *nothing, SAMPLING, tuple(latents.shape))
    elif name == "prediction":
        states = stages.predict(stage, latents[:, :1], *nothing, SAMPLING, NUM_FRAMES)
    else:
        states = stages.interpolate(stage, latents[:, [0, -1]], *nothing, SAMPLING)
    learnt.frames = torch.cat(list(stages.decode(decoder, stages.finish(states))), dim=1)
    return learnt


def learn_upsampler(clip: Tensor, steps: int) -> Learnt:
    """Train on patches of the clip and upsample all of its 8x16 pixels four times."""
    stage = make_stage("upsampler", (PATCH, PATCH))
    low = rearrange(functional.avg_pool2d(clip[0], 4), "t c H W -> 1 t c H W")
    part = PATCH // 4
    places = [(top, left) for top in range(low.shape[3] - part + 1) for left in range(low.shape[4] - part + 1)]

    def loss(step: int) -> Tensor:
        random = [torch.Generator().manual_seed(BATCH * (step + 100) + index) for index in range(BATCH)]
        chosen = [places[int(torch.randint(len(places), (), generator=own))] for own in random]
        small = torch.cat([low[..., top : top + part, left : left + part] for top, left in chosen])
        patches = torch.cat([clip[..., 4 * top :, 4 * left :][..., :PATCH, :PATCH] for top, left in chosen])
        timestep, noise = draw_noise(stage.schedule, patches, random)
        told, _ = with_low_resolution(stage, small, (Conditions(), Conditions()), (PATCH, PATCH), step, 0)
        return denoising_loss(
            lambda noisy, at: stage.network(noisy, at, told), patches, stage.schedule, timestep, noise
        ).mean()

    before, after = learn(stage.network, loss, steps, 3e-3)
    stage.network.requires_grad_(False)
    states = stages.upsample(stage, low, Conditions(), Conditions(), SAMPLING)
    return Learnt(before, after, stages.finish(states).clamp(-1, 1))


def psnr(frames: Tensor, clip: Tensor) -> float:
    return float(-10 * torch.log10(((frames - clip) / 2).square().mean()))


def draw(out: Path, steps: int) -> None:
    """Train every stage and write a contact sheet: the clip, then a row for each stage."""
    torch.set_num_threads(1)
    clip = driving_clip()
    rows = [clip]

    def show(name: str, learnt: Learnt) -> None:
        fall = f"{learnt.before:.3f} -> {learnt.after:.4f}, {learnt.before / learnt.after:.0f} times smaller"
        print(f"{name:14} loss {fall}; {psnr(learnt.frames, clip):.1f} dB", flush=True)
        rows.append(learnt.frames)
        out.write_bytes(contact_sheet([to_uint8(frames[0]) for frames in rows], columns=NUM_FRAMES, scale=4))

    decoded, decoder = learn_decoder(clip, steps // 2)
    show("decoder", decoded)
    show("upsampler", learn_upsampler(clip, steps))
    for name in ("keyframes", "prediction", "interpolation"):
        show(name, learn_latent_stage(name, latents_of(decoder, clip), decoder, steps))


@torch.no_grad()
def latents_of(decoder: VideoDecoder, clip: Tensor) -> Tensor:
    mean = decoder.vae.encode(clip[0]).latent_dist.mean[None]
    return latent_scaling(decoder.vae).normalise(mean).contiguous()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
