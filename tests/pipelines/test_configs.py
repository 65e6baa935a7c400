"""Configs to JSON and back, strictly."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pipelines.configs import from_json, to_json
from pipelines.diffusion.noise import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class Outer:
    noise: NoiseConfig
    size: tuple[int, int]
    name: str | None = None


CONFIG = Outer(noise=NoiseConfig(prediction="v_prediction", zero_terminal_snr=True), size=(3, 4))


def test_round_trip_through_text_gives_the_same_config() -> None:
    text = json.dumps(to_json(CONFIG))
    assert from_json(Outer, json.loads(text), where="a.json") == CONFIG
    assert from_json(Outer, json.loads(text), where="a.json") != replace(CONFIG, size=(4, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [1]}, r"a\.json: size\.1"),
        ({"sizes": [1, 2]}, r"a\.json: unknown field 'sizes'; did you mean 'size'"),
        ({"noise": {"prediction": "x0"}}, r"noise\.prediction.*'x0'"),
        ({"noise": {"prediction": "epsilon", "betastart": 1}}, "unknown field 'betastart'; did you mean 'beta_start'"),
        ({"noise": {"prediction": "epsilon", "beta_start": -3.0}}, "beta_start=-3.0"),
    ],
)
def test_bad_values_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, to_json(CONFIG) | change, where="a.json")
