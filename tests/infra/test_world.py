"""Rebuilding the shipped checkpoint: the corpora side by side, and what goes into the package."""

import json
from pathlib import Path

from infra import world


def test_autoencoder_sees_drawn_clips_once_and_real_ones_often_but_not_the_held_out_one(tmp_path: Path) -> None:
    sparse = tmp_path / "corpus" / "sparse"
    sparse.mkdir(parents=True)
    (sparse / "000000.mp4").write_bytes(b"drawn")
    (tmp_path / ".frames" / "left over by a kill").mkdir(parents=True)
    world.link_frames(tmp_path)
    found = sorted(path.relative_to(tmp_path / "frames").as_posix() for path in tmp_path.glob("frames/**/*.mp4"))
    assert found[-1] == "sparse/000000.mp4"
    assert len(found) == 1 + 5 * 4
    assert not any(world.HELD_OUT in name for name in found)
    before = (tmp_path / "frames").stat().st_mtime_ns
    world.link_frames(tmp_path)
    assert (tmp_path / "frames").stat().st_mtime_ns == before


def test_shipping_replaces_the_networks_and_keeps_the_card(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "shipped"
    for part in world.PARTS:
        (made / part).mkdir(parents=True)
        (made / part / "config.json").write_text(json.dumps(part))
    (made / "videoldm.json").write_text("{}")
    (target / "decoder").mkdir(parents=True)
    (target / "decoder" / "old.json").write_text("old")
    (target / "README.md").write_text("card")
    world.ship(made, target)
    assert (target / "README.md").read_text() == "card"
    assert not (target / "decoder" / "old.json").exists()
    assert json.loads((target / "boxes" / "config.json").read_text()) == "boxes"


def test_commands_follow_the_order_of_what_they_read(tmp_path: Path) -> None:
    lines = world.lines(world.World(out=tmp_path, minutes=0.5))
    made: set[str] = set()
    for line in lines:
        for flag in ("--corpus", "--shards"):
            if flag in line:
                source = line[line.index(flag) + 1]
                assert source in made or source == str(tmp_path / "frames"), line
        made.add(line[2] if line[1] == "synthesize" else line[3] if line[1] == "run" else "")
    trained = [line[1] for line in lines if line[0] == "training"]
    assert trained.index("synthetic-driving-image") < trained.index("synthetic-driving-prediction")
    assert all(line[line.index("--minutes") + 1] == "0.5" for line in lines if line[0] == "training")
