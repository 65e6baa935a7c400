"""Traffic: vehicles that follow each other, keep their distance and change lanes; never two in one place.

Car following is the intelligent driver model (Treiber, Hennecke, Helbing 2000); lane changes need a free gap in front
and behind and are counted as occupying both lanes until done. The simulation has its own clock; frames interpolate it.
"""

from dataclasses import dataclass

import numpy as np

from preprocessing.synthetic.scene import Scene, random
from preprocessing.synthetic.vehicle_shapes import KINDS, draw_kind

DT_S = 0.05
WARM_UP_S = 12.0
CHANGE_S = 3.6
VIEW_M = 420.0
_HEADWAY_S, _GAP_M, _ACCELERATION, _BRAKING = 1.3, 2.5, 1.6, 2.2


@dataclass(frozen=True, kw_only=True)
class Vehicles:
    """Who is on the road; index 0 is the camera's own car. One entry a vehicle, aligned with `Traffic`'s columns."""

    kind: np.ndarray
    colour: np.ndarray
    direction: np.ndarray
    length_m: np.ndarray
    width_m: np.ndarray


class Traffic:
    """Positions of all vehicles over time.

    Attributes:
        vehicles: what does not change.
        s, d, speed: (steps, vehicles) on the clock DT_S; s and d are road coordinates.
        braking: whether the brake lights are on.
    """

    def __init__(self, scene: Scene, seconds: float) -> None:
        drivers = _Drivers(scene, seconds)
        for _ in range(round(WARM_UP_S / DT_S)):
            drivers.step()
        # The camera's own car starts at s = 0.
        drivers.position -= drivers.position[0] * drivers.direction
        records = []
        for _ in range(int(np.ceil(seconds / DT_S)) + 2):
            records.append(
                (drivers.direction * drivers.position, drivers.lateral(), drivers.speed.copy(), drivers.brakes())
            )
            drivers.step()
        self.vehicles = drivers.vehicles
        self.s, self.d, self.speed, self.braking = (np.stack(column) for column in zip(*records, strict=True))

    def at(self, time_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Interpolate (s, d, speed, yaw against the road, braking) of all vehicles."""
        step = min(int(time_s / DT_S), len(self.s) - 2)
        share = time_s / DT_S - step
        s, d, speed = (a[step] * (1 - share) + a[step + 1] * share for a in (self.s, self.d, self.speed))
        sideways = (self.d[step + 1] - self.d[step]) / DT_S
        yaw = np.arctan2(sideways, np.maximum(speed, 3.0) * self.vehicles.direction)
        return s, d, speed, yaw, self.braking[step]


class _Drivers:
    """State of the simulation; `position` runs along each vehicle's own direction."""

    def __init__(self, scene: Scene, seconds: float) -> None:
        self.scene = scene
        self.rng = random(scene.seed, scene.clip, "traffic")
        rows = self._place(seconds + WARM_UP_S)
        kinds = [draw_kind(self.rng) for _ in rows]
        kinds[0] = "sedan"
        self.direction = np.array([row[0] for row in rows], dtype=float)
        self.lane = np.array([row[1] for row in rows])
        self.target = self.lane.copy()
        self.position = np.array([row[2] for row in rows], dtype=float)
        self.changed_s = np.full(len(rows), CHANGE_S)
        self.length = np.array([KINDS[kind].length_m for kind in kinds])
        self.vehicles = Vehicles(
            kind=np.array(kinds),
            colour=np.array([KINDS[kind].draw_colour(self.rng) for kind in kinds]),
            direction=self.direction,
            length_m=self.length,
            width_m=np.array([KINDS[kind].width_m for kind in kinds]),
        )
        heavy = np.array([KINDS[kind].heavy for kind in kinds])
        inner = 1.0 + 0.07 * (scene.lanes - 1 - self.lane)
        self.wanted = scene.speed_mps * inner * self.rng.uniform(0.86, 1.12, len(rows)) * np.where(heavy, 0.82, 1.0)
        self.wanted[0] = scene.speed_mps * self.rng.uniform(0.95, 1.15)
        self.patience_s = self.rng.uniform(1.5, 12.0, len(rows))
        self.speed = np.zeros(len(rows))
        self.speed = np.minimum(self.wanted, np.maximum((self._lead()[0] - _GAP_M) / _HEADWAY_S, 0.0))
        self.acceleration = np.zeros(len(rows))

    def _place(self, seconds: float) -> list[tuple[int, int, float]]:
        scene, rng = self.scene, self.rng
        own_lane = int(rng.integers(scene.lanes))
        rows: list[tuple[int, int, float]] = [(1, own_lane, 0.0)]
        spacing = 1000.0 / scene.density
        closing = 2.4 * scene.speed_mps * seconds
        for direction, begin, end in ((1, -160.0, VIEW_M + 200), (-1, -closing - VIEW_M, 200.0)):
            for lane in range(scene.lanes):
                place = begin + rng.exponential(spacing)
                while place < end:
                    if not (direction == 1 and lane == own_lane and abs(place) < 24):
                        rows.append((direction, lane, place))
                    # Nobody stands closer than a lorry and a half.
                    place += 20.0 + rng.exponential(max(spacing - 20.0, 2.0))
        return rows

    def lateral(self) -> np.ndarray:
        """Place across the road: a smooth step from lane to lane."""
        share = np.clip(self.changed_s / CHANGE_S, 0, 1)
        share = share * share * (3 - 2 * share)
        lane = self.lane + (self.target - self.lane) * share
        return self.direction * self.scene.lane_centre(lane)

    def brakes(self) -> np.ndarray:
        """Say who brakes."""
        return (self.acceleration < -0.7) | (self.speed < 0.5)

    def _lead(self) -> tuple[np.ndarray, np.ndarray]:
        """Gap to and speed of the vehicle ahead in the own lanes; a free road is 1 km."""
        ahead, _ = self._gaps(self._occupied(self.lane, self.target))
        leader = ahead.argmin(1)
        gap = ahead[np.arange(len(leader)), leader]
        found = np.isfinite(gap)
        return np.where(found, gap, 1000.0), np.where(found, self.speed[leader], 40.0)

    def _occupied(self, lane: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Lanes in use as bits, other bits for the other direction."""
        return ((1 << lane) | (1 << target)) << np.where(self.direction > 0, 0, 8)

    def _gaps(self, mine: np.ndarray, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Free metres to each vehicle ahead and to each behind that uses one of the lanes `mine`, else infinite."""
        taken = self._occupied(self.lane, self.target)
        delta = self.position[None, :] - self.position[rows, None]
        gap = np.abs(delta) - (self.length[None, :] + self.length[rows, None]) / 2
        gap[(mine[rows, None] & taken[None, :]) == 0] = np.inf
        own = np.arange(len(taken))
        gap[own[rows] - own[rows][0], own[rows]] = np.inf
        return np.where(delta > 0, gap, np.inf), np.where(delta <= 0, gap, np.inf)

    def step(self) -> None:
        """Advance the clock by DT_S."""
        gap, lead_speed = self._lead()
        gap = np.maximum(gap, 0.3)
        closing = self.speed * (self.speed - lead_speed) / (2 * np.sqrt(_ACCELERATION * _BRAKING))
        wish = _GAP_M + np.maximum(self.speed * _HEADWAY_S + closing, 0)
        free = 1 - (self.speed / self.wanted) ** 4
        self.acceleration = np.clip(_ACCELERATION * (free - (wish / gap) ** 2), -9.0, 2.5)
        speed = np.maximum(self.speed + self.acceleration * DT_S, 0)
        self.position += (self.speed + speed) / 2 * DT_S
        self.speed = speed
        self.changed_s += DT_S
        self.patience_s -= DT_S
        done = self.changed_s >= CHANGE_S
        self.lane = np.where(done, self.target, self.lane)
        if self.scene.lanes > 1:
            self._change_lanes(gap, free, done)

    def _change_lanes(self, gap: np.ndarray, free: np.ndarray, done: np.ndarray) -> None:
        """Let at most one driver per step begin a change: two at once could choose the same gap."""
        blocked = (self.wanted - self.speed > 0.5) & (gap < 20 + 2.2 * self.speed)
        wishes = np.flatnonzero(done & (self.patience_s < 0) & (self.speed > 4) & (blocked | (self.patience_s < -9)))
        if not len(wishes):
            return
        driver = int(wishes[0])
        self.patience_s[driver] = self.rng.uniform(3.0, 14.0)
        side = int(self.rng.choice((-1, 1)))
        lane = int(self.lane[driver]) + side
        lane = lane if 0 <= lane < self.scene.lanes else int(self.lane[driver]) - side
        if not 0 <= lane < self.scene.lanes:
            return
        wanted = np.full(len(self.lane), lane)
        (ahead,), (behind,) = self._gaps(self._occupied(wanted, wanted), slice(driver, driver + 1))
        speed = self.speed[driver]
        front, back = int(ahead.argmin()), int(behind.argmin())
        need_front = 6 + 0.8 * speed + 2.5 * max(speed - self.speed[front], 0)
        need_back = 6 + 0.8 * self.speed[back] + 2.5 * max(self.speed[back] - speed, 0)
        if ahead[front] > max(need_front, 0.8 * gap[driver] * (gap[driver] < 60)) and behind[back] > need_back:
            self.target[driver] = lane
            self.changed_s[driver] = 0.0
