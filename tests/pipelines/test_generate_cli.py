"""`python -m pipelines generate` and `describe`: every use on tiny random checkpoints, and every bad input."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines import checkpoint
from pipelines.__main__ import main
from pipelines.digests import network_digest
from pipelines.presets import PRESETS
from pipelines.video_decode import probe
from tests.pipelines.random_checkpoint import autoencoder, write_checkpoint

KINDS = ("tiny-driving", "tiny-mountain-biking", "tiny-text-to-video")
Run = Callable[..., None]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    for kind in KINDS:
        write_checkpoint(root / kind, PRESETS[kind](), boxes=kind == "tiny-driving")
    (root / "boxes.json").write_text('[[0.1, 0.2, 0.4, 0.6], {"x1": 0.5, "y1": 0.5, "x2": 0.7, "y2": 0.9}]')
    cv2.imwrite(str(root / "picture.png"), np.full((50, 70, 3), 90, np.uint8))
    return root


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str) -> None:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["pipelines", *arguments])
        main()

    return call


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (KINDS[0], ["--scene", "night,busy"]),
        (KINDS[0], ["--boxes", "boxes.json"]),
        (KINDS[0], ["--image", "picture.png"]),
        (KINDS[1], []),
        (KINDS[2], ["--prompt", "the sea", "--negative-prompt", "fog", "--temporal-prompt", "a sea"]),
    ],
    ids=["scene", "boxes", "image", "nothing", "text"],
)
def test_generate_writes_the_whole_clip_of_every_kind(run: Run, tmp_path: Path, kind: str, options: list[str]) -> None:
    out = tmp_path / "clip.mp4"
    run("generate", "--checkpoint", kind, "--out", str(out), "--num-frames", "6", "--steps", "1", *options)
    info = probe(str(out))
    upsampled = 1 if kind == KINDS[1] else 4
    assert (info.height, info.width, len(info.pts)) == (16 * upsampled, 32 * upsampled, 6)
    assert float(info.fps) == 30.0


def test_several_seeds_write_a_clip_each_and_pictures_go_to_folders(run: Run, tmp_path: Path) -> None:
    line = ("generate", "--checkpoint", KINDS[1], "--num-frames", "2", "--stages", "prediction", "--seed", "3", "8")
    run(*line, "--out", str(tmp_path / "clip"), "--sheet", str(tmp_path / "sheet.png"))
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert names == [f"clip-{seed}/00000{frame}.png" for seed in (3, 8) for frame in (0, 1)] + ["sheet.png"]
    assert cv2.imread(str(tmp_path / "clip-3" / "000000.png")).shape == (16, 32, 3)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (32, 64, 3)


def test_minutes_size_and_type_are_obeyed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    line = ("generate", "--checkpoint", KINDS[1], "--stages", "prediction", "--out", str(out), "--steps", "1")
    run(*line, "--minutes", "0.1", "--size", "48", "32", "--dtype", "bfloat16")
    info = probe(str(out))
    assert (info.height, info.width, len(info.pts)) == (48, 32, round(6 * 1.875))


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


BAD = [
    (KINDS[2], ["--prompt", "a " * 90], "90 tokens, the text encoder takes 75; shorten it"),
    (KINDS[0], ["--boxes", "[[0.2, 0.2, 1.3, 0.6]]"], "leaves the image; give fractions"),
    (KINDS[0], ["--boxes", "[[0.6, 0.2, 0.5, 0.6]]"], "is empty; give x1 < x2"),
    (KINDS[0], ["--boxes", "[[NaN, 0.2, 0.5, 0.6]]"], "leaves the image"),
    (KINDS[0], ["--boxes", '[["a", 1, 2, 3]]'], "is no box; give"),
    (KINDS[0], ["--boxes", '{"x1": 0}'], "holds a dict; give a list"),
    (KINDS[0], ["--boxes", "[["], "is not JSON"),
    (KINDS[0], ["--boxes", str([[0.1, 0.1, 0.2, 0.2]] * 6)], "6 boxes; the model takes up to 5"),
    (KINDS[1], ["--boxes", "[[0.1, 0.1, 0.2, 0.2]]"], "has no box-conditioned image model"),
    (KINDS[0], ["--scene", "dusk"], "scene word 'dusk' is not known; use day, night"),
    (KINDS[0], ["--scene", "day,night"], "contradict each other"),
    (KINDS[0], ["--prompt", "a road"], "'tiny-driving' takes scenes: use --scene"),
    (KINDS[1], ["--scene", "night"], "takes no conditions"),
    (KINDS[0], ["--size", "36", "64"], "size 36 does not divide by the autoencoder's factor 8; use 32 or 40"),
    (KINDS[0], ["--image", "none.png"], "no picture at 'none.png'"),
    (KINDS[0], ["--image", "boxes.json"], "is no picture that can be read"),
    (KINDS[0], ["--num-frames", "0"], "num_frames=0; give 1 or more"),
    (KINDS[0], ["--num-frames", "2", "--minutes", "1"], "give one of them"),
    (KINDS[0], ["--minutes", "-1"], "minutes=-1.0; give a positive number"),
    (KINDS[0], ["--steps", "0"], "num_steps=0; use 1 or more"),
    (KINDS[0], ["--steps", "5000"], "num_steps=5000 for 1000 timesteps"),
    (KINDS[1], ["--stages", "keyframes"], "has no stage 'keyframes'; it has image, interpolation, prediction"),
    (KINDS[1], ["--stages", "interpolation"], "make no first frame; add one of image"),
    (KINDS[2], ["--stages", "image", "interpolation"], "cannot go on from a first frame"),
    (KINDS[0], ["--paper-mode"], "is no system of the paper; it has driving"),
    (KINDS[0], ["--out", "clip.avi"], "give a name that ends in .mp4"),
    (KINDS[0], ["--device", "nonsense"], "device 'nonsense' cannot be used here"),
    ("nowhere", [], "no checkpoint at 'nowhere'"),
    (KINDS[2], ["--backbone", "nowhere"], "no file 'nowhere/unet/config.json'; give a complete diffusers"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=[f"{' '.join(b[1])[:30]}" for b in BAD])
def test_bad_input_is_one_clear_line_and_code_2(
    run: Run,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: list[str],
    message: str,
) -> None:
    if options[:1] == ["--boxes"]:
        options = ["--boxes", write(tmp_path, "boxes.json", options[1])]
    out = [] if "--out" in options else ["--out", str(tmp_path / "clip.mp4")]
    refuse(run, capsys, message, "--checkpoint", kind, *out, *options)
    assert not list(tmp_path.glob("*.mp4"))


def refuse(run: Run, capsys: pytest.CaptureFixture[str], message: str, *options: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("generate", *options)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_backbone_of_another_family_is_refused(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"_class_name": "FluxTransformer2DModel"}
    (tmp_path / "unet").mkdir()
    write(tmp_path / "unet", "config.json", json.dumps(config))
    message = "holds a FluxTransformer2DModel, which is no image U-Net; give one of UNet2DConditionModel"
    out = str(tmp_path / "clip.mp4")
    refuse(run, capsys, message, "--checkpoint", KINDS[2], "--backbone", str(tmp_path), "--out", out)


def test_backbone_of_another_shape_and_another_prediction_is_refused(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "clip.mp4")
    other = str(root / KINDS[0] / "backbone")
    refuse(
        run,
        capsys,
        "has cross_attention_dim=24, the checkpoint's own 32",
        "--checkpoint",
        KINDS[2],
        "--backbone",
        other,
        "--out",
        out,
        "--prompt",
        "a",
    )
    shutil.copytree(root / KINDS[2] / "backbone", tmp_path / "eps")
    scheduler = tmp_path / "eps" / "scheduler" / "scheduler_config.json"
    values = {**json.loads(scheduler.read_text()), "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    scheduler.write_text(json.dumps(values))
    eps = ("--backbone", str(tmp_path / "eps"), "--stages", "keyframes")
    refuse(run, capsys, "predicts epsilon, the temporal layers", "--checkpoint", KINDS[2], *eps, "--out", out)


def test_weights_of_another_stage_are_refused(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(root / KINDS[2], mixed)
    shutil.copytree(mixed / "temporal" / "keyframes", tmp_path / "part")
    shutil.copy(mixed / "temporal" / "prediction" / "config.json", tmp_path / "part" / "config.json")
    checkpoint.write_part(mixed, "temporal/prediction", tmp_path / "part", name="mixed")
    message = "load weights of the same stage"
    refuse(run, capsys, message, "--checkpoint", str(mixed), "--stages", "prediction", "--out", str(tmp_path / "c.mp4"))


def test_damaged_and_missing_files_are_named(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(root / KINDS[1], damaged)
    save_file({"weight": torch.zeros(1)}, damaged / "temporal" / "prediction" / checkpoint.WEIGHTS)
    line = ("--checkpoint", str(damaged), "--out", str(tmp_path / "c.mp4"))
    refuse(run, capsys, "temporal/prediction/model.safetensors is not the file", *line)
    (damaged / "temporal" / "prediction" / checkpoint.WEIGHTS).unlink()
    refuse(run, capsys, "lacks temporal/prediction/model.safetensors", *line)


def test_clip_of_wrong_length_for_a_per_frame_mix_is_refused(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / KINDS[1], other)
    part = other / "temporal" / "interpolation"
    values = json.loads((part / "config.json").read_text())
    shutil.copytree(part, tmp_path / "part")
    write(tmp_path / "part", "config.json", json.dumps({**values, "num_frames": 7}))
    checkpoint.write_part(other, "temporal/interpolation", tmp_path / "part", name="other")
    message = "the clips have 7 frames, but the mix is learned for each of 5; use clips of 5 frames"
    refuse(run, capsys, message, "--checkpoint", str(other), "--out", str(tmp_path / "c.mp4"), "--steps", "1")


def test_wrong_channel_count_is_refused(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / KINDS[1], other)
    wide = PRESETS[KINDS[1]]().autoencoder | {"latent_channels": 6}
    autoencoder(wide).save_pretrained(tmp_path / "vae")
    assert network_digest(tmp_path / "vae") != network_digest(other / "backbone" / "vae")
    checkpoint.write_part(other, "backbone/vae", tmp_path / "vae", name="other")
    line = ("--checkpoint", str(other), "--out", str(tmp_path / "c.mp4"), "--stages", "prediction", "--steps", "1")
    refuse(run, capsys, "channels", *line)


def test_describe_prints_the_rows_of_the_paper_without_weights(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("describe", "--preset", "text-to-video-sd14")
    table = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    keyframes = table["keyframes"]
    assert [float(number) for number in keyframes[1:3]] == pytest.approx([859.52, 649.69], abs=0.01)
    assert float(keyframes[3]) > 1
    assert "83.65" in table["autoencoder"]
    assert float(table["text encoder"][2]) == pytest.approx(123, abs=0.5)
    assert float(table["upsampler"][1]) == pytest.approx(473, rel=1e-3)
    assert float(table["upsampler"][2]) == pytest.approx(449, rel=1e-3)


def test_describe_refuses_an_unknown_preset(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("describe", "--preset", "drivin")
    assert stopped.value.code == 2
    assert "did you mean 'driving'?" in capsys.readouterr().err
