"""What is made to evaluate a checkpoint, and what is said of it."""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from pipelines.metrics import clip
from pipelines.metrics.boxes import BoxAgreement, add_frame
from pipelines.metrics.inception_score import inception_score
from pipelines.networks import BOXES, UPSAMPLER, Networks
from pipelines.stages import UPSAMPLING
from training.evaluation.figures import Figure, Skipped
from training.evaluation.gathered import OTHER_REAL, REAL, Gathered
from training.evaluation.makers import Way
from training.evaluation.measuring import PROBABILITIES, Job, Kind
from training.evaluation.reference import Window, large_boxes

Part = Literal["clips", "per-frame", "decoder", "interpolation", "upsampler", "rollout", "boxes"]
PARTS: tuple[Part, ...] = get_args(Part)

VIDEO, PER_FRAME = "video model", "image model per frame"
DECODED, DECODED_PER_FRAME = "decoder, temporal", "decoder, image-only"
INTERPOLATED, BLENDED = "interpolation, model", "interpolation, blending"
UPSAMPLED, UPSAMPLED_PER_FRAME = "upsampler, temporal", "upsampler, per frame"
LARGE, OTHER_LARGE = "large real", "large real, other half"
ROLLOUT, FROM_BOXES = "roll-out", "from boxes"
FINE, OTHER_FINE = f"{REAL}, fine", f"{OTHER_REAL}, fine"
FINE_SETS = (FINE, OTHER_FINE, DECODED, DECODED_PER_FRAME, INTERPOLATED, BLENDED)
LARGE_SETS = (LARGE, OTHER_LARGE, UPSAMPLED, UPSAMPLED_PER_FRAME)
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Real clips in two sets of equal size, of different videos."""

    one: Sequence[Window]
    other: Sequence[Window]


@dataclass(frozen=True, kw_only=True)
class RealClips:
    """What there is to compare with.

    Attributes:
        clips: at the rate of the generated ones.
        fine: at the rate of video, for decoder and interpolation; 4 n + 1 frames each.
        large: of the upsampler's size.
        rollouts: how many long clips are made.
    """

    clips: Halves
    fine: Halves | None = None
    large: Halves | None = None
    rollouts: int = 0


def plan_jobs(networks: Networks, parts: Sequence[Part], real: RealClips) -> tuple[list[Job], list[Skipped]]:
    """Every clip to make and measure; of the parts that cannot be measured, why not."""
    # The generated clips take the labels of the real clips they are not compared with.
    jobs = [*_jobs("real", REAL, real.clips.one), *_jobs("real", OTHER_REAL, real.clips.other)]
    if real.fine is not None:
        jobs += [*_jobs("real", FINE, real.fine.one), *_jobs("real", OTHER_FINE, real.fine.other)]
    skipped = []
    for part in PARTS:
        if part in parts:
            found = _PLANS[part](networks, real)
            if isinstance(found, str):
                skipped.append(Skipped(name=part, why=found))
            else:
                jobs += found
    return jobs, skipped


def _plan_decoder(networks: Networks, real: RealClips) -> list[Job] | str:
    if not networks.has("decoder"):
        return "the checkpoint has no temporal decoder"
    return _two_ways("decoder", (DECODED, DECODED_PER_FRAME), real.fine, "per frame")


def _plan_interpolation(networks: Networks, real: RealClips) -> list[Job] | str:
    if "interpolation" not in networks.stage_names():
        return "the checkpoint has no interpolation stage"
    return _two_ways("interpolation", (INTERPOLATED, BLENDED), real.fine, "blended")


def _plan_upsampler(networks: Networks, real: RealClips) -> list[Job] | str:
    if not networks.has(f"temporal/{UPSAMPLER}"):
        return "the checkpoint has no upsampler"
    if real.large is None:
        return "give videos of four times the size by --large-corpus"
    jobs = [*_jobs("real", LARGE, real.large.one), *_jobs("real", OTHER_LARGE, real.large.other)]
    jobs += _two_ways("upsampler", (UPSAMPLED, UPSAMPLED_PER_FRAME), real.large, "per frame")
    return [replace(job, scale=UPSAMPLING) for job in jobs]


def _plan_rollout(networks: Networks, real: RealClips) -> list[Job] | str:
    if "prediction" not in networks.stage_names():
        return "the checkpoint has no prediction stage"
    return list(_jobs("rollout", ROLLOUT, real.clips.other[: real.rollouts]))


def _plan_boxes(networks: Networks, real: RealClips) -> list[Job] | str:
    if not networks.has(BOXES):
        return "the checkpoint has no box-conditioned image model"
    with_boxes = [window for window in map(large_boxes, real.clips.other) if window.boxes]
    return list(_jobs("boxes", FROM_BOXES, with_boxes)) or "the corpus has no boxes"


_PLANS: Mapping[Part, Callable[[Networks, RealClips], list[Job] | str]] = {
    "clips": lambda _, real: list(_jobs("clip", VIDEO, real.clips.other)),
    "per-frame": lambda _, real: list(_jobs("clip", PER_FRAME, real.clips.other, way="per frame")),
    "decoder": _plan_decoder,
    "interpolation": _plan_interpolation,
    "upsampler": _plan_upsampler,
    "rollout": _plan_rollout,
    "boxes": _plan_boxes,
}


def _two_ways(kind: Kind, sets: tuple[str, str], halves: Halves | None, way: Way) -> list[Job]:
    """Clips made again from the real ones they are compared with, with temporal layers and without."""
    assert halves is not None
    return [*_jobs(kind, sets[0], halves.one), *_jobs(kind, sets[1], halves.one, way=way)]


def make_figures(gathered: Gathered, terciles: tuple[float, float] | None) -> Iterator[Figure]:
    """Figures of every set that was made."""
    for of in (VIDEO, PER_FRAME):
        if of in gathered.sets:
            yield from gathered.distances(of)
            yield from _inception_score(gathered, of)
            yield from _labels(gathered, of, terciles)
            yield from _captions(gathered, of)
    yield from _flickers(gathered)
    for of in (DECODED, DECODED_PER_FRAME, INTERPOLATED, BLENDED):
        if of in gathered.sets:
            yield from gathered.distances(of, reference=FINE, floor=OTHER_FINE)
            yield from _differences(gathered, of)
    if UPSAMPLED in gathered.sets:
        for of in (UPSAMPLED, UPSAMPLED_PER_FRAME):
            yield from gathered.distances(of, reference=LARGE, floor=OTHER_LARGE)
            yield from _differences(gathered, of)
    if f"{ROLLOUT} first" in gathered.sets:
        for end in ("first", "last"):
            yield from gathered.distances(f"{ROLLOUT} {end}", floor=None)
    if FROM_BOXES in gathered.sets:
        yield from _boxes(gathered)
    yield from _ratios(gathered)


def _jobs(kind: Kind, of: str, windows: Sequence[Window], *, way: Way = "video") -> Iterator[Job]:
    for index, window in enumerate(windows):
        yield Job(kind=kind, of=of, index=index, window=window, way=way, keeps_frames=index < SHOWN)


def _labels(gathered: Gathered, of: str, terciles: tuple[float, float] | None) -> Iterator[Figure]:
    """Share of clips in which the reader finds the labels that were asked for, and in real clips those they have."""
    if not gathered.has("night", of, REAL):
        return
    for name, right in (("day or night right", _night_right), ("crowdedness tercile right", _tercile_right(terciles))):
        values, real = right(gathered, of), right(gathered, REAL)
        if values:
            floor = sum(real) / len(real) if real else None
            note = "read by the scene reader; the floor is its accuracy on real clips"
            yield gathered.mean(name, of, values, floor=floor, better="higher", note=note)


def _captions(gathered: Gathered, of: str) -> Iterator[Figure]:
    if gathered.has(clip.NAME, of, REAL):
        values, real = (torch.cat(gathered.clips(clip.NAME, one)).tolist() for one in (of, REAL))
        note = "the floor is that of real clips with their own captions"
        yield gathered.mean(clip.NAME, of, values, floor=sum(real) / len(real), better="higher", note=note)


def _inception_score(gathered: Gathered, of: str) -> Iterator[Figure]:
    if gathered.has(PROBABILITIES, of):
        score = inception_score(torch.cat(gathered.clips(PROBABILITIES, of)), num_splits=1)
        yield gathered.score("IS", of, score.mean, "inception-v3-fid")


def _night_right(gathered: Gathered, of: str) -> list[float]:
    pairs = zip(gathered.clips("asked", of), gathered.clips("night", of), strict=True)
    return [float((said[0] > 0.5).item() == bool(asked[0, 0])) for asked, said in pairs if asked[0, 0] >= 0]


def _tercile_right(terciles: tuple[float, float] | None) -> Callable[[Gathered, str], list[float]]:
    """Whether the reader sees the third of crowdedness that was asked for.

    A reader that has learned little says too few of many and too many of few. So its own thirds are taken from what it
    says of real clips: as many of these lie below an edge by its word as by their labels.
    """

    def right(gathered: Gathered, of: str) -> list[float]:
        if terciles is None:
            return []
        real = [pair for one in (REAL, OTHER_REAL) if gathered.has("count", one) for pair in _counts(gathered, one)]
        if not real:
            return []
        said = sorted(count for _, count in real)
        ranks = [sum(asked < edge for asked, _ in real) for edge in terciles]
        read = [(said[max(rank - 1, 0)] + said[min(rank, len(said) - 1)]) / 2 for rank in ranks]
        return [float(bisect(terciles, asked) == bisect(read, count)) for asked, count in _counts(gathered, of)]

    return right


def _counts(gathered: Gathered, of: str) -> list[tuple[float, float]]:
    """Crowdedness asked for and read, of the clips of which it was asked."""
    pairs = zip(gathered.clips("asked", of), gathered.clips("count", of), strict=True)
    return [(asked[0, 1].item(), said[0].item()) for asked, said in pairs if asked[0, 1] >= 0]


def _flickers(gathered: Gathered) -> Iterator[Figure]:
    real = gathered.clips("flicker", REAL) if gathered.has("flicker", REAL) else []
    floor = torch.cat(real).mean().item() if real else None
    for of in (VIDEO, PER_FRAME):
        if gathered.has("flicker", of):
            yield gathered.mean("flicker", of, torch.cat(gathered.clips("flicker", of)).tolist(), floor=floor)


def _differences(gathered: Gathered, of: str) -> Iterator[Figure]:
    for name in ("PSNR", "SSIM", "motion error", "ST-LPIPS-Alex", "ST-LPIPS-VGG"):
        if gathered.has(name, of):
            better = "higher" if name in ("PSNR", "SSIM") else "lower"
            yield gathered.mean(name, of, torch.cat(gathered.clips(name, of)).tolist(), better=better)


def _boxes(gathered: Gathered) -> Iterator[Figure]:
    """Share of given boxes that hold a vehicle: of each frame, then the mean over frames."""
    if not gathered.has("boxes", FROM_BOXES):
        return
    found, real = _agreements(gathered, FROM_BOXES), _agreements(gathered, OTHER_REAL)
    for name, values in (
        ("given boxes with a vehicle", [agreement.recall for agreement in found]),
        ("mean IoU of given boxes", [agreement.mean_iou for agreement in found]),
    ):
        known = [agreement.recall if "with" in name else agreement.mean_iou for agreement in real]
        floor = sum(known) / len(known) if known else None
        note = "found by the scene reader; the floor is what it finds of the boxes of real frames"
        yield gathered.mean(name, FROM_BOXES, values, floor=floor, better="higher", note=note)


def _agreements(gathered: Gathered, of: str) -> list[BoxAgreement]:
    """Given boxes against those found, of every frame that has given boxes."""
    agreements = []
    for result in gathered.sets.get(of, []):
        given = result.numbers.get("given boxes", torch.zeros(0, 4))
        if len(given):
            found = result.numbers["boxes"]
            with_area = found[(found[:, 2:] > found[:, :2]).all(dim=1)]
            agreements.append(add_frame(BoxAgreement(), given, with_area.to(given)))
    return agreements


def _ratios(gathered: Gathered) -> Iterator[Figure]:
    for name, network, above, below, reference in (
        ("FVD ratio", "i3d-kinetics400", DECODED_PER_FRAME, DECODED, FINE),
        ("FVD ratio", "i3d-kinetics400", UPSAMPLED_PER_FRAME, UPSAMPLED, LARGE),
        ("FVD ratio", "i3d-kinetics400", PER_FRAME, VIDEO, REAL),
        ("FVD ratio", "i3d-kinetics400", VIDEO, OTHER_REAL, REAL),
        ("FD-EffLite0 ratio", "efficientnet-lite0", f"{ROLLOUT} last", f"{ROLLOUT} first", REAL),
    ):
        found = gathered.ratio(network, above, below, reference=reference)
        if found is not None:
            yield gathered.ratio_figure(name, network, f"{above} / {below}", found, above)
