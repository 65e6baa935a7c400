import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipelines.metrics.boxes import BoxAgreement, add_frame, box_iou, match_boxes

CORNERS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))
BOXES = st.lists(CORNERS, max_size=5).map(lambda rows: [(x, y, x + w, y + h) for x, y, w, h in rows])


def tensor(rows: list[tuple[int, int, int, int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@given(one=BOXES, other=BOXES)
@settings(max_examples=100, deadline=None)
def test_iou_equals_counting_cells(one, other):
    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    iou = box_iou(tensor(one), tensor(other))
    assert iou.shape == (len(one), len(other))
    for row, first in enumerate(one):
        for column, second in enumerate(other):
            shared, union = cells(first) & cells(second), cells(first) | cells(second)
            assert iou[row, column].item() == pytest.approx(len(shared) / len(union))


@given(expected=BOXES, found=BOXES)
@settings(max_examples=100, deadline=None)
def test_matches_are_one_to_one_above_the_threshold_and_none_is_missed(expected, found):
    iou = box_iou(tensor(expected), tensor(found))
    matches = match_boxes(tensor(expected), tensor(found), threshold=0.3)
    rows, columns = {match.expected for match in matches}, {match.found for match in matches}
    assert len(rows) == len(columns) == len(matches)
    assert all(match.iou == iou[match.expected, match.found] >= 0.3 for match in matches)
    left = [(r, c) for r in range(len(expected)) for c in range(len(found)) if r not in rows and c not in columns]
    assert all(iou[pair] < 0.3 for pair in left)
    assert [match.iou for match in matches] == sorted((match.iou for match in matches), reverse=True)


def test_matches_of_clear_cases_equal_the_optimal_assignment():
    expected = tensor([(0, 0, 4, 4), (10, 0, 14, 4), (20, 0, 24, 4)])
    found = tensor([(21, 0, 25, 4), (0, 1, 4, 5), (11, 1, 15, 5), (40, 0, 44, 4)])
    rows, columns = linear_sum_assignment(-box_iou(expected, found).numpy())
    matches = match_boxes(expected, found, threshold=0.35)
    assert {(match.expected, match.found) for match in matches} == set(
        zip(rows.tolist(), columns.tolist(), strict=True)
    )


def test_agreement_counts_hits_misses_and_inventions():
    agreement = add_frame(BoxAgreement(), tensor([(0, 0, 4, 4), (10, 0, 14, 4)]), tensor([(0, 0, 4, 3)]))
    agreement = add_frame(agreement, tensor([(0, 0, 4, 4)]), tensor([(0, 0, 4, 4), (8, 8, 9, 9), (1, 9, 2, 12)]))
    agreement = add_frame(agreement, tensor([]), tensor([]))
    assert (agreement.num_expected, agreement.num_found, agreement.num_matched) == (3, 4, 2)
    assert (agreement.precision, agreement.recall) == (2 / 4, 2 / 3)
    assert agreement.mean_iou == pytest.approx((0.75 + 1.0) / 3)


def test_rates_of_nothing_are_not_numbers():
    assert all(math.isnan(rate) for rate in (BoxAgreement().precision, BoxAgreement().recall, BoxAgreement().mean_iou))


def test_unusable_boxes_are_refused():
    with pytest.raises(ValueError, match="x1 < x2"):
        box_iou(tensor([(0, 0, 1, 1)]), tensor([(4, 0, 4, 2)]))
    with pytest.raises(ValueError, match="overlap above 0"):
        match_boxes(tensor([(0, 0, 1, 1)]), tensor([(0, 0, 1, 1)]), threshold=0.0)
