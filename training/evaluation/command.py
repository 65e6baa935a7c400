"""What `python -m training evaluate` does, whoever carries the jobs out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import tyro

from infra.cli import ExitCode
from infra.storage import sha256_of
from pipelines.configs import to_json
from pipelines.digests import network_digest
from pipelines.metrics import clip
from pipelines.metrics.extractors import EXTRACTORS, available
from pipelines.networks import Networks
from pipelines.shards import open_shards
from training.evaluation import suite
from training.evaluation.figures import Evaluation, Skipped, show
from training.evaluation.gathered import Gathered
from training.evaluation.kept import KeptResults, with_kept
from training.evaluation.makers import Making
from training.evaluation.measuring import NETWORKS, Job, Result, Settings
from training.evaluation.page import write_page
from training.evaluation.reader import PRETRAINED
from training.evaluation.reference import MAX_FPS, Video, Window, find_videos, halves, longest_clip
from training.evaluation.suite import PARTS, Halves, Part, RealClips

WEIGHTS = Path(".cache/weights")
Run = Callable[[Settings, Sequence[Job]], Iterable[tuple[int, list[Result]]]]
"""Carries out jobs, in any order: the number of each with its results."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Sample a checkpoint and measure it against real clips.

    Attributes:
        checkpoint: checkpoint folder, local or s3://.
        corpus: folder of real videos to compare with, which training has not seen; its labels.parquet gives the labels.
        fine_corpus: folder of videos at the rate of video, for decoder and interpolation; default the corpus.
        shards: check that the checkpoint's autoencoder is that of these latent shards.
        out: folder for evaluation.json, index.html, clips and sheets.
        kept: folder where what was measured is kept, local or s3://, to be taken up by a later run; default none.
        parts: of the system to measure.
        clips: clips of every set.
        frames: longest clip; the corpus may give less.
        fine_frames: the same at the rate of video; 4 n + 1 of them are taken.
        interpolate: interpolate key frames twice before they are compared.
        unlabelled: ask for clips without labels.
        from_image: let the image model make the first frame.
        large_corpus: folder of videos four times as large, for the upsampler; their middle is taken.
        rollouts: long clips.
        minutes: length of each.
        steps: denoising steps; default the checkpoint's.
        guidance_scale: default the checkpoint's.
        backbone: diffusers folder with another image model for the same temporal layers.
        weights: folder with the networks of measurement (`make weights`).
        reader: the scene reader (`python -m training reader`); default the one that ships.
        clip: folder of a CLIP model with its tokenizer, for CLIPSIM; the corpus gives the captions.
        resamples: of every bootstrap interval.
        seed: of the generated clips.
        workers: processes that sample and measure; 0 does it here, without Ray.
        threads: CPU threads of each.
        device: such as cpu or cuda.
    """

    checkpoint: str
    corpus: Path
    fine_corpus: Path | None = None
    shards: str | None = None
    out: Path = Path("out/evaluation")
    kept: str | None = None
    parts: tuple[Part, ...] = PARTS
    clips: int = 64
    frames: int = 16
    fine_frames: int = 17
    interpolate: bool = False
    unlabelled: bool = False
    from_image: bool = False
    large_corpus: Path | None = None
    rollouts: int = 8
    minutes: float = 1.0
    steps: int | None = None
    guidance_scale: float | None = None
    backbone: str | None = None
    weights: Path = WEIGHTS
    reader: Path | None = None
    clip: Path | None = None
    resamples: int = 100
    seed: int = 0
    workers: int = 2
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.clips < 2 or self.frames < 1:
            raise ValueError(f"clips={self.clips}, frames={self.frames}; use 2 or more clips of 1 frame or more")


@dataclass(frozen=True)
class Scope:
    """What follows from arguments, checkpoint and corpus before anything is sampled."""

    settings: Settings
    jobs: list[Job]
    skipped: list[Skipped]
    fps: float
    terciles: tuple[float, float] | None
    rates: dict[str, float] = field(default_factory=dict)


def parse(arguments: Sequence[str]) -> Arguments:
    """Read a command line."""
    return tyro.cli(Arguments, args=list(arguments), prog="python -m training evaluate")


def evaluate(arguments: Arguments, run: Run) -> ExitCode:
    """Sample, measure, print and write."""
    evaluation, gathered, scope = measure(arguments, run)
    report(arguments.out, evaluation, gathered, scope)
    print(show(evaluation))
    print(f"written to {arguments.out}: evaluation.json, index.html")
    return ExitCode.DONE


def report(out: Path, evaluation: Evaluation, gathered: Gathered, scope: Scope) -> None:
    """Write figures and page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(evaluation.to_json())
    shown = {
        of: [result.frames for result in results if result.frames is not None] for of, results in gathered.sets.items()
    }
    write_page(out, evaluation, shown, {of: scope.rates.get(of, scope.fps) for of in shown})


