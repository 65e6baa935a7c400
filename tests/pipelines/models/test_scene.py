"""Scene labels to tokens."""

from pathlib import Path

import pytest
import torch

from pipelines.models.scene import UNKNOWN, SceneConfig, SceneEncoder


def encoder() -> SceneEncoder:
    torch.manual_seed(0)
    return SceneEncoder(SceneConfig(width=12, hidden=5))


def test_every_label_moves_the_token() -> None:
    night = torch.tensor([0, 1, UNKNOWN, 0, 0, UNKNOWN])
    crowdedness = torch.tensor([3, 3, 3, 9, UNKNOWN, UNKNOWN])
    tokens = encoder()(night, crowdedness)
    assert tokens.shape == (6, 1, 12)
    for i in range(6):
        for j in range(i):
            assert not torch.allclose(tokens[i], tokens[j]), (i, j)


def test_unknown_count_differs_from_none() -> None:
    tokens = encoder()(torch.tensor([0, 0]), torch.tensor([0, UNKNOWN]))
    assert not torch.allclose(tokens[0], tokens[1])


def test_saved_encoder_gives_the_same_tokens(tmp_path: Path) -> None:
    first = encoder()
    first.save(tmp_path / "condition")
    second = SceneEncoder.load(tmp_path / "condition")
    night, crowdedness = torch.tensor([1, 0]), torch.tensor([2, 40])
    assert torch.equal(first(night, crowdedness), second(night, crowdedness))


def test_scene_labels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"night=\[2\]; use 0"):
        encoder()(torch.tensor([2]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"crowdedness=\[-3\]; use a number of vehicles"):
        encoder()(torch.tensor([1]), torch.tensor([-3]))
