"""The scene reader: its maps and back, its file, and that training teaches it to read."""

from pathlib import Path

import pytest
import torch

from pipelines.metrics.boxes import match_boxes
from pipelines.pixels import to_float
from training.evaluation.reader import (
    SceneReader,
    draw_maps,
    find_boxes,
    load_reader,
    read_record,
    reader_losses,
    save_reader,
)
from training.evaluation.train_reader import Arguments, Scenes, train

BOXES = [(0.1, 0.4, 0.3, 0.7), (0.6, 0.5, 0.65, 0.58)]


def test_boxes_come_back_from_the_maps_they_are_drawn_on() -> None:
    goal, sides, mask = draw_maps([BOXES], (32, 64))
    assert int(mask.sum()) == 2
    maps = torch.cat([torch.logit(goal.clamp(1e-4, 1 - 1e-4)), sides[0]])
    found = find_boxes(maps, min_score=0.9)
    matches = match_boxes(torch.tensor(BOXES), found, threshold=0.95)
    assert len(matches) == len(found) == 2


def test_a_reader_is_told_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = SceneReader().eval()
    save_reader(reader, tmp_path / "reader.safetensors", {"night_accuracy": 0.9})
    assert (tmp_path / "reader.safetensors").stat().st_size < 2 * 2**20
    frames = torch.rand(1, 3, 128, 256) * 2 - 1
    again = load_reader(tmp_path / "reader.safetensors")
    assert torch.allclose(again.read(frames)[0], reader.read(frames)[0], atol=1e-2)
    assert read_record(tmp_path / "reader.safetensors") == {"night_accuracy": 0.9}
    with pytest.raises(ValueError, match="python -m training reader"):
        load_reader(tmp_path / "none.safetensors")


def test_training_learns_and_repeats_itself() -> None:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 128, 256, 3), dtype=torch.uint8, generator=drawn)
    scenes = Scenes(images, torch.ones(4), torch.full((4,), 3.0), [BOXES] * 4)

    def loss_after(steps: int) -> float:
        reader = train([scenes], Arguments(corpus=Path(), steps=steps))
        with torch.inference_mode():
            return reader_losses(*reader(to_float(images)), scenes.night, scenes.counts, scenes.boxes).item()

    early, later = loss_after(1), loss_after(5)
    assert later < early
    assert loss_after(1) == early
