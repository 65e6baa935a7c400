"""What stands beside the road: which tree, lamp, house or sign is where. A pure function of the seed and the metre."""

from dataclasses import dataclass

import numpy as np

from preprocessing.synthetic.scene import Scene, random

CELL_M = 26.0
DRAW_M = 430.0
# Things grow out of the ground over this last part of the way, so that nothing pops up.
GROW_M = 110.0


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree; `shape` picks an outline, `shade` its green."""

    s: float
    d: float
    height_m: float
    conifer: bool
    shape: int
    shade: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Building:
    """A block or, with `roof_m`, a house with a gable roof; `d` is the side towards the road."""

    s: float
    d: float
    along_m: float
    depth_m: float
    height_m: float
    roof_m: float
    wall: tuple[float, float, float]
    floors: int
    lit_seed: int
    lit_share: float


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A board on posts at the roadside."""

    s: float
    d: float
    width_m: float
    height_m: float
    base_m: float
    colour: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All that stands on one stretch of CELL_M on both sides."""

    trees: tuple[Tree, ...]
    buildings: tuple[Building, ...]
    signs: tuple[Sign, ...]


_WALLS = (
    (0.40, 0.36, 0.30), (0.30, 0.17, 0.11), (0.44, 0.41, 0.36), (0.22, 0.22, 0.23), (0.47, 0.38, 0.24),
    (0.26, 0.12, 0.09), (0.34, 0.36, 0.39), (0.50, 0.47, 0.42), (0.18, 0.21, 0.26),
)  # fmt: skip
_TREES = {"city": 0.55, "suburb": 1.3, "rural": 0.8, "forest": 5.0}
_BUILT = {"city": 0.72, "suburb": 0.5, "rural": 0.06, "forest": 0.0}


class Scenery:
    """Cells made when first seen."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.cells: dict[int, Cell] = {}
        rng = random(scene.seed, scene.clip, "flora")
        self.green = np.array((0.05, 0.085, 0.028)) * rng.uniform(0.7, 1.25) * np.array((rng.uniform(0.8, 1.5), 1, 1))
        self.conifers = rng.choice((0.05, 0.35, 0.9)) if scene.surroundings == "forest" else 0.12

    def around(self, s: float) -> list[Cell]:
        """Cells in sight of a camera at `s`, from behind it to DRAW_M ahead."""
        numbers = range(int(np.floor((s - 8) / CELL_M)), int(np.floor((s + DRAW_M) / CELL_M)) + 1)
        return [self._cell(number) for number in numbers]

    def _cell(self, number: int) -> Cell:
        if number not in self.cells:
            self.cells[number] = self._make(number)
        return self.cells[number]

    def _make(self, number: int) -> Cell:
        scene = self.scene
        rng = random(scene.seed, scene.clip, f"cell {number}")
        trees: list[Tree] = []
        buildings: list[Building] = []
        signs: list[Sign] = []
        for side in (-1, 1):
            begin, built = number * CELL_M, rng.random() < _BUILT[scene.surroundings]
            if built:
                buildings.append(self._building(rng, begin, side))
            trees += self._trees(rng, begin, side, built)
            if rng.random() < 0.035 and side > 0:
                signs.append(self._sign(rng, begin + 5))
        return Cell(trees=tuple(trees), buildings=tuple(buildings), signs=tuple(signs))

    def _building(self, rng: np.random.Generator, begin: float, side: int) -> Building:
        edge = self.scene.road_edge_m
        wall = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.8, 1.15)
        house = self.scene.surroundings != "city"
        floors = int(rng.integers(1, 3)) if house else int(np.clip(rng.lognormal(1.5, 0.5), 2, 16))
        along = float(rng.uniform(9, 15)) if house else float(rng.uniform(17, CELL_M - 1.5))
        setback = float(rng.uniform(9, 18)) if house else float(rng.uniform(4.5, 9.5))
        return Building(
            s=begin + float(rng.uniform(0.5, CELL_M - along - 0.5)),
            d=side * (edge + setback),
            along_m=along,
            depth_m=float(rng.uniform(7, 10)) if house else float(rng.uniform(11, 18)),
            height_m=3.0 * floors + 0.8,
            roof_m=float(rng.uniform(2.0, 3.6)) if house else 0.0,
            wall=(float(wall[0]), float(wall[1]), float(wall[2])),
            floors=floors,
            lit_seed=int(rng.integers(2**31)),
            lit_share=float(rng.uniform(0.12, 0.5)),
        )

    def _trees(self, rng: np.random.Generator, begin: float, side: int, built: bool) -> list[Tree]:
        scene = self.scene
        count = int(rng.poisson(_TREES[scene.surroundings] * (0.7 if built else 1.3)))
        near = scene.road_edge_m + (3.8 if scene.surroundings == "city" else 2.8)
        far = scene.road_edge_m + (4.4 if built else 30.0 if scene.surroundings == "forest" else 24.0)
        trees = []
        for _ in range(min(count, 9)):
            conifer = bool(rng.random() < self.conifers)
            shade = self.green * rng.uniform(0.75, 1.3) * rng.uniform(0.9, 1.1, 3) * (0.75 if conifer else 1.0)
            trees.append(
                Tree(
                    s=begin + float(rng.uniform(0, CELL_M)),
                    d=side * (near + (far - near) * float(rng.random()) ** 1.4),
                    height_m=float(rng.uniform(4.0, 7.0) if built else rng.uniform(5.5, 12.5)),
                    conifer=conifer,
                    shape=int(rng.integers(8)),
                    shade=(float(shade[0]), float(shade[1]), float(shade[2])),
                )
            )
        return trees

    def _sign(self, rng: np.random.Generator, s: float) -> Sign:
        blue = ((0.02, 0.09, 0.30), (0.01, 0.16, 0.07), (0.45, 0.45, 0.43))[rng.integers(3)]
        big = self.scene.surroundings != "city" and rng.random() < 0.6
        width = float(rng.uniform(2.4, 3.8)) if big else float(rng.uniform(0.7, 1.0))
        return Sign(
            s=s,
            d=self.scene.road_edge_m + width / 2 + 0.9,
            width_m=width,
            height_m=width * float(rng.uniform(0.55, 0.75)) if big else width,
            base_m=2.3,
            colour=blue,
        )
