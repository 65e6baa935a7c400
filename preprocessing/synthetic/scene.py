"""What a drive is, drawn from a seed: road, surroundings, hour, weather, traffic density and camera.

Nothing here knows a frame rate or an image size, so the same seed is the same drive at any of them.
"""

import zlib
from dataclasses import dataclass

import numpy as np

SURROUNDINGS = ("city", "suburb", "rural", "forest")


def random(seed: int, clip: int, purpose: str) -> np.random.Generator:
    """Make the generator of one purpose of one clip."""
    return np.random.default_rng([seed, clip, zlib.crc32(purpose.encode())])


@dataclass(frozen=True, kw_only=True)
class CameraSetup:
    """Where the camera sits and how wide it sees.

    Attributes:
        height_m: above the road.
        fov_deg: horizontal field of view.
        horizon: height of the horizon in the image, as a share from the top.
        bob_phase: phase of the suspension's movement.
    """

    height_m: float
    fov_deg: float
    horizon: float
    bob_phase: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drive.

    Attributes:
        seed, clip: what it was drawn from.
        time_of_day: hour in [0, 24) at the start; it goes on with the clip.
        cloud_cover: 0 clear to 1 overcast.
        fog: 0 clear to 1 thick; sight is 1,800 m to 50 m.
        surroundings: one of SURROUNDINGS.
        lanes: per direction.
        lane_width_m: of each lane.
        median_m: width between the directions; under 1 m it is painted, above it carries a barrier.
        shoulder_m: paved strip right of the last lane.
        density: vehicles per kilometre and lane.
        speed_mps: usual speed on this road.
        curvature: root mean square of the road's curvature, 1/m.
        lamp_spacing_m: between street lamps; 0 if there are none.
        guard_rail: whether a rail runs along the verge.
        camera: see CameraSetup.
    """

    seed: int
    clip: int
    time_of_day: float
    cloud_cover: float
    fog: float
    surroundings: str
    lanes: int
    lane_width_m: float
    median_m: float
    shoulder_m: float
    density: float
    speed_mps: float
    curvature: float
    lamp_spacing_m: float
    guard_rail: bool
    camera: CameraSetup

    @property
    def sight_m(self) -> float:
        """Distance at which contrast has fallen to 1/e."""
        return 1800.0 * (50.0 / 1800.0) ** self.fog

    @property
    def road_edge_m(self) -> float:
        """Distance from the centre line to where the pavement ends, both sides."""
        return self.median_m / 2 + self.lanes * self.lane_width_m + self.shoulder_m

    def lane_centre(self, lane: np.ndarray | float) -> np.ndarray | float:
        """Distance of a lane's middle from the centre line; lane 0 is the innermost."""
        return self.median_m / 2 + (lane + 0.5) * self.lane_width_m


def draw_scene(seed: int, clip: int) -> Scene:
    """Draw the drive number `clip` of the corpus `seed`."""
    rng = random(seed, clip, "scene")
    surroundings = str(rng.choice(SURROUNDINGS, p=(0.35, 0.2, 0.25, 0.2)))
    city = surroundings == "city"
    lanes = int(rng.choice((1, 2, 3), p=(0.25, 0.5, 0.25)))
    median_m = float(rng.choice((0.4, 1.2, 3.0), p=(0.5, 0.25, 0.25))) if lanes > 1 else 0.4
    speed_mps = float(rng.uniform(11, 17) if city else rng.uniform(18, 30))
    return Scene(
        seed=seed,
        clip=clip,
        time_of_day=_hour(rng),
        cloud_cover=float(rng.choice((rng.uniform(0, 0.45), rng.uniform(0.7, 1)), p=(0.7, 0.3))),
        fog=float(rng.uniform(0.35, 0.8) if rng.random() < 0.12 else rng.uniform(0, 0.22)),
        surroundings=surroundings,
        lanes=lanes,
        lane_width_m=float(rng.uniform(3.2, 3.7)),
        median_m=median_m,
        shoulder_m=float(rng.uniform(0.4, 0.8) if city else rng.uniform(0.8, 2.2)),
        density=float(np.exp(rng.uniform(np.log(1.5), np.log(42)))),
        speed_mps=speed_mps,
        curvature=float(rng.uniform(0.0, 1 / 500) * (0.5 if city else 1.0)),
        lamp_spacing_m=float(rng.uniform(28, 42))
        if rng.random() < {"city": 1, "suburb": 0.8}.get(surroundings, 0.25)
        else 0,
        guard_rail=bool(not city and rng.random() < 0.4),
        camera=CameraSetup(
            height_m=float(rng.uniform(1.35, 2.1)),
            fov_deg=float(rng.uniform(52, 74)),
            horizon=float(rng.uniform(0.42, 0.5)),
            bob_phase=float(rng.uniform(0, 2 * np.pi)),
        ),
    )


def _hour(rng: np.random.Generator) -> float:
    kind = rng.choice(3, p=(0.5, 0.35, 0.15))
    if kind == 0:
        return float(rng.uniform(7.0, 17.2))
    if kind == 1:
        return float(rng.uniform(19.2, 28.6) % 24)
    return float(rng.choice((rng.uniform(5.4, 6.7), rng.uniform(17.3, 18.7))))
