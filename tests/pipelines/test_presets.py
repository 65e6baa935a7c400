"""The systems of the paper: their networks against its parameter counts, their stages against its tables."""

from typing import Any

import pytest

from pipelines.describe import Row, rows
from pipelines.diffusion.windows import interpolated_length
from pipelines.presets import PRESETS

WITHIN = 1e-3


def table(name: str) -> dict[str, Row]:
    return {row.name: row for row in rows(PRESETS[name]())}


@pytest.mark.parametrize(
    ("name", "image", "temporal", "text"),
    [("text-to-video-paper", 865.91, 656, 354), ("text-to-video-sd14-paper", 860, 649.69, 123.06)],
)
def test_text_to_video_has_the_papers_parameters(name: str, image: float, temporal: float, text: float) -> None:
    found = table(name)
    millions: dict[str, tuple[float, float]] = {
        "autoencoder": (83.65, 0),
        "text encoder": (text, 0),
        "keyframes": (image, temporal),
        "upsampler autoencoder": (55.33, 0),
        "upsampler": (473, 449),
    }
    for row, (spatial, inserted) in millions.items():
        assert found[row].spatial / 1e6 == pytest.approx(spatial, rel=WITHIN), row
        assert found[row].temporal / 1e6 == pytest.approx(inserted, rel=WITHIN), row
    if name == "text-to-video-sd14-paper":
        interpolation = found["interpolation"]
        # All of it is trained. Appendix H.2.1 does not count the embedding of the given frames' noise level.
        level = 320 * 1280 + 1280 + 1280 * 1280 + 1280
        whole = interpolation.spatial + interpolation.temporal
        assert (whole - level) / 1e6 == pytest.approx(1509, rel=WITHIN)


@pytest.mark.parametrize("name", ["driving", "driving-paper", "mountain-biking", "mountain-biking-paper"])
def test_every_row_of_the_other_systems_is_counted(name: str) -> None:
    found = table(name)
    assert {"autoencoder", "prediction", "interpolation", "decoder"} <= set(found)
    for stage in ("prediction", "interpolation", "decoder"):
        assert found[stage].temporal > 0
        assert found[stage].flops > 0


TABLE_6: list[tuple[str, str, dict[str, Any]]] = [
    ("driving-paper", "prediction", {"num_frames": 10, "fps": 2.0, "height": 128, "width": 256, "context_level": None}),
    ("driving-paper", "interpolation", {"num_frames": 5, "fps": 30.0}),
    ("mountain-biking-paper", "prediction", {"num_frames": 8, "fps": 1.875}),
    ("text-to-video-paper", "keyframes", {"num_frames": 8, "fps": 2.0, "height": 320, "width": 512}),
    ("text-to-video-paper", "interpolation", {"num_frames": 5, "fps": 30.0, "context_level": 0}),
]


@pytest.mark.parametrize(("name", "stage", "values"), TABLE_6)
def test_stages_follow_table_6(name: str, stage: Any, values: dict[str, Any]) -> None:
    config = PRESETS[name]().stages[stage]
    assert {key: getattr(config, key) for key in values} == values


@pytest.mark.parametrize(("name", "level"), [("driving-paper", 150), ("text-to-video-paper", 30)])
def test_upsamplers_sample_at_the_papers_noise_level(name: str, level: int) -> None:
    upsampler = PRESETS[name]().upsampler
    assert upsampler is not None
    assert (upsampler.stage.context_level, upsampler.noise_level, upsampler.stage.num_frames) == (level, 250, 8)


@pytest.mark.parametrize(("name", "lengths"), [("text-to-video", (8, 29, 113)), ("driving", (10, 37, 145))])
def test_lengths_after_each_pass_are_those_of_the_paper(name: str, lengths: tuple[int, ...]) -> None:
    first = next(iter(PRESETS[name]().stages.values()))
    assert tuple(interpolated_length(first.num_frames, passes) for passes in range(3)) == lengths


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_tiny_systems_stay_tiny(name: str) -> None:
    assert all(row.spatial + row.temporal < 10e6 for row in table(name).values())
