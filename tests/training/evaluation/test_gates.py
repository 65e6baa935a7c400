"""What the rows of `reproduce` say, from figures that are made up."""

from dataclasses import replace

import pytest

from training.evaluation.figures import Evaluation, Figure, Skipped
from training.evaluation.gates import GATES, gate_rows, show_rows
from training.evaluation.suite import FROM_BOXES, VIDEO
from training.evaluation.tables import TABLES, show_tables


def figure(name: str, of: str, value: float, spread: float = 0.1) -> Figure:
    return Figure(
        name=name, of=of, value=value, low=value - spread, high=value + spread, samples=9, frames=14, fps=1.875
    )


def studies(share: float) -> dict[str, Evaluation]:
    """All figures at a share of the way from floor (0) to target (1)."""
    made: dict[str, list[Figure]] = {}
    for gate in GATES:
        for bar in gate.bars:
            value = bar.floor + share * (bar.target - bar.floor)
            made.setdefault(bar.study, []).append(figure(bar.name, bar.of, value))
    order = {"ours, small": 5.0, "pixel space": 6.0, "attention only": 7.0, "end to end": 11.0}
    made |= {name: [figure("FVD", VIDEO, value)] for name, value in order.items()}
    return {name: Evaluation(checkpoint="c", figures=tuple(figures)) for name, figures in made.items()}


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "target"), (0.5, "floor"), (-0.1, "missed")])
def test_verdict_follows_floor_and_target_whichever_way_is_better(share: float, verdict: str) -> None:
    rows = gate_rows(studies(share))
    assert [row.id for row in rows] == [f"W{number}" for number in range(1, 10)]
    assert {row.verdict for row in rows if row.id != "W5"} == {verdict}


def test_the_worst_of_two_bars_decides_and_a_missing_figure_is_missed() -> None:
    given = studies(1.0)
    main = given["main"]
    worse = [replace(f, value=0.3) if f.name == "crowdedness tercile right" else f for f in main.figures]
    rows = {row.id: row for row in gate_rows(given | {"main": replace(main, figures=tuple(worse))})}
    assert rows["W6"].verdict == "missed"
    skipped = (Skipped(name="boxes", why="the corpus has no boxes"),)
    none = Evaluation(checkpoint="c", figures=(), skipped=skipped)
    rows = {row.id: row for row in gate_rows({"main": main, FROM_BOXES: none})}
    assert rows["W8"].verdict == "missed"
    assert "the corpus has no boxes" in " ".join(rows["W8"].notes)
    assert rows["W9"].verdict == "missed"
    assert "--real-shards" in " ".join(rows["W9"].notes)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "target"),
        ({"pixel space": 5.05}, "floor"),
        ({"end to end": 4.0}, "missed"),
        ({"attention only": 5.5}, "floor"),
    ],
)
def test_order_of_the_ablations(change: dict[str, float], verdict: str) -> None:
    given = studies(1.0)
    changed = {
        name: Evaluation(checkpoint="c", figures=(figure("FVD", VIDEO, value),)) for name, value in change.items()
    }
    (row,) = (row for row in gate_rows(given | changed) if row.id == "W5")
    assert row.verdict == verdict


def test_an_ablation_that_was_not_trained_is_named() -> None:
    given = studies(1.0)
    del given["pixel space"]
    (row,) = (row for row in gate_rows(given) if row.id == "W5")
    assert row.verdict == "floor"
    assert row.notes == ("pixel space was not trained",)


def test_tables_show_the_papers_figures_beside_ours() -> None:
    text = show_tables(studies(1.0))
    assert all(title in text for title in TABLES)
    assert "| ablation: attention only | 704.41 | 50.01 | 7 [6.9, 7.1] |" in text
    assert "not run" in text
    assert "W5: " not in show_rows(gate_rows(studies(1.0)))
