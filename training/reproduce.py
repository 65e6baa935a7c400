"""`python -m training reproduce`: the paper's tables beside ours, and a row for each thing the checkpoint must show.

Everything that is measured is kept, and trainings go on where they stopped: the same command again goes on.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from infra.cli import ExitCode
from pipelines.networks import Networks
from training.evaluate import runner
from training.evaluation import tables
from training.evaluation.command import Arguments as EvaluateArguments
from training.evaluation.command import measure, report
from training.evaluation.figures import Evaluation, show
from training.evaluation.gates import gate_rows, show_rows
from training.evaluation.reader import PRETRAINED, read_record
from training.evaluation.suite import FROM_BOXES, PARTS
from training.reproduce_ablations import OTHER_IMAGE_MODEL, train_ablations, train_other_image_model, trained

MARKER = "<!-- printed by `python -m training reproduce`; everything below is replaced -->"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is made.

    Attributes:
        clips: of every set of the checkpoint itself.
        variants: of every set of an ablation or a guidance scale.
        rollouts: long clips.
        minutes: length of each.
        steps: denoising steps; None takes the checkpoint's.
    """

    clips: int
    variants: int
    rollouts: int
    minutes: float
    steps: int | None


FORMS = {
    "short": Form(clips=8, variants=2, rollouts=2, minutes=1.0, steps=10),
    "full": Form(clips=256, variants=128, rollouts=16, minutes=5.0, steps=None),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure a checkpoint as the paper measures its own, and print both.

    Attributes:
        checkpoint: checkpoint folder, local or s3://.
        corpus: folder with the corpora keyframes/ and fine/ (and large/, for the upsampler) that training has not seen;
            `make reproduce` draws them.
        real: folder of real videos, to compare the temporal layers over another image model with.
        shards: latent shards for the trainings of the ablations; without them ablations are left out.
        real_shards: latent shards of real videos, for the training of another image model; without them it is left out.
        train_minutes: time of each training.
        form: short, or full with thirty times the clips and the checkpoint's own denoising steps.
        clips, variants, rollouts, steps: numbers that differ from the form's.
        out: folder for everything.
        document: file whose text after the marker is replaced by what was found, such as docs/results.md.
        weights: folder with the networks of measurement (`make weights`).
        reader: the scene reader; default the one that ships.
        workers: processes that sample and measure; 0 does it here.
        threads: CPU threads of each.
        resamples: of every interval.
    """

    checkpoint: str
    corpus: Path = Path(".cache/reproduce")
    real: Path = Path("tests/data/driving")
    shards: str | None = None
    real_shards: str | None = None
    train_minutes: float = 2.0
    form: Literal["short", "full"] = "short"
    clips: int | None = None
    variants: int | None = None
    rollouts: int | None = None
    steps: int | None = None
    out: Path = Path("out/reproduce")
    document: Path | None = None
    weights: Path = Path(".cache/weights")
    reader: Path | None = None
    workers: int = 2
    threads: int = 1
    resamples: int = 100

    @property
    def amounts(self) -> Form:
        """The form with the numbers that differ."""
        given = {name: getattr(self, name) for name in ("clips", "variants", "rollouts", "steps")}
        return replace(FORMS[self.form], **{name: value for name, value in given.items() if value is not None})


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line, train what is missing, measure, print."""
    parsed = tyro.cli(Arguments, args=list(arguments), prog="python -m training reproduce")
    if parsed.document is not None and MARKER not in parsed.document.read_text():
        raise ValueError(f"{str(parsed.document)!r} lacks the line {MARKER!r}; add it where the results shall stand")
    folders = parsed.out / "trained"
    if parsed.shards is not None:
        train_ablations(folders, parsed.checkpoint, parsed.shards, parsed.train_minutes)
    if parsed.real_shards is not None:
        train_other_image_model(folders, parsed.checkpoint, parsed.real_shards, parsed.train_minutes)
    measured: dict[str, Evaluation] = {}
    for name, study in studies(parsed, trained(folders)).items():
        print(f"study {name!r}", file=sys.stderr, flush=True)
        evaluation, gathered, scope = measure(study, runner(study.workers))
        measured[name] = evaluation
        if name == "main":
            report(study.out, evaluation, gathered, scope)
    text = summary(parsed, measured)
    (parsed.out / "results.md").write_text(text)
    if parsed.document is not None:
        head, marker, _ = parsed.document.read_text().partition(MARKER)
        parsed.document.write_text(f"{head}{marker}\n\n{text}")
    print(text)
    print(f"written to {parsed.out}: results.md, main/evaluation.json, main/index.html")
    return ExitCode.DONE


def studies(arguments: Arguments, others: dict[str, Path]) -> dict[str, EvaluateArguments]:
    """Every evaluation, by name; those that cannot be made with what is there are left out."""
    amounts, corpus, out = arguments.amounts, arguments.corpus, arguments.out
    fine, large = corpus / "fine", corpus / "large"
    has_fine = fine.is_dir()
    left_out = ("boxes",) if has_fine else ("boxes", "decoder", "interpolation")
    base = EvaluateArguments(
        checkpoint=arguments.checkpoint,
        corpus=corpus / "keyframes",
        fine_corpus=fine if has_fine else None,
        large_corpus=large if large.is_dir() else None,
        out=out / "main",
        kept=str(out / "kept"),
        parts=tuple(part for part in PARTS if part not in left_out),
        clips=amounts.clips,
        frames=14,
        rollouts=amounts.rollouts,
        minutes=amounts.minutes,
        steps=amounts.steps,
        weights=arguments.weights,
        reader=arguments.reader,
        resamples=arguments.resamples,
        workers=arguments.workers,
        threads=arguments.threads,
    )
    variant = replace(base, parts=("clips",), clips=amounts.variants)
    # Single frames are cheap, and the boxes of eight are too few to tell anything.
    found = {"main": base, FROM_BOXES: replace(base, parts=("boxes",), clips=8 * amounts.clips, frames=1)}
    found |= {tables.sweep_name(s): replace(variant, guidance_scale=s) for s in tables.GUIDANCE_SCALES}
    found[tables.UNGUIDED] = replace(variant, unlabelled=True, guidance_scale=1.0)
    found[tables.GUIDED] = replace(variant, unlabelled=True)
    found[tables.CONDITIONAL] = replace(variant, guidance_scale=1.0)
    if "prediction" in Networks(arguments.checkpoint).stage_names():
        found[tables.IMAGE_FIRST] = replace(variant, from_image=True)
    found |= {name: replace(variant, checkpoint=str(folder)) for name, folder in others.items()}
    if OTHER_IMAGE_MODEL in others:
        found[OTHER_IMAGE_MODEL] = replace(
            base,
            checkpoint=str(others[OTHER_IMAGE_MODEL]),
            parts=("clips", "per-frame"),
            corpus=arguments.real,
            fine_corpus=None,
            large_corpus=None,
            # Short clips: there are few real ones, and nine frames are what I3D needs.
            frames=9,
            unlabelled=True,
        )
    return found


def summary(arguments: Arguments, measured: dict[str, Evaluation]) -> str:
    """Everything that was found, as Markdown."""
    rows, main_study = gate_rows(measured), measured["main"]
    reader = arguments.reader or PRETRAINED
    lines = [f"checkpoint {main_study.checkpoint}, form {arguments.form}: {arguments.amounts}", ""]
    if reader.is_file():
        lines += [f"scene reader {reader.name}: {read_record(reader)}", ""]
    lines += ["```", show_rows(rows), "```", "", tables.show_tables(measured)]
    lines += [
        *tables.drift_lines(measured),
        "",
        "### every figure of the checkpoint",
        "",
        "```",
        show(main_study),
        "```",
    ]
    return "\n".join([*lines, ""])
