"""Captions of a corpus: encoded once each, read back, checked and repaired."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.cli import ExitCode
from pipelines.captions import CaptionStore
from pipelines.models.text import TextEncoder
from pipelines.shards import open_shards
from preprocessing.arguments import Job, read_job
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.verify import find_faults, repair
from tests.pipelines.random_checkpoint import clip

CONFIG = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),), min_groups=2)
LONG = "the " * 200


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory, vae_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    model, tokenizer = clip(24)
    model.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    shutil.copytree(vae_folder, folder / "vae")
    return folder


def make_set(
    folder: Path, captions: list[str], model: Path, make_video: Callable[..., Path], run_job: Callable[[Job], ExitCode]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(captions)):
        make_video(folder / f"{i}.mp4", 20, seed=i)
    with (folder / "list.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerows([["path", "caption"], *([f"{i}.mp4", text] for i, text in enumerate(captions))])
    job = Job(corpus=str(folder / "list.csv"), shards=str(folder / "s"), checkpoint=str(model), config=CONFIG)
    assert run_job(job) == ExitCode.DONE
    return folder / "s"


def test_each_caption_is_encoded_once_checked_and_repaired(
    diffusers_folder: Path, tmp_path: Path, make_video: Callable[..., Path], run_job: Callable[[Job], ExitCode]
) -> None:
    shards = make_set(tmp_path, ["the sea", "the street", "the sea", LONG], diffusers_folder, make_video, run_job)
    store = CaptionStore(str(shards))
    assert len(store) == 4
    read = store.read(["the sea", "", LONG])
    encoder = TextEncoder.from_folder(diffusers_folder)
    expected = encoder(["the sea", ""]).numpy()
    for caption, states in zip(["the sea", ""], expected, strict=True):
        np.testing.assert_allclose(read[caption].embedding, states, rtol=2e-3, atol=2e-3)
        assert read[caption].tokens_dropped == 0
    assert read[LONG].tokens_dropped == 200 + 2 - len(read[LONG].tokens)
    with pytest.raises(ValueError, match="no caption 'the moon'"):
        store.read(["the moon"])
    held = {labels.caption for labels in open_shards(str(shards)).labels.values()}
    assert held == set(store.read(held))
    # Damage is found, and only the damaged part is encoded again, to the same bytes.
    assert list(find_faults(str(shards))) == []
    [part] = (shards / "captions").iterdir()
    sound = part.read_bytes()
    for damaged in (sound[:-7], None):
        if damaged is None:
            part.unlink()
        else:
            part.write_bytes(damaged)
        faults = list(find_faults(str(shards)))
        assert [fault.kind for fault in faults] == ["missing" if damaged is None else "damaged"]
        assert repair(str(shards), faults, lambda: run_job(read_job(str(shards)))) == ExitCode.DONE
        assert part.read_bytes() == sound
    part.with_name("part-00007-0123456789abcdef.parquet").write_bytes(b"x")
    assert [fault.kind for fault in find_faults(str(shards))] == ["extra"]


def test_a_corpus_without_captions_or_a_model_without_text_encoder_has_none(
    diffusers_folder: Path,
    vae_folder: Path,
    tmp_path: Path,
    make_video: Callable[..., Path],
    run_job: Callable[[Job], ExitCode],
) -> None:
    silent = make_set(tmp_path / "a", [""], diffusers_folder, make_video, run_job)
    blind = make_set(tmp_path / "b", ["the sea"], vae_folder, make_video, run_job)
    for shards in (silent, blind):
        assert not (shards / "captions").exists()
        assert list(find_faults(str(shards))) == []
        with pytest.raises(ValueError, match="no encoded captions"):
            CaptionStore(str(shards))
