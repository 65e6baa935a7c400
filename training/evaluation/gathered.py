"""The numbers of many clips, set by set, and the figures made of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.metrics.bootstrap import Interval, bootstrap_interval
from pipelines.metrics.extractors import EXTRACTORS, Extractor
from pipelines.metrics.frechet import distance_between
from pipelines.metrics.kernel import polynomial_mmd
from pipelines.randomness import generator
from training.evaluation.figures import Figure
from training.evaluation.measuring import Result

RESAMPLES = 100

REAL, OTHER_REAL = "real", "real, other half"
FRAME_DISTANCES = {
    "efficientnet-lite0": ("FD-EffLite0", "KD-EffLite0"),
    "inception-v3-fid": ("FID", "KID"),
}


class Gathered:
    """Results by set, in the order of their numbers.

    Args:
        results: of all jobs, in any order.
        fps: of the clips.
        rates: fps of the sets that have another.
        digests: sha256 of each network's weights, by its name.
        resizes: rules by which frames come to networks that EXTRACTORS does not name.
        resamples: of every interval.
    """

    def __init__(
        self,
        results: Iterable[Result],
        *,
        fps: float,
        rates: Mapping[str, float],
        digests: Mapping[str, str],
        resizes: Mapping[str, str] | None = None,
        resamples: int = RESAMPLES,
    ) -> None:
        self.fps, self.rates, self.digests, self.resizes = fps, rates, digests, resizes or {}
        self.resamples = resamples
        self.sets: dict[str, list[Result]] = {}
        for result in results:
            self.sets.setdefault(result.of, []).append(result)
        for of in self.sets:
            self.sets[of].sort(key=lambda result: result.index)

    def has(self, name: str, *sets: str) -> bool:
        """Whether every clip of some sets has a number."""
        return all(self.sets.get(of) and all(name in result.numbers for result in self.sets[of]) for of in sets)

    def clips(self, name: str, of: str) -> list[Tensor]:
        """A number of each clip of a set."""
        return [result.numbers[name] for result in self.sets[of]]

    def distances(self, of: str, *, reference: str = REAL, floor: str | None = OTHER_REAL) -> list[Figure]:
        """Every distance of a set from real clips that the features at hand allow."""
        found = []
        for network, extractor in EXTRACTORS.items():
            if extractor.sees == "pairs" or not self.has(network, of, reference):
                continue
            titles = FRAME_DISTANCES.get(network, ("FVD",))
            for title, distance in zip(titles, (distance_between, polynomial_mmd), strict=False):
                found.append(self._distance(title, distance, extractor, of, reference, floor))
        return found

    def ratio(self, network: str, above: str, below: str, *, reference: str = REAL) -> Interval | None:
        """Distance of one set over that of another; None if features are missing."""
        sets = {of: self.clips(network, of) for of in (above, below, reference) if self.has(network, of)}
        if not {above, below, reference} <= set(sets):
            return None
        return self._interval(
            lambda rows: (
                distance_between(_take(sets[above], rows), _take(sets[reference], rows))
                / max(distance_between(_take(sets[below], rows), _take(sets[reference], rows)), 1e-9)
            ),
            [sets[of] for of in (above, below, reference)],
            f"{network}/{above}/{below}",
        )

    def mean(
        self,
        name: str,
        of: str,
        values: Sequence[float],
        *,
        floor: float | None = None,
        better: str = "lower",
        note: str = "",
    ) -> Figure:
        """The mean of a number per clip, with its interval."""
        numbers = torch.tensor(values, dtype=torch.float64)
        interval = Interval(numbers.mean().item(), float("nan"), float("nan"))
        if len(numbers) > 1 and bool(torch.isfinite(numbers).all()):
            interval = bootstrap_interval(
                len(numbers),
                lambda rows: numbers[rows].mean().item(),
                generator(name, of),
                num_resamples=5 * self.resamples,
            )
        spec = next((spec for spec in EXTRACTORS.values() if name in spec.figures), None)
        network = spec.name if spec is not None else name if name in self.resizes else ""
        return Figure(
            name=name,
            of=of,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            floor=floor,
            samples=len(values),
            frames=self.num_frames(of),
            fps=self.rate(of),
            network=network,
            resize=self.resizes.get(network, "") if spec is None else spec.resize_rule,
            digest=self.digests.get(network, ""),
            better="higher" if better == "higher" else "lower",
            note=note,
        )

    def score(self, name: str, of: str, value: float, network: str) -> Figure:
        """A score of a whole set, without an interval."""
        unknown = Interval(value, float("nan"), float("nan"))
        return replace(self.ratio_figure(name, network, of, unknown, of), better="higher")

    def ratio_figure(self, name: str, network: str, of: str, ratio: Interval, numbers_of: str) -> Figure:
        """A ratio of distances as a figure."""
        return Figure(
            name=name,
            of=of,
            value=ratio.value,
            low=ratio.low,
            high=ratio.high,
            samples=len(self.sets[numbers_of]),
            frames=self.num_frames(numbers_of),
            fps=self.rate(numbers_of),
            network=network,
            resize=EXTRACTORS[network].resize_rule,
            digest=self.digests.get(network, ""),
            better="higher" if name == "FVD ratio" and OTHER_REAL not in of else "lower",
        )

    def rate(self, of: str) -> float:
        """Frames per second of the clips of a set."""
        return self.rates.get(of, self.fps)

    def num_frames(self, of: str) -> int:
        """Frames of a clip of a set."""
        return int(self.sets[of][0].numbers["frames"].item())

    def _distance(
        self,
        title: str,
        distance: Callable[[Tensor, Tensor], float],
        extractor: Extractor,
        of: str,
        reference: str,
        floor: str | None,
    ) -> Figure:
        one, other = self.clips(extractor.name, of), self.clips(extractor.name, reference)
        size = min(len(one), len(other))
        interval = self._interval(
            lambda rows: distance(_take(one, rows), _take(other, rows)), [one, other], f"{title}/{of}"
        )
        real = None
        if floor is not None and self.has(extractor.name, floor):
            real = distance(_take(self.clips(extractor.name, floor)[:size]), _take(other[:size]))
        rows, features = len(one) * len(one[0]), one[0].shape[1]
        few = title != "KD-EffLite0" and rows <= features
        return Figure(
            name=title,
            of=of,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            floor=real,
            samples=size,
            frames=self.num_frames(of),
            fps=self.rate(of),
            network=extractor.name,
            resize=extractor.resize_rule,
            digest=self.digests.get(extractor.name, ""),
            note=f"{rows} rows for {features} features: too large by the floor's size, compare with it" if few else "",
        )

    def _interval(self, measure: Callable[[Tensor], float], sets: Sequence[list[Tensor]], name: str) -> Interval:
        # A set of fewer clips takes what falls to it: the first rows, each as likely as any other.
        size = max(len(clips) for clips in sets)
        if min(len(clips) for clips in sets) < 2:
            return Interval(measure(torch.arange(size)), float("nan"), float("nan"))
        return bootstrap_interval(size, measure, generator(name), num_resamples=self.resamples, centred=True)


def _take(clips: list[Tensor], rows: Tensor | None = None) -> Tensor:
    """Features of some clips, or of all, their rows one after the other."""
    return torch.cat(clips if rows is None else [clips[int(row) % len(clips)] for row in rows[: len(clips)]])
