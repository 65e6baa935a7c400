"""The vehicles one meets: hatchback, sedan and suv, van, truck, bus."""

from collections.abc import Callable
from functools import cache

import numpy as np

from preprocessing.synthetic.vehicle_shapes import (
    KINDS,
    Kind,
    Polygon,
    Shape,
    end_panel,
    extrude,
    inset_pane,
    lights_of,
    outward,
    part_of,
    quad_polygon,
    tyre_ends,
    wheels_of,
)


@cache
def shape_of(kind: str) -> Shape:
    """Build the shape of a kind."""
    builders: dict[str, Callable[[Kind], Shape]] = {"van": _van, "truck": _truck, "bus": _bus}
    return builders.get(kind, _car)(KINDS[kind])


def _car(kind: Kind) -> Shape:
    n, w, h = kind.length_m / 2, kind.width_m / 2, kind.height_m
    tall = h > 1.6
    belt, sill = (1.08 if tall else 0.93), (0.34 if tall else 0.27)
    hood = belt - (0.06 if tall else 0.16)
    body = extrude(
        [(-n, sill), (-n, 0.78 * belt), (-n + 0.08, belt), (0.42 * n, belt), (0.94 * n, hood), (n, 0.72 * hood),
         (n, sill)],
        w, w - 0.05, "paint",
    )  # fmt: skip
    boxy = kind.length_m < 4.2 or tall
    rear, roof_rear = (-n + 0.1, -n + 0.42) if boxy else (-n + 0.62, -n + 1.25)
    cabin = extrude(
        [(rear, belt - 0.02), (roof_rear, h), (0.08 * n, h), (0.5 * n, belt - 0.02)], w - 0.06, w - 0.27, "paint"
    )
    panes = [inset_pane(face, 0.12, 0.9, 0.07, "glass", 4.0) for face in cabin[:2]]
    panes += [inset_pane(face, 0.1, 0.93, 0.06, "glass", 3.0) for face in (cabin[2], cabin[4])]
    lights, rear_lights, front_lights = lights_of(kind, (0.62 * belt, 0.86 * belt), 0.34)
    front_lights[:, 1] *= 0.85
    lights = [light if light.role == "rear_light" else _lower(light, 0.11) for light in lights]
    trim = [
        end_panel((sill, sill + 0.2), (-w + 0.02, w - 0.02), -n - 0.004, "dark", 8.0),
        end_panel((sill, sill + 0.17), (-w + 0.02, w - 0.02), n + 0.004, "dark", 8.0),
        end_panel((sill + 0.22, sill + 0.34), (-0.26, 0.26), -n - 0.012, "plate", 14.0),
        end_panel((0.52 * hood, 0.66 * hood), (-0.5 * w, 0.5 * w), n + 0.006, "dark", 14.0),
    ]
    radius = 0.36 if tall else 0.32
    base = [*tyre_ends(kind, n - 0.3, radius), *body, *wheels_of(kind, (-0.6 * n, 0.62 * n), radius), *trim, *lights]
    return Shape(parts=(part_of(base), part_of([*cabin, *panes])), rear_lights=rear_lights, front_lights=front_lights)


def _lower(light: Polygon, by: float) -> Polygon:
    return Polygon(points=light.points - (0, by, 0), normal=light.normal, role=light.role, detail=light.detail)


def _van(kind: Kind) -> Shape:
    n, w, h = kind.length_m / 2, kind.width_m / 2, kind.height_m
    profile = [(-n, 0.35), (-n, h - 0.1), (-n + 0.1, h), (0.38 * n, h), (0.78 * n, 1.15), (n, 0.95), (n, 0.35)]
    body = extrude(profile, w, w - 0.12, "paint")
    windscreen = body[2 + 3]
    panes = [
        inset_pane(windscreen, 0.06, 0.92, 0.05, "glass", 3.0),
        end_panel((1.25, h - 0.3), (-w + 0.2, w - 0.2), -n - 0.005, "glass", 4.0),
    ]
    for side in (-1, 1):
        x = side * (w - 0.02)
        pane = quad_polygon(
            [
                (x, 1.2, 0.1 * n),
                (x, 1.2, 0.66 * n),
                (x - side * 0.06, h - 0.28, 0.36 * n),
                (x - side * 0.06, h - 0.28, 0.1 * n),
            ],
            "glass",
            6.0,
        )
        panes.append(outward(pane, np.zeros(3)))
    lights, rear_lights, front_lights = lights_of(kind, (0.75, 1.02), 0.26)
    front = [_lower(light, 0.05) for light in lights]
    trim = [end_panel((0.35, 0.58), (-w, w), s * (n + 0.004), "dark", 8.0) for s in (-1, 1)]
    wheels = [*tyre_ends(kind, n - 0.4, 0.36), *body, *wheels_of(kind, (-0.62 * n, 0.62 * n), 0.36)]
    return Shape(parts=(part_of([*wheels, *panes, *trim, *front]),), rear_lights=rear_lights, front_lights=front_lights)


