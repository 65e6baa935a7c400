"""Model presets: one function per system, named after the table of the paper it mirrors.

A preset says what the networks are and how they are sampled; how they are trained stands in `training.presets`.
`paper=True` gives the published choices; otherwise the departures that later work found better are on: zero terminal
SNR, noise of a known level on given frames, DPM-Solver++ in place of 200 DDIM steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from pipelines.config import ModelPreset, StageConfig, StageName, UpsamplerPreset
from pipelines.diffusion.noise import NoiseConfig
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models import architectures
from pipelines.models.temporal import TemporalConfig
from pipelines.tiny_presets import tiny_driving, tiny_mountain_biking, tiny_text_to_video


def tiny() -> ModelPreset:
    """The smallest system that shows something: 64x128 frames, trained within minutes on two cores."""
    return ModelPreset(
        name="tiny",
        condition="scene",
        autoencoder=architectures.small_autoencoder((32, 48, 64, 64), groups=16),
        unet=architectures.small_unet((64, 128), (8, 16), attention=2),
        stages={
            "keyframes": StageConfig(
                temporal=TemporalConfig(mix="scalar", cross_attention_dim=None),
                noise=NoiseConfig(prediction="v_prediction", zero_terminal_snr=True),
                sampler=SamplerConfig(name="ddim", num_steps=25),
                guidance_scale=1.0,
                num_frames=8,
                fps=4.0,
                height=64,
                width=128,
            )
        },
    )


def synthetic_driving() -> ModelPreset:
    """The driving model in miniature, for synthetic driving at 128x256: what hours on two cores can train.

    Twice the usual latent channels: an autoencoder of this size puts no colour into four.
    """
    channels = 8
    noise = NoiseConfig(prediction="v_prediction", beta_start=0.0015, beta_end=0.0195, zero_terminal_snr=True)
    prediction = StageConfig(
        temporal=TemporalConfig(
            mix="scalar",
            cross_attention_dim=None,
            context_channels=channels + 1,
            context_width=16,
            embeds_context_level=True,
        ),
        noise=noise,
        sampler=SamplerConfig(name="dpm_solver", num_steps=25),
        guidance_scale=3.0,
        num_frames=8,
        fps=1.875,
        height=128,
        width=256,
        context_level=30,
    )
    interpolation = replace(
        prediction,
        temporal=replace(prediction.temporal, cross_attention_dim=64, embeds_fps=True),
        sampler=SamplerConfig(name="dpm_solver", num_steps=15),
        guidance_scale=1.0,
        num_frames=5,
        fps=30.0,
    )
    upsampler = StageConfig(
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3, context_width=8),
        noise=NoiseConfig(prediction="v_prediction", beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True),
        sampler=SamplerConfig(name="dpm_solver", num_steps=3),
        guidance_scale=1.0,
        num_frames=8,
        fps=7.5,
        height=64,
        width=64,
        context_level=5,
        low_deviation=0.1,
    )
    return ModelPreset(
        name="synthetic-driving",
        condition="scene",
        autoencoder=architectures.small_autoencoder((16, 32, 64, 96), groups=4, latent_channels=channels),
        unet=architectures.small_unet((64, 96, 96), (16, 32), attention=2, groups=8, latent_channels=channels),
        stages={"prediction": prediction, "interpolation": interpolation},
        upsampler=UpsamplerPreset(
            unet=architectures.small_upsampler_unet(), autoencoder=None, stage=upsampler, noise_level=120
        ),
    )


def driving(*, paper: bool = False) -> ModelPreset:
    """The driving model, 128x256 upsampled to 512x1024 (tables 6 and 8)."""
    noise = _departs(NoiseConfig(prediction="v_prediction", beta_start=0.0015, beta_end=0.0195), paper)
    prediction = StageConfig(
        temporal=TemporalConfig(
            mix="per_frame", num_frames=10, cross_attention_dim=None, context_channels=5, embeds_context_level=not paper
        ),
        noise=noise,
        sampler=_sampler(200, 1.0, paper),
        guidance_scale=2.0,
        num_frames=10,
        fps=2.0,
        height=128,
        width=256,
        context_level=None if paper else 30,
    )
    upsampler = StageConfig(
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3),
        noise=_departs(NoiseConfig(prediction="v_prediction", beta_start=1e-4, beta_end=0.02), paper),
        sampler=_sampler(50, 1.0, paper),
        guidance_scale=1.0,
        num_frames=8,
        fps=4.0,
        height=256,
        width=256,
        context_level=150,
    )
    return ModelPreset(
        name="driving-paper" if paper else "driving",
        condition="scene",
        autoencoder=architectures.driving_autoencoder(),
        unet=architectures.driving_unet(),
        stages={"prediction": prediction, "interpolation": _label_interpolation(prediction, 50, paper)},
        upsampler=UpsamplerPreset(unet=architectures.driving_upsampler_unet(), autoencoder=None, stage=upsampler),
    )


def mountain_biking(*, paper: bool = False) -> ModelPreset:
    """The mountain-biking model, 128x256, without conditions (tables 6 and 8); its data is public."""
    noise = _departs(NoiseConfig(prediction="v_prediction", beta_start=0.0003, beta_end=0.022), paper)
    prediction = StageConfig(
        temporal=TemporalConfig(
            mix="per_frame", num_frames=8, cross_attention_dim=None, context_channels=5, embeds_context_level=not paper
        ),
        noise=noise,
        sampler=_sampler(100, 1.0, paper),
        guidance_scale=2.0,
        num_frames=8,
        fps=1.875,
        height=128,
        width=256,
        context_level=None if paper else 30,
    )
    interpolation = replace(_label_interpolation(prediction, 50, paper), guidance_scale=1.0)
    return ModelPreset(
        name="mountain-biking-paper" if paper else "mountain-biking",
        condition="nothing",
        autoencoder=architectures.biking_autoencoder(),
        unet=architectures.biking_unet(),
        stages={"prediction": prediction, "interpolation": interpolation},
    )


def text_to_video(*, paper: bool = False, stable_diffusion: Literal["1.4", "2.1"] = "2.1") -> ModelPreset:
    """Stable Diffusion as a video model, 320x512 upsampled to 1280x2048 (tables 6 and 8).

    The noise is the backbone's: its `scheduler/` folder decides, here that of the published base model.
    """
    unet = architectures.sd21_unet() if stable_diffusion == "2.1" else architectures.sd14_unet()
    width = int(unet["cross_attention_dim"])
    noise = NoiseConfig(prediction="epsilon", beta_start=0.00085, beta_end=0.012)
    keyframes = StageConfig(
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=width),
        noise=noise,
        sampler=_sampler(250, 1.0, paper),
        guidance_scale=8.0,
        num_frames=8,
        fps=2.0,
        height=320,
        width=512,
    )
    # Image first, then animate it: preferred to direct generation at equal data (Emu Video, arXiv 2311.10709).
    # Guidance takes text and first frame away together, as Stable Video Diffusion does with up to 3.0 (appendix D.4.1).
    prediction = replace(
        keyframes,
        temporal=replace(keyframes.temporal, context_channels=5, embeds_context_level=True),
        guidance_scale=3.0,
        context_level=30,
    )
    interpolation = replace(
        keyframes,
        temporal=TemporalConfig(
            mix="scalar", cross_attention_dim=width, embeds_fps=True, embeds_context_level=True, input_concat=True
        ),
        sampler=_sampler(100, 1.0, paper),
        guidance_scale=13.0,
        num_frames=5,
        fps=30.0,
        context_level=0,
    )
    upsampler = StageConfig(
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=1024, context_channels=3),
        noise=NoiseConfig(prediction="v_prediction", beta_start=1e-4, beta_end=0.02),
        sampler=_sampler(250, 1.0, paper),
        guidance_scale=2.0,
        num_frames=8,
        fps=2.0,
        height=320,
        width=320,
        context_level=30,
    )
    stages: dict[StageName, StageConfig] = {"keyframes": keyframes, "interpolation": interpolation}
    name = "text-to-video" if stable_diffusion == "2.1" else "text-to-video-sd14"
    return ModelPreset(
        name=f"{name}-paper" if paper else name,
        condition="text",
        autoencoder=architectures.sd_autoencoder(),
        unet=unet,
        stages=stages if paper else {**stages, "prediction": prediction},
        upsampler=UpsamplerPreset(
            unet=architectures.x4_unet(), autoencoder=architectures.x4_autoencoder(), stage=upsampler
        ),
    )


PRESETS: Mapping[str, Callable[[], ModelPreset]] = {
    "tiny": tiny,
    "synthetic-driving": synthetic_driving,
    "driving": driving,
    "driving-paper": partial(driving, paper=True),
    "mountain-biking": mountain_biking,
    "mountain-biking-paper": partial(mountain_biking, paper=True),
    "text-to-video": text_to_video,
    "text-to-video-paper": partial(text_to_video, paper=True),
    "text-to-video-sd14": partial(text_to_video, stable_diffusion="1.4"),
    "text-to-video-sd14-paper": partial(text_to_video, paper=True, stable_diffusion="1.4"),
    "tiny-driving": tiny_driving,
    "tiny-mountain-biking": tiny_mountain_biking,
    "tiny-text-to-video": tiny_text_to_video,
}


def _label_interpolation(prediction: StageConfig, num_steps: int, paper: bool) -> StageConfig:
    """Interpolation beside a prediction model: five frames, the frame rate as the only token of 512."""
    temporal = TemporalConfig(
        mix="per_frame",
        num_frames=5,
        cross_attention_dim=512,
        context_channels=5,
        embeds_fps=True,
        embeds_context_level=not paper,
    )
    sampler = _sampler(num_steps, 0.0, paper)
    return replace(prediction, temporal=temporal, sampler=sampler, num_frames=5, fps=30.0)


def _departs(noise: NoiseConfig, paper: bool) -> NoiseConfig:
    return noise if paper else replace(noise, zero_terminal_snr=True)


def _sampler(paper_steps: int, paper_eta: float, paper: bool) -> SamplerConfig:
    """The paper's DDIM, or DPM-Solver++ with a tenth of its steps (at least 20)."""
    if paper:
        return SamplerConfig(name="ddim", num_steps=paper_steps, eta=paper_eta, spacing="leading", steps_offset=1)
    return SamplerConfig(name="dpm_solver", num_steps=max(20, paper_steps // 10))
