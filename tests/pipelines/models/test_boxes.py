from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pipelines.models.boxes import BoxConfig, BoxEncoder, box_maps

LEFT, RIGHT = (0.1, 0.4, 0.3, 0.6), (0.6, 0.45, 0.9, 0.7)


def encoder() -> BoxEncoder:
    torch.manual_seed(0)
    return BoxEncoder(BoxConfig(width=12, max_boxes=3, heads=2, frequencies=5))


def test_box_tokens_know_each_coordinate_and_other_boxes() -> None:
    tokens = encoder()([[LEFT, RIGHT], [LEFT], [], None])
    assert tokens.shape == (4, 3, 12)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(tokens[i], tokens[j], atol=1e-3)
    assert not torch.allclose(tokens[0, 0], tokens[1, 0], atol=1e-3)
    for side in range(4):
        moved = list(LEFT)
        moved[side] += 0.02
        assert not torch.allclose(encoder()([[tuple(moved), RIGHT]])[0], tokens[0], atol=1e-3)


def test_box_order_does_not_matter() -> None:
    one, other = encoder()([[LEFT, RIGHT], [RIGHT, LEFT]])
    assert_close(one, other[[1, 0, 2]])


def test_gradient_reaches_every_box_parameter() -> None:
    model = encoder()
    model([[LEFT, RIGHT], [], None]).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_saved_box_encoder_gives_the_same_tokens(tmp_path: Path) -> None:
    first = encoder()
    first.save(tmp_path / "boxes")
    second = BoxEncoder.load(tmp_path / "boxes")
    assert torch.equal(first([[LEFT], None]), second([[LEFT], None]))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([LEFT] * 4, "4 boxes; the model takes up to 3"),
        ([(0.1, 0.2, 1.2, 0.4)], r"box \(0.1, 0.2, 1.2, 0.4\) leaves the image; give fractions"),
        ([(0.1, -0.2, 0.2, 0.4)], "leaves the image"),
        ([(0.5, 0.2, 0.5, 0.4)], r"is empty; give x1 < x2"),
        ([(0.1, 0.6, 0.5, 0.4)], "is empty"),
    ],
)
def test_boxes_that_cannot_be_are_refused(boxes: list[tuple[float, float, float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder()([boxes])


def test_box_maps_hold_the_share_of_each_cell_and_the_place_in_the_box() -> None:
    covered, across, below = box_maps([[(0.25, 0.5, 0.875, 1.0)]], (4, 4))[0, 0]
    assert_close(covered[2:], torch.tensor([[0.0, 1.0, 1.0, 0.5]] * 2))
    assert not covered[:2].any()
    assert_close(across[2] / covered[2].clamp(min=1e-9), torch.tensor([0.0, -0.6, 0.2, 1.0]))
    assert_close(below[:, 1], torch.tensor([0.0, 0.0, -0.5, 0.5]))


def test_nearer_box_covers_the_farther_one_in_its_map() -> None:
    near, far = (0.25, 0.25, 0.75, 1.0), (0.0, 0.25, 1.0, 0.75)
    one, other = box_maps([[near, far], [far, near]], (8, 8))
    assert torch.equal(one, other)
    alone = box_maps([[near], None], (8, 8))
    assert torch.equal(one[0, :, 2:, 2:6], alone[0, 0, :, 2:, 2:6])
    assert not alone[1].any()
