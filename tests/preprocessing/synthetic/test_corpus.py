from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.video_decode import decode, probe
from preprocessing.synthetic.corpus import CorpusSettings, is_complete, synthesize
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene


def settings(**changes: object) -> CorpusSettings:
    values = {"clips": 3, "seed": 5, "height": 48, "width": 64, "fps": "15/2", "seconds": 1.0, "noise": 0.0}
    return CorpusSettings(**(values | changes))  # type: ignore[arg-type]


def test_corpus_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        assert list(synthesize(tmp_path / str(workers), settings(), workers)) == [0, 1, 2]
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["000000.mp4", "000001.mp4", "000002.mp4", "labels.parquet"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    assert is_complete(tmp_path / "1", settings())
    assert not is_complete(tmp_path / "1", settings(seed=6))
    labels = pq.read_table(tmp_path / "1" / "labels.parquet").to_pylist()
    info = probe(str(tmp_path / "1" / "000002.mp4"))
    assert len(labels[2]["boxes"]) == len(info.pts) == 8
    assert float(info.fps) == 7.5
    _, image = next(decode(str(tmp_path / "1" / "000002.mp4"), info, info.pts[:1]))
    drawn = Drive(draw_scene(5, 2), 1.0, 48, 64).frame(0.0)
    assert np.abs(image.astype(int) - drawn.image).mean() < 4
    np.testing.assert_allclose([b["box"] for b in labels[2]["boxes"][0]], [b.box for b in drawn.boxes], rtol=1e-6)


def test_odd_and_empty_settings_are_refused() -> None:
    for changes in ({"height": 47}, {"clips": 0}, {"fps": "-2"}, {"width": 16}):
        with pytest.raises(ValueError, match="must be"):
            settings(**changes)
