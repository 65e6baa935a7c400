"""Films with known cuts: synthetic drives joined by hard cuts, fades and dissolves, with flashes in between."""

from dataclasses import dataclass

import numpy as np

from preprocessing.cuts import find_transitions, shrink
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene

FPS = 12


@dataclass(frozen=True)
class Score:
    """Hard cuts: right, missed, invented; gradual ones found and present; gradual ones invented."""

    right: int
    missed: int
    invented: int
    fades: tuple[int, int]
    dissolves: tuple[int, int]
    invented_gradual: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of hard cuts."""
        return 2 * self.right / (2 * self.right + self.missed + self.invented)


def drives(count: int, seed: int) -> list[np.ndarray]:
    """Drives as the cut detector sees them, 8 s each."""
    own = [Drive(draw_scene(seed, clip), 8.0, 54, 96, 0.004) for clip in range(count)]
    return [np.stack([drive.frame(k / FPS).image for k in range(8 * FPS)]) for drive in own]


def film(rng: np.random.Generator, shots: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """Join shots in random order; returns frames and (kind, first frame, frame after) of each transition."""
    frames: list[np.ndarray] = []
    labels: list[tuple[str, int, int]] = []
    for number in rng.permutation(len(shots)).tolist():
        length = int(rng.integers(2 * FPS, 5 * FPS))
        start = int(rng.integers(0, len(shots[number]) - length))
        shot = shots[number][start : start + length].astype(np.float32)
        if rng.random() < 0.3:
            k = int(rng.integers(8, length - 8))
            shot[k] = np.minimum(shot[k] + 150, 255)
        kind = str(rng.choice(["hard", "hard", "hard", "fade", "dissolve"])) if frames else "first"
        at = len(frames)
        if kind == "hard":
            labels.append((kind, at, at))
        elif kind == "fade":
            n = int(rng.integers(FPS // 3, FPS))
            for i in range(n):
                frames[-n + i] = frames[-n + i] * (1 - (i + 1) / n)
            shot[:n] *= (np.arange(1, n + 1) / n)[:, None, None, None]
            labels.append((kind, at - n, at + n))
        elif kind == "dissolve":
            n = int(rng.integers(FPS // 3, int(1.3 * FPS)))
            for i in range(n):
                share = (i + 1) / (n + 1)
                frames[-n + i] = frames[-n + i] * (1 - share) + shot[i] * share
            labels.append((kind, at - n, at))
            shot = shot[n:]
        frames += list(shot)
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8), labels


def score(films: int, seed: int) -> Score:
    """Detect the cuts of some films and count; hard cuts must be right to one frame."""
    shots = drives(14, seed)
    right = missed = invented = slow = 0
    gradual = {"fade": [0, 0], "dissolve": [0, 0]}
    for number in range(films):
        frames, labels = film(np.random.default_rng([seed, number]), shots)
        found = find_transitions(np.stack([shrink(frame) for frame in frames]), FPS, 3.0)
        hard = [first for first, after in found if first == after]
        wanted = [first for kind, first, _ in labels if kind == "hard"]
        hits = [k for k in wanted if any(abs(k - other) <= 1 for other in hard)]
        right, missed = right + len(hits), missed + len(wanted) - len(hits)
        for first, after in found:
            false = not any(a - 2 <= after and first <= b + 2 for _, a, b in labels)
            invented, slow = invented + (false and first == after), slow + (false and first < after)
        for kind, a, b in labels:
            if kind != "hard":
                gradual[kind][1] += 1
                gradual[kind][0] += any(first <= b and after >= a for first, after in found)
    fades, dissolves = ((g[0], g[1]) for g in (gradual["fade"], gradual["dissolve"]))
    return Score(right, missed, invented, fades, dissolves, slow)
