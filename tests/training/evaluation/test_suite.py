"""Figures from features that are made up: distances, ratios, labels, boxes and their intervals."""

import json

import pytest
import torch

from training.evaluation.figures import Evaluation, show
from training.evaluation.gathered import OTHER_REAL, REAL, Gathered
from training.evaluation.measuring import Result
from training.evaluation.rows import pack, unpack
from training.evaluation.suite import FROM_BOXES, PER_FRAME, ROLLOUT, VIDEO, make_figures

BOXES = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]])


def results(of: str, *, shift: float, count: int = 12, right: int = 12) -> list[Result]:
    """Clips whose features lie `shift` away from the real ones and whose labels are right for `right` of them."""
    drawn = torch.Generator().manual_seed(len(of))
    found = []
    for index in range(count):
        night, crowd = index % 2, [1, 5, 9][index % 3]
        said = night if index < right else 1 - night
        found.append(
            Result(
                of,
                index,
                {
                    "i3d-kinetics400": torch.randn(1, 6, generator=drawn) + shift,
                    "efficientnet-lite0": torch.randn(4, 5, generator=drawn) + shift,
                    "asked": torch.tensor([[night, crowd]]).double(),
                    "night": torch.tensor([float(said)]),
                    "count": torch.tensor([float(crowd if index < right else crowd + 4)]),
                    "boxes": BOXES[:1] if index % 2 else BOXES,
                    "given boxes": BOXES,
                    "flicker": torch.tensor([0.1 + shift]).double(),
                    "frames": torch.tensor(14),
                },
            )
        )
    return found


@pytest.fixture
def evaluation() -> Evaluation:
    sets = [
        *results(REAL, shift=0),
        *results(OTHER_REAL, shift=0),
        *results(VIDEO, shift=0.5, right=9),
        *results(PER_FRAME, shift=3),
        *results(f"{ROLLOUT} first", shift=0.5),
        *results(f"{ROLLOUT} last", shift=2),
        *results(FROM_BOXES, shift=0),
    ]
    gathered = Gathered(reversed(sets), fps=1.875, rates={}, digests={"i3d-kinetics400": "ab" * 32}, resamples=20)
    return Evaluation(checkpoint="c", figures=tuple(make_figures(gathered, (2.5, 6.5))))


def test_every_figure_says_what_it_was_made_of(evaluation: Evaluation) -> None:
    fvd = evaluation.find("FVD", VIDEO)
    assert fvd is not None
    assert (fvd.samples, fvd.frames, fvd.fps, fvd.network) == (12, 14, 1.875, "i3d-kinetics400")
    assert fvd.digest == "ab" * 32
    assert "224x224" in fvd.resize
    assert fvd.floor is not None
    assert fvd.floor < fvd.value
    assert fvd.low < fvd.value < fvd.high
    text = show(evaluation)
    assert "14 at 1.875 fps" in text
    assert "abababab" in text
    assert {f["name"] for f in json.loads(evaluation.to_json())["figures"]} >= {"FVD", "FD-EffLite0", "KD-EffLite0"}


def test_nothing_carries_a_name_its_network_did_not_earn(evaluation: Evaluation) -> None:
    assert not {f.name for f in evaluation.figures} & {"FID", "KID", "IS", "CLIPSIM", "LPIPS"}


def test_ratios_show_what_is_better(evaluation: Evaluation) -> None:
    ours = evaluation.find("FVD ratio", f"{PER_FRAME} / {VIDEO}")
    assert ours is not None
    assert ours.value > 3
    assert ours.better == "higher"
    floor = evaluation.find("FVD ratio", f"{VIDEO} / {OTHER_REAL}")
    assert floor is not None
    assert floor.value > 1
    assert floor.better == "lower"
    drift = evaluation.find("FD-EffLite0 ratio", f"{ROLLOUT} last / {ROLLOUT} first")
    assert drift is not None
    assert drift.value > 3
    assert drift.better == "lower"


def test_labels_and_boxes_are_counted(evaluation: Evaluation) -> None:
    night = evaluation.find("day or night right", VIDEO)
    tercile = evaluation.find("crowdedness tercile right", VIDEO)
    boxes = evaluation.find("given boxes with a vehicle", FROM_BOXES)
    assert night is not None
    assert tercile is not None
    assert boxes is not None
    # Nine of twelve lights are right; of the three wrong counts one stays in the highest third.
    assert night.value == pytest.approx(9 / 12)
    assert tercile.value == pytest.approx(10 / 12)
    assert boxes.value == pytest.approx(0.75)
    assert night.floor == 1.0


def test_results_cross_between_processes_whole() -> None:
    given = results(VIDEO, shift=1, count=2)
    frames = torch.randint(256, (3, 4, 6, 3), dtype=torch.uint8)
    given[1] = Result(given[1].of, given[1].index, given[1].numbers, frames)
    back = unpack(pack(given))
    assert [(r.of, r.index) for r in back] == [(r.of, r.index) for r in given]
    for one, other in zip(back, given, strict=True):
        assert one.numbers.keys() == other.numbers.keys()
        assert all(torch.equal(one.numbers[name], other.numbers[name]) for name in one.numbers)
    assert back[0].frames is None
    assert torch.equal(back[1].frames, frames)
