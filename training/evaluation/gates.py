"""What the shipped checkpoint must show: figures, what they must reach, and a word for how far they came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from training.evaluation.figures import Better, Evaluation, Figure, table
from training.evaluation.gathered import OTHER_REAL
from training.evaluation.suite import (
    DECODED,
    DECODED_PER_FRAME,
    FROM_BOXES,
    PER_FRAME,
    ROLLOUT,
    UPSAMPLED,
    UPSAMPLED_PER_FRAME,
    VIDEO,
)

Verdict = Literal["target", "floor", "missed"]
ORDER = ("ours, small", "pixel space", "attention only", "end to end")
"""The paper's ablations (table 1), the best first."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How far a figure must come: `floor` at least, `target` at best.

    Attributes:
        study: name of the evaluation it stands in.
        name, of: of the figure.
        floor, target: what is to be reached.
        better: which way is better.
    """

    study: str = "main"
    name: str
    of: str
    floor: float
    target: float
    better: Better = "higher"

    def judge(self, figure: Figure) -> Verdict:
        """Compare a figure with floor and target."""
        sign = 1 if self.better == "higher" else -1
        if sign * figure.value >= sign * self.target:
            return "target"
        return "floor" if sign * figure.value >= sign * self.floor else "missed"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A row: one bar or several, all of which must be reached."""

    id: str
    what: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a gate."""

    id: str
    what: str
    figure: str
    floor: str
    target: str
    verdict: Verdict
    notes: tuple[str, ...] = field(default=())


def _ratio(above: str, below: str, floor: float, target: float, **changes: str) -> tuple[Bar, ...]:
    return (Bar(name="FVD ratio", of=f"{above} / {below}", floor=floor, target=target, **changes),)  # type: ignore[arg-type]


GATES = (
    Gate(id="W1", what="decoder: FVD image-only / temporal", bars=_ratio(DECODED_PER_FRAME, DECODED, 1.5, 5)),
    Gate(id="W2", what="upsampler: FVD per frame / temporal", bars=_ratio(UPSAMPLED_PER_FRAME, UPSAMPLED, 1.3, 3)),
    Gate(id="W3", what="clips: FVD image model per frame / video model", bars=_ratio(PER_FRAME, VIDEO, 1.5, 3)),
    Gate(
        id="W4",
        what="clips: FVD video model / real against real",
        bars=_ratio(VIDEO, OTHER_REAL, 4, 2, better="lower"),
    ),
    Gate(
        id="W6",
        what="labels: day or night / crowdedness tercile right",
        bars=(
            Bar(name="day or night right", of=VIDEO, floor=0.95, target=0.99),
            Bar(name="crowdedness tercile right", of=VIDEO, floor=0.6, target=0.8),
        ),
    ),
    Gate(
        id="W7",
        what="roll-out: FD of the last 15 % / first 15 %",
        bars=(
            Bar(name="FD-EffLite0 ratio", of=f"{ROLLOUT} last / {ROLLOUT} first", floor=2, target=1.2, better="lower"),
        ),
    ),
    Gate(
        id="W8",
        what="boxes: share with a vehicle there (IoU >= 0.5)",
        bars=(Bar(study=FROM_BOXES, name="given boxes with a vehicle", of=FROM_BOXES, floor=0.5, target=0.8),),
    ),
    Gate(
        id="W9",
        what="another image model: FVD per frame / video model",
        bars=_ratio(PER_FRAME, VIDEO, 1.0, 1.5, study="another image model"),
    ),
)


def gate_rows(studies: Mapping[str, Evaluation]) -> list[Row]:
    """A row for each gate, in their order."""
    rows = [_row(gate, studies) for gate in GATES]
    return sorted([*rows, order_row(studies)], key=lambda row: row.id)


def order_row(studies: Mapping[str, Evaluation]) -> Row:
    """W5: is ours the best of the ablations, and does the paper's order hold with intervals apart?"""
    found = {name: studies[name].find("FVD", VIDEO) for name in ORDER if name in studies}
    known = {name: figure for name, figure in found.items() if figure is not None}
    notes = tuple(f"{name} was not trained" for name in ORDER if name not in known)
    verdict: Verdict = "missed"
    if ORDER[0] in known and len(known) > 1:
        if min(known, key=lambda name: known[name].value) == ORDER[0]:
            verdict = "floor"
        if not notes and all(known[one].high < known[other].low for one, other in pairwise(ORDER)):
            verdict = "target"
    figure = " < ".join(f"{name} {known[name].interval}" for name in sorted(known, key=lambda name: known[name].value))
    return Row(
        id="W5",
        what="ablations: order of FVD",
        figure=figure or "-",
        floor="ours best",
        target="full order, intervals apart",
        verdict=verdict,
        notes=notes,
    )


def show_rows(rows: Sequence[Row]) -> str:
    """The rows as text, with what stood in the way below."""
    header = ("id", "what", "figure [95 %]", "floor", "target", "verdict")
    lines = [table([(r.id, r.what, r.figure, r.floor, r.target, r.verdict) for r in rows], header)]
    return "\n".join([*lines, *(f"{row.id}: {note}" for row in rows for note in row.notes)])


def _row(gate: Gate, studies: Mapping[str, Evaluation]) -> Row:
    found = [(bar, _find(bar, studies)) for bar in gate.bars]
    known = [(bar, figure) for bar, figure in found if figure is not None]
    verdicts = [bar.judge(figure) for bar, figure in known]
    is_whole = len(known) == len(found)
    worst: Verdict = next((word for word in _WORST_FIRST if word in verdicts), "missed") if is_whole else "missed"
    return Row(
        id=gate.id,
        what=gate.what,
        figure=" / ".join(figure.interval for _, figure in known) or "-",
        floor=" / ".join(f"{bar.floor:g}" for bar in gate.bars),
        target=" / ".join(f"{bar.target:g}" for bar in gate.bars),
        verdict=worst,
        notes=_notes(gate, [figure for _, figure in known], studies, is_whole),
    )


_WORST_FIRST: tuple[Verdict, ...] = ("missed", "floor", "target")


def _find(bar: Bar, studies: Mapping[str, Evaluation]) -> Figure | None:
    evaluation = studies.get(bar.study)
    return None if evaluation is None else evaluation.find(bar.name, bar.of)


def _notes(gate: Gate, figures: Sequence[Figure], studies: Mapping[str, Evaluation], is_whole: bool) -> tuple[str, ...]:
    sizes = sorted({f"N={f.samples} clips of {f.frames} frames at {f.fps:g} fps" for f in figures})
    if is_whole:
        return tuple(sizes)
    study = gate.bars[0].study
    if study not in studies:
        return (*sizes, f"not measured: nothing was trained for {study!r}; give --real-shards")
    skipped = [f"{skip.name}: {skip.why}" for skip in studies[study].skipped]
    return (*sizes, f"not measured ({'; '.join(skipped) or 'no such clips were made'})")