def _truck(kind: Kind) -> Shape:
    n, w, h = kind.length_m / 2, kind.width_m / 2, kind.height_m
    box = extrude([(-n, 1.0), (-n, h), (n - 2.25, h), (n - 2.25, 1.0)], w, w, "cargo")
    chassis = extrude([(-n + 0.1, 0.55), (-n + 0.1, 1.0), (n - 0.3, 1.0), (n - 0.3, 0.55)], w - 0.25, w - 0.25, "dark")
    doors = [
        end_panel((1.08, h - 0.1), (-0.025, 0.025), -n - 0.01, "dark", 12.0),
        end_panel((0.5, 0.66), (-w + 0.1, w - 0.1), -n + 0.05, "dark", 8.0),
    ]
    cab = extrude(
        [(n - 2.1, 0.55), (n - 2.1, 2.75), (n - 0.35, 2.75), (n, 1.55), (n, 0.55)], w - 0.08, w - 0.2, "paint"
    )
    panes = [inset_pane(cab[2 + 2], 0.05, 0.85, 0.06, "glass", 3.0)]
    for side in (-1, 1):
        x = side * (w - 0.1)
        panes.append(
            outward(
                quad_polygon(
                    [
                        (x, 1.6, n - 1.5),
                        (x, 1.6, n - 0.3),
                        (x - side * 0.04, 2.4, n - 0.6),
                        (x - side * 0.04, 2.4, n - 1.5),
                    ],
                    "glass",
                    8.0,
                ),
                np.array((0, 1.6, n - 1.0)),
            )
        )
    lights, rear_lights, front_lights = lights_of(kind, (0.72, 0.94), 0.3)
    rear = [light for light in lights if light.role == "rear_light"]
    front = [light for light in lights if light.role == "front_light"]
    grille = [end_panel((0.6, 1.4), (-0.7, 0.7), n + 0.006, "dark", 8.0)]
    wheels = wheels_of(kind, (-0.55 * n, -0.3 * n, 0.66 * n), 0.5)
    back = [*tyre_ends(kind, n - 0.5, 0.5), *chassis, *wheels[:8], *box, *doors, *rear]
    return Shape(
        parts=(part_of(back), part_of([*cab, *wheels[8:], *panes, *grille, *front])),
        rear_lights=rear_lights,
        front_lights=front_lights,
    )


def _bus(kind: Kind) -> Shape:
    n, w, h = kind.length_m / 2, kind.width_m / 2, kind.height_m
    body = extrude(
        [(-n, 0.38), (-n, h - 0.12), (-n + 0.12, h), (n - 0.2, h), (n, h - 0.3), (n, 0.38)], w, w - 0.05, "cargo"
    )
    panes = [
        end_panel((1.55, h - 0.45), (-w + 0.22, w - 0.22), -n - 0.01, "glass", 4.0),
        end_panel((1.2, h - 0.4), (-w + 0.12, w - 0.12), n + 0.01, "glass", 3.0),
    ]
    for side in (-1, 1):
        x = side * (w - 0.01)
        edges = np.linspace(-n + 0.5, n - 0.5, 8)
        for a, b in zip(edges[:-1] + 0.09, edges[1:] - 0.09, strict=True):
            pane = quad_polygon([(x, 1.45, a), (x, 1.45, b), (x, h - 0.5, b), (x, h - 0.5, a)], "glass", 6.0)
            panes.append(outward(pane, np.array((0.0, 2.0, (a + b) / 2))))
    lights, rear_lights, front_lights = lights_of(kind, (0.75, 1.0), 0.3)
    trim = [end_panel((0.38, 0.6), (-w, w), s * (n + 0.004), "dark", 8.0) for s in (-1, 1)]
    wheels = [*tyre_ends(kind, n - 0.6, 0.48), *body, *wheels_of(kind, (-0.55 * n, 0.6 * n), 0.48)]
    return Shape(
        parts=(part_of([*wheels, *panes, *trim, *lights]),), rear_lights=rear_lights, front_lights=front_lights
    )
