"""From a request to a video: image, key frames, roll-out, interpolation, decoding, upsampling, one after the other.

Latents of a whole clip are kept (8 kB a frame at 128x256); frames never are: they are decoded, upsampled and handed on
window by window, so that memory does not grow with the length. The networks of a stage are freed before the next.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines import stages
from pipelines.conditions import box_sides, image_and_video_sides, interpolation_sides, upsampler_sides
from pipelines.config import StageName
from pipelines.diffusion.windows import plan_rollout, window_starts
from pipelines.generation_plan import GAPS_AT_ONCE, SEGMENT_FRAMES, SEGMENT_OVERLAP, Plan, Request, sampling_of
from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.latent_space import latent_scaling, spatial_factor
from pipelines.networks import Networks, Stage
from pipelines.pixels import to_float, to_uint8
from pipelines.stage_inputs import Sides
from pipelines.stage_state import StageState
from pipelines.stages import Sampling
from pipelines.tensors import Frames, Latents, VideoFrames

Report = Callable[[str, float], None]
"""Called with the name of a stage and the share of its work that was just done."""

Longer = Float[Tensor, "b longer z h w"]
"""Latents of a clip that has grown."""

LONG_CLIP_WINDOW = 8
"""Frames that see each other when key frames are sampled beyond the trained length (appendix D)."""


class Generation:
    """One request, carried out for one seed after the other.

    Args:
        networks: of the checkpoint.
        request: what to make.
        plan: from `make_plan`.
        report: told of all progress.
    """

    def __init__(self, networks: Networks, request: Request, plan: Plan, report: Report) -> None:
        self.networks, self.request, self.plan, self.report = networks, request, plan, report

    def clips(self, seeds: Sequence[int]) -> Iterator[tuple[int, Iterator[VideoFrames]]]:
        """Make a clip of each seed; those that start from a picture share it, made with the first seed.

        Yields:
            Seed and frames of each clip, in parts as they are finished.
        """
        with torch.inference_mode():
            sides = image_and_video_sides(self.networks, self.request.wish)
            latents = self._interpolated(self._keyframes(sides, seeds), sides, seeds)
        for seed, clip in zip(seeds, latents, strict=True):
            yield seed, self._frames(clip, seed)

    def _keyframes(self, sides: Sides, seeds: Sequence[int]) -> list[Latents]:
        plan = self.plan
        if plan.start == "keyframes":
            clips = self._sampled_keyframes(sides, seeds)
        elif plan.start == "prediction":
            shape = self.networks.latent_shape(self.networks.stage_config("prediction"), 0, size=plan.size)
            clips = [torch.zeros(shape, device=self.networks.device)] * len(seeds)
        else:
            clips = [self._first_frame(sides, seeds[0])] * len(seeds)
        if not plan.rolls_out and plan.start != "prediction":
            return clips
        stage = self.networks.stage("prediction")
        rolled = [self._rolled_out(stage, clip, sides, seed) for clip, seed in zip(clips, seeds, strict=True)]
        stage.network.remove()
        return rolled

    def _sampled_keyframes(self, sides: Sides, seeds: Sequence[int]) -> list[Latents]:
        config, wanted = self.networks.stage_config("keyframes"), self.plan.started_frames
        num_frames = config.num_frames if config.temporal.mix == "per_frame" else wanted
        is_long = num_frames > config.num_frames
        stage = self.networks.stage("keyframes", attention_window=LONG_CLIP_WINDOW if is_long else None)
        shape = self.networks.latent_shape(config, num_frames, size=self.plan.size)
        clips = []
        for seed in seeds:
            sampling = self._sampling("keyframes", seed)
            steps = stages.keyframes(stage, *sides, sampling, shape)
            clips.append(self._follow(steps, "keyframes", sampling.sampler.num_steps)[:, :wanted])
        stage.network.remove()
        return clips

    def _first_frame(self, sides: Sides, seed: int) -> Latents:
        """The first frame: given, or made by an image model from boxes or from what the video models are told."""
        networks, request = self.networks, self.request
        if request.picture is not None:
            frames = to_float(request.picture)[None].to(networks.device, networks.dtype)
            moments = encode_moments(networks.autoencoder, frames)
            return sample_latents(moments, latent_scaling(networks.autoencoder), None)
        shape = networks.latent_shape(networks.first_config(), 1, size=self.plan.size)
        if self.plan.start == "boxes":
            stage, sides = networks.box_stage(), box_sides(networks, request.wish, shape[-2:])
        else:
            stage = networks.image_stage()
        name: StageName = "keyframes" if "keyframes" in networks.stage_names() else "prediction"
        sampling = self._sampling(name, seed)
        return self._follow(stages.keyframes(stage, *sides, sampling, shape), "image", sampling.sampler.num_steps)

    def _rolled_out(self, stage: Stage, clip: Latents, sides: Sides, seed: int) -> Longer:
        """Go on from a clip's last two frames (or its only one, or none) to the planned number of key frames."""
        sampling = self._sampling("prediction", seed)
        kept, given = clip[:, :-2], clip[:, -2:]
        wanted = self.plan.num_keyframes - kept.shape[1]
        # Equation 4 leaves scenes in both terms; a roll-out that is guided towards both keeps to its scene.
        keeps_scene = self.request.paper_mode and self.networks.condition_kind != "text"
        unconditional = sides[0] if keeps_scene else sides[1]
        windows = plan_rollout(wanted, stage.config.num_frames, given.shape[1])
        steps = stages.predict(stage, given, sides[0], unconditional, sampling, wanted)
        rest = self._follow(steps, "prediction", len(windows) * sampling.sampler.num_steps)
        return torch.cat([kept, rest[:, :wanted]], dim=1)

    def _interpolated(self, clips: list[Latents], sides: Sides, seeds: Sequence[int]) -> list[Longer]:
        if not self.plan.rates:
            return clips
        stage = self.networks.stage("interpolation")
        gaps = [(clips[0].shape[1] - 1) * 4**done for done in range(self.plan.passes)]
        batches = sum(-(-number // GAPS_AT_ONCE) for number in gaps)
        longer = list(clips)
        for fps in self.plan.rates:
            own = interpolation_sides(stage, sides, fps)
            for index, seed in enumerate(seeds):
                sampling = self._sampling("interpolation", seed)
                steps = stages.interpolate(stage, longer[index], *own, sampling, gaps_at_once=GAPS_AT_ONCE)
                longer[index] = self._follow(steps, "interpolation", batches * sampling.sampler.num_steps)
        stage.network.remove()
        return longer

    @torch.inference_mode()
    def _frames(self, latents: Latents, seed: int) -> Iterator[VideoFrames]:
        frames = self._decoded(latents[:, : self.plan.num_frames])
        if self.plan.upsamples:
            frames = self._upsampled(frames, seed)
        for part in frames:
            yield to_uint8(part[0])

    def _decoded(self, latents: Latents) -> Iterator[Frames]:
        for frames in stages.decode(self.networks.decoder, latents):
            self.report("decode", frames.shape[1] / latents.shape[1])
            yield frames

    def _upsampled(self, frames: Iterator[Frames], seed: int) -> Iterator[Frames]:
        """Upsample segment by segment, each given the frames it shares with the one before."""
        networks, num_frames = self.networks, self.plan.num_frames
        stage, vae = networks.stage("upsampler"), networks.upsampler_autoencoder
        sides, sampling = upsampler_sides(networks, self.request.wish), self._sampling("upsampler", seed)
        starts = window_starts(num_frames, SEGMENT_FRAMES, SEGMENT_OVERLAP)
        single = (frame for part in frames for frame in torch.split(part, 1, dim=1))
        low: list[Frames] = []
        before: Latents | None = None
        end = 0
        for start in starts:
            shared = end - start
            low = low[len(low) - shared :] + list(islice(single, SEGMENT_FRAMES - shared))
            known = None if before is None else before[:, before.shape[1] - shared :]
            factor = 1 if vae is None else spatial_factor(vae)
            steps = stages.upsample(
                stage, torch.cat(low, dim=1), *sides, sampling, factor=factor, known=known, first_frame=start
            )
            before = self._follow(steps, "upsample", len(starts) * sampling.sampler.num_steps)
            new = before[:, shared:]
            yield from [new.clamp(-1, 1)] if vae is None else stages.decode(vae, new, window=1)
            end = start + before.shape[1]
        stage.network.remove()

    def _sampling(self, stage: StageName, seed: int) -> Sampling:
        name = self.networks.manifest.name
        return sampling_of(name, self.networks.stage_config(stage), stage, self.request, seed)

    def _follow(self, states: Iterator[StageState], stage: str, count: int) -> Latents:
        done = None
        for state in states:
            self.report(stage, 1 / count)
            done = state.done
        assert done is not None
        return done
