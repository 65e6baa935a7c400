"""A figure and everything that must stand beside it; tables of figures."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        name: of the measure; FVD, FID, IS and CLIPSIM only if the network of that name made it.
        of: what was measured.
        value, low, high: the number and its 95 % interval, nan where none can be given.
        floor: the same measure of real clips against other real clips, as many of them; None if it has no meaning.
        samples: N, clips of each side.
        frames: of each clip.
        fps: of each clip.
        network: that made the features, with the resize rule and the digest of its weights; empty for none.
        resize: how frames came to the network's size.
        digest: sha256 of the network's weights.
        better: which way is better.
        note: what else must be said.
    """

    name: str
    of: str
    value: float
    low: float = math.nan
    high: float = math.nan
    floor: float | None = None
    samples: int
    frames: int
    fps: float
    network: str = ""
    resize: str = ""
    digest: str = ""
    better: Better = "lower"
    note: str = ""

    @property
    def interval(self) -> str:
        """The number with its interval, in words."""
        if math.isnan(self.low):
            return _short(self.value)
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A figure that could not be made, and how it can."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All figures of a checkpoint.

    Attributes:
        checkpoint: its name and digest.
        figures: what was measured.
        skipped: what was not.
        settings: of the run, to be repeated from.
    """

    checkpoint: str
    figures: tuple[Figure, ...]
    skipped: tuple[Skipped, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)

    def find(self, name: str, of: str) -> Figure | None:
        """Look a figure up."""
        return next((figure for figure in self.figures if (figure.name, figure.of) == (name, of)), None)

    def to_json(self) -> str:
        """JSON that says everything; numbers that are not known are null."""
        return json.dumps(_without_nan(asdict(self)), indent=1) + "\n"


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Rows as aligned text."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *rows]]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


HEADER = ("figure", "of", "value [95 %]", "real floor", "N", "frames", "network", "resize")


def figure_rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """Rows of the table of figures."""
    return [
        (
            f"{figure.name} {'v' if figure.better == 'lower' else '^'}",
            figure.of,
            figure.interval,
            "-" if figure.floor is None else _short(figure.floor),
            str(figure.samples),
            f"{figure.frames} at {figure.fps:g} fps",
            f"{figure.network} {figure.digest[:8]}".strip() or "-",
            figure.resize or "-",
        )
        for figure in figures
    ]


def show(evaluation: Evaluation) -> str:
    """The whole evaluation as text."""
    lines = [table(figure_rows(evaluation.figures), HEADER), "v: lower is better, ^: higher is better"]
    lines += sorted({f"note: {figure.name}: {figure.note}" for figure in evaluation.figures if figure.note})
    lines += [f"skipped {skipped.name}: {skipped.why}" for skipped in evaluation.skipped]
    return "\n".join(lines)


def _short(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