def measure(arguments: Arguments, run: Run) -> tuple[Evaluation, Gathered, Scope]:
    """Sample and measure.

    Raises:
        ValueError: if checkpoint, shards and corpus do not fit together.
    """
    networks = Networks(arguments.checkpoint, device=arguments.device, backbone=arguments.backbone)
    if arguments.shards is not None:
        _check_shards(networks, arguments.shards)
    loaded, missing = available(NETWORKS, arguments.weights)
    digests = {name: extractor.digest for name, extractor in loaded.items()}
    resizes = {}
    if arguments.clip is not None:
        similarity = clip.ClipSimilarity(arguments.clip)
        digests[clip.NAME], resizes[clip.NAME] = similarity.digest, similarity.resize_rule
    scope = plan(arguments, networks)
    gathered = Gathered(
        chain.from_iterable(results for _, results in _carry_out(arguments, networks, scope, digests, run)),
        fps=scope.fps,
        rates=scope.rates,
        digests=digests,
        resizes=resizes,
        resamples=arguments.resamples,
    )
    skipped = [*scope.skipped, *(Skipped(name=name, why=why) for name, why in missing.items())]
    skipped += _skipped(scope, loaded)
    evaluation = Evaluation(
        checkpoint=f"{networks.manifest.name} {networks.manifest.digest()[:12]}",
        figures=tuple(suite.make_figures(gathered, scope.terciles)),
        skipped=tuple(skipped),
        settings=to_json(arguments),
    )
    return evaluation, gathered, scope


def plan(arguments: Arguments, networks: Networks) -> Scope:
    """Choose the real clips and list all jobs."""
    config = networks.first_config()
    videos = find_videos(arguments.corpus)
    fps = Fraction(config.fps).limit_denominator(1001) * (16 if arguments.interpolate else 1)
    frames = longest_clip(videos, fps, arguments.frames)
    size = (config.height, config.width)
    clips = Halves(**_halves(videos, arguments.clips, frames, fps))
    rates: dict[str, float] = {}
    fine = large = None
    if {"decoder", "interpolation"} & set(arguments.parts):
        fine, rate = _full_rate(arguments.fine_corpus or arguments.corpus, arguments)
        rates |= dict.fromkeys(suite.FINE_SETS, rate)
    if "upsampler" in arguments.parts and arguments.large_corpus is not None:
        large, rate = _full_rate(arguments.large_corpus, arguments)
        rates |= dict.fromkeys(suite.LARGE_SETS, rate)
    real = RealClips(clips=clips, fine=fine, large=large, rollouts=arguments.rollouts)
    jobs, skipped = suite.plan_jobs(networks, arguments.parts, real)
    settings = Settings(
        checkpoint=arguments.checkpoint,
        backbone=arguments.backbone,
        weights=arguments.weights,
        reader=arguments.reader or PRETRAINED,
        clip=arguments.clip,
        size=size,
        making=Making(
            num_frames=frames,
            interpolates=arguments.interpolate,
            is_conditional=not arguments.unlabelled,
            from_image=arguments.from_image,
            num_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
        ),
        upsampler_steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads,
    )
    return Scope(settings, jobs, skipped, float(fps), _terciles(videos), rates)


def _carry_out(
    arguments: Arguments, networks: Networks, scope: Scope, digests: dict[str, str], run: Run
) -> Iterable[tuple[int, list[Result]]]:
    if arguments.kept is None:
        return run(scope.settings, scope.jobs)
    reader = scope.settings.reader
    measuring = {**digests, "reader": sha256_of(reader) if reader.is_file() else ""}
    kept = KeptResults(arguments.kept, networks.manifest, scope.settings, measuring)
    return with_kept(kept, scope.jobs, partial(run, scope.settings))


def _full_rate(corpus: Path, arguments: Arguments) -> tuple[Halves, float]:
    """Clips of 4 n + 1 frames at the videos' own rate: what interpolation makes of n + 1 key frames."""
    videos = find_videos(corpus)
    fps = min(Fraction(MAX_FPS), *(video.info.fps for video in videos))
    frames = longest_clip(videos, fps, arguments.fine_frames)
    return Halves(**_halves(videos, arguments.clips, max(frames - (frames - 1) % 4, 1), fps)), float(fps)


def _halves(videos: Sequence[Video], count: int, frames: int, fps: Fraction) -> dict[str, list[Window]]:
    one, other = halves(videos, count=count, num_frames=frames, fps=fps)
    return {"one": one, "other": other}


def _terciles(videos: Sequence[Video]) -> tuple[float, float] | None:
    """Vehicle counts between which the middle third of the labelled videos lies, halfway between two counts."""
    counts = sorted(video.labels["crowdedness"] for video in videos if video.labels)
    if len(counts) < 3:
        return None
    return counts[len(counts) // 3] - 0.5, counts[2 * len(counts) // 3] - 0.5


def _check_shards(networks: Networks, uri: str) -> None:
    shards, own = open_shards(uri), network_digest(networks.folder / "backbone" / "vae")
    if shards.config.autoencoder_digest != own:
        raise ValueError(f"shards {uri!r} were not made with this checkpoint's autoencoder; give those that were")


def _skipped(scope: Scope, loaded: Iterable[str]) -> list[Skipped]:
    """Figures that the clips, not the networks, stood in the way of."""
    found: list[Skipped] = []
    frames = scope.settings.making.num_frames
    spec = EXTRACTORS["i3d-kinetics400"]
    if spec.name in loaded and frames < spec.min_frames:
        why = f"clips have {frames} frames and I3D needs {spec.min_frames}; give --frames 16 and longer videos"
        found.append(Skipped(name="FVD of generated clips", why=why))
    if scope.settings.clip is None:
        why = "needs a CLIP model, which no package ships; give its folder by --clip"
        found.append(Skipped(name=clip.NAME, why=why))
    if not scope.settings.reader.is_file():
        why = "no scene reader; train one: python -m training reader --corpus CORPUS"
        found.append(Skipped(name="label accuracy and box agreement", why=why))
    return found
