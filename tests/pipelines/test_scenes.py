"""Scenes in words."""

import pytest

from pipelines.models.scene import UNKNOWN
from pipelines.scenes import Scene, parse_scene, scene_labels


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("", Scene()),
        ("night", Scene(night=1)),
        (" day , crowded ", Scene(night=0, crowdedness=14)),
        ("empty", Scene(crowdedness=0)),
    ],
)
def test_words_say_light_and_traffic_and_leave_the_rest_open(text: str, scene: Scene) -> None:
    assert parse_scene(text) == scene


@pytest.mark.parametrize(
    ("text", "message"),
    [("fog", "'fog' is not known; use day, night"), ("day,night", "contradict"), ("busy,empty", "use one of empty")],
)
def test_unknown_or_contradicting_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_scene(text)


def test_labels_are_those_of_the_encoder() -> None:
    night, crowdedness = scene_labels([Scene(night=1), Scene(crowdedness=0), Scene()])
    assert night.tolist() == [1, UNKNOWN, UNKNOWN]
    assert crowdedness.tolist() == [UNKNOWN, 0, UNKNOWN]
