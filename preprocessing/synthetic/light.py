"""The light of an hour: sun, sky and the lamps people switch on. Colours are linear RGB, 1 = white in full daylight."""

import math
from dataclasses import dataclass

import numpy as np

from preprocessing.synthetic.scene import Scene

Colour = tuple[float, ...]

# Sun elevation in degrees -> (zenith, horizon, direct sun, ambient), interpolated in between.
_ELEVATIONS = (-18.0, -8.0, -3.0, 2.0, 8.0, 25.0, 60.0)
_ZENITH = (
    (0.004, 0.006, 0.017),
    (0.010, 0.016, 0.050),
    (0.05, 0.075, 0.18),
    (0.12, 0.19, 0.42),
    (0.13, 0.27, 0.58),
    (0.10, 0.26, 0.64),
    (0.08, 0.23, 0.64),
)
_HORIZON = (
    (0.016, 0.016, 0.028),
    (0.06, 0.045, 0.075),
    (0.42, 0.20, 0.15),
    (0.85, 0.50, 0.28),
    (0.80, 0.68, 0.56),
    (0.68, 0.77, 0.86),
    (0.66, 0.77, 0.88),
)
_SUN = (
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
    (0.70, 0.33, 0.12),
    (1.15, 0.80, 0.48),
    (1.45, 1.30, 1.05),
    (1.55, 1.45, 1.28),
)
_AMBIENT = (
    (0.020, 0.022, 0.036),
    (0.036, 0.038, 0.062),
    (0.13, 0.12, 0.18),
    (0.26, 0.25, 0.31),
    (0.36, 0.38, 0.45),
    (0.44, 0.49, 0.57),
    (0.48, 0.53, 0.61),
)
NIGHT_ELEVATION = -5.0
LAMP_COLOUR = np.array((1.0, 0.74, 0.42))
HEADLIGHT_COLOUR = np.array((1.0, 0.95, 0.84))


@dataclass(frozen=True, kw_only=True)
class Light:
    """Light of one moment.

    Attributes:
        elevation_deg: of the sun.
        sun_direction: towards the sun, (east, up, north).
        zenith, horizon: sky colours.
        sun, ambient: what falls on a surface that faces it.
        haze: colour that distance fades to.
        lamps: 0 off to 1 on, for street lamps, headlights and lit windows.
        shadow: how dark the sun's shadows are, 0 to 1.
    """

    elevation_deg: float
    sun_direction: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    haze: np.ndarray
    lamps: float
    shadow: float


def sun_elevation(hour: float) -> float:
    """Elevation of the sun in degrees: up at 6, 58 degrees at noon, down at 18."""
    return (
        58.0 * float(np.sin((hour - 6.0) / 12.0 * np.pi))
        if 6 <= hour % 24 <= 18
        else 32.0 * float(np.sin((hour - 6.0) / 12.0 * np.pi))
    )


def is_night(hour: float) -> bool:
    """Say whether an hour counts as night in the labels."""
    return sun_elevation(hour) < NIGHT_ELEVATION


def light_at(scene: Scene, time_s: float) -> Light:
    """Light of a scene `time_s` seconds after its start."""
    hour = (scene.time_of_day + time_s / 3600) % 24
    elevation = sun_elevation(hour)
    zenith, horizon, sun, ambient = (_interpolate(elevation, table) for table in (_ZENITH, _HORIZON, _SUN, _AMBIENT))
    grey = max(scene.cloud_cover - 0.45, 0.0) / 0.55
    cover = 0.9 * max(grey, min(scene.fog * 1.3, 1.0))
    overcast = np.full(3, 0.62 * ambient.mean() / 0.53) * (0.98, 1.0, 1.04)
    zenith = zenith * (1 - cover) + overcast * 0.95 * cover
    horizon = horizon * (1 - cover) + overcast * 1.12 * cover
    azimuth = 2 * np.pi * float(np.modf(scene.clip * 0.618 + 0.11)[0])
    up = np.sin(np.radians(max(elevation, 3.0)))
    flat = np.cos(np.radians(max(elevation, 3.0)))
    return Light(
        elevation_deg=elevation,
        sun_direction=np.array((flat * np.sin(azimuth), up, flat * np.cos(azimuth))),
        zenith=zenith,
        horizon=horizon,
        sun=sun * (1 - 0.92 * cover),
        ambient=ambient * (1 + 0.35 * cover),
        haze=0.75 * horizon + 0.25 * zenith,
        lamps=float(np.clip((1.5 - elevation) / 4.0, 0, 1)),
        shadow=0.62 * (1 - cover) * float(np.clip(elevation / 5, 0, 1)),
    )


def display(linear: np.ndarray) -> np.ndarray:
    """Linear light to what a camera writes, 0 to 255 (gamma 2 with a soft shoulder)."""
    return 255.0 * np.sqrt(np.clip(linear / (1 + 0.18 * linear), 0, 1))


def display_colour(red: float, green: float, blue: float) -> Colour:
    """The same curve for one colour, thirty times as fast as an array of three."""
    return _display_value(red), _display_value(green), _display_value(blue)


def _display_value(linear: float) -> float:
    value = linear / (1 + 0.18 * linear)
    return 255.0 * math.sqrt(value) if 0.0 < value < 1.0 else 255.0 * (value >= 1.0)


def _interpolate(elevation: float, table: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.array([np.interp(elevation, _ELEVATIONS, channel) for channel in zip(*table, strict=True)])
