"""A study of human preference by the paper's protocol: pairs in random order, several raters, no forced choice.

Nothing here knows of pages or networks: which pairs there are, in which order and on which side a rater sees them, and
what follows from the answers.

Source: Blattmann et al. 2023, appendix G: pairs of 4-second clips in random order, four raters each.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Choice = Literal["A", "B", "equal"]
CHOICES: tuple[Choice, ...] = ("A", "B", "equal")
SUFFIXES = (".mp4", ".webm", ".webp", ".gif", ".png", ".jpg")


@dataclass(frozen=True)
class Pair:
    """Two clips of the same name, one of each system."""

    name: str
    a: Path
    b: Path


@dataclass(frozen=True)
class Seen:
    """How a rater sees a pair: whether B is on the left."""

    pair: Pair
    swapped: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rater said of a pair, in terms of systems, not of sides."""

    rater: int
    pair: str
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the answers with its exact interval."""

    choice: Choice
    count: int
    share: float
    low: float
    high: float


def find_pairs(a: Path, b: Path, *, count: int | None, seed: int) -> list[Pair]:
    """Pair the clips of two folders by name.

    Args:
        a, b: folders of the two systems.
        count: pairs drawn at random; None takes all.
        seed: of the draw.

    Raises:
        ValueError: if the folders share no names.
    """
    names = [{path.name for path in folder.glob("*") if path.suffix in SUFFIXES} for folder in (a, b)]
    common = sorted(names[0] & names[1])
    if not common:
        raise ValueError(
            f"{str(a)!r} ({len(names[0])} clips) and {str(b)!r} ({len(names[1])} clips) share no file names; "
            "name the two clips of a pair alike"
        )
    if count is not None and count < len(common):
        common = sorted(random.Random(f"{seed}/pairs").sample(common, count))
    return [Pair(name, a / name, b / name) for name in common]


def order_for(pairs: Sequence[Pair], rater: int, seed: int) -> list[Seen]:
    """Pairs in the order and on the sides that a rater sees them: random, half swapped, the same at every start."""
    drawn = random.Random(f"{seed}/{rater}")
    swapped = [index % 2 == 1 for index in range(len(pairs))]
    drawn.shuffle(swapped)
    seen = [Seen(pair, is_swapped) for pair, is_swapped in zip(pairs, swapped, strict=True)]
    drawn.shuffle(seen)
    return seen


def study_id(pairs: Sequence[Pair], seed: int) -> str:
    """Identify a study by what is shown, so that answers of another are not mixed in."""
    digest = hashlib.sha256(str(seed).encode())
    for pair in pairs:
        digest.update(pair.name.encode() + pair.a.read_bytes() + pair.b.read_bytes())
    return digest.hexdigest()[:16]


class AnswerFile:
    """Answers as JSON lines; a rater's later answer to a pair replaces the earlier one.

    Args:
        path: of the file; made if missing.
        study: from `study_id`.

    Raises:
        ValueError: if the file holds answers of another study.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.study = path, study
        self.answers: dict[tuple[int, str], Answer] = {}
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else []):
            values = json.loads(line)
            if values.pop("study") != study:
                raise ValueError(f"{str(path)!r} line {number + 1} belongs to another study; give another --answers")
            self._take(Answer(**values))

    def add(self, answer: Answer) -> None:
        """Write an answer to the end of the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"study": self.study, **asdict(answer)}) + "\n")
        self._take(answer)

    def _take(self, answer: Answer) -> None:
        self.answers[answer.rater, answer.pair] = answer


def shares(answers: Iterable[Answer], confidence: float = 0.95) -> list[Share]:
    """How often each system was preferred."""
    counts = Counter(answer.choice for answer in answers)
    total = counts.total()
    found = []
    for choice in CHOICES:
        low, high = exact_interval(counts[choice], total, confidence)
        share = counts[choice] / total if total else math.nan
        found.append(Share(choice=choice, count=counts[choice], share=share, low=low, high=high))
    return found


def exact_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share by the binomial distribution itself.

    Raises:
        ValueError: if there are more hits than answers.

    Source: Clopper and Pearson 1934.
    """
    if not 0 <= hits <= total:
        raise ValueError(f"hits={hits} of total={total}; use 0 to total")
    if total == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _root(lambda p: _at_least(hits, total, p) - tail)
    high = 1.0 if hits == total else _root(lambda p: tail - (1 - _at_least(hits + 1, total, p)))
    return low, high


def sign_test(a: int, b: int) -> float:
    """Probability of so uneven a split, or a more uneven one, if both are as good: exact and two-sided."""
    total, most = a + b, max(a, b)
    return 1.0 if total == 0 else min(1.0, 2 * _at_least(most, total, 0.5))


def report(answers: Sequence[Answer], names: tuple[str, str]) -> str:
    """What came of a study, as text."""
    raters, pairs = {answer.rater for answer in answers}, {answer.pair for answer in answers}
    found = {share.choice: share for share in shares(answers)}
    titles = {"A": names[0], "B": names[1], "equal": "equal"}
    lines = [f"{len(answers)} answers of {len(raters)} raters to {len(pairs)} pairs"]
    lines += [
        f"{titles[choice]}: {share.count} = {100 * share.share:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
        for choice, share in found.items()
    ]
    lines.append(f"sign test of the decided answers: p = {sign_test(found['A'].count, found['B'].count):.3g}")
    lines.append("intervals are exact for independent answers; answers to one pair are not quite that")
    return "\n".join(lines)


def _at_least(hits: int, total: int, p: float) -> float:
    """P(X >= hits) of a binomial variable, summed in logarithms."""
    if p <= 0 or p >= 1:
        return float(hits <= 0 if p <= 0 else hits <= total)

    def log_chance(k: int) -> float:
        ways = math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        return ways + k * math.log(p) + (total - k) * math.log1p(-p)

    return math.fsum(math.exp(log_chance(k)) for k in range(hits, total + 1))


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of (0, 1) crosses zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
