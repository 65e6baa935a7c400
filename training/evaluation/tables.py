"""The paper's tables beside ours, as Markdown.

The paper's figures are those of its tables 1 and 3 (Blattmann et al. 2023), on its own data, of 2,048 clips of 16
frames at 30 fps; ours are other data, fewer clips and another network for single frames: only the order compares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.figures import Evaluation, Figure
from training.evaluation.suite import (
    BLENDED,
    DECODED,
    DECODED_PER_FRAME,
    INTERPOLATED,
    PER_FRAME,
    ROLLOUT,
    UPSAMPLED,
    UPSAMPLED_PER_FRAME,
    VIDEO,
)

GUIDANCE_SCALES = (1.0, 1.5, 2.5)
UNGUIDED, GUIDED, CONDITIONAL = "video LDM", "video LDM, context-guided", "video LDM, conditional"
IMAGE_FIRST = "image first"
ABLATIONS = ("ours, small", "attention only", "convolution only", "end to end")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table.

    Attributes:
        label: what it shows.
        paper: the paper's FVD and FID.
        study: name of our evaluation.
        of: set in it.
    """

    label: str
    paper: tuple[str, str] = ("-", "-")
    study: str = "main"
    of: str = VIDEO


def sweep_name(scale: float) -> str:
    """Name of the study of a guidance scale."""
    return f"guidance {scale:g}"


TABLES: Mapping[str, tuple[Line, ...]] = {
    "(a) Table 1: generated clips": (
        Line(label="video LDM", paper=("389", "31.6"), study=UNGUIDED),
        Line(label="video LDM, context-guided", study=GUIDED),
        Line(label="video LDM, conditional", paper=("356", "51.9"), study=CONDITIONAL),
        Line(label="video LDM, conditional and context-guided"),
        Line(label="image LDM on every frame by itself", of=PER_FRAME),
        Line(label="ablation: ours, small", paper=("534.17", "48.26"), study="ours, small"),
        Line(label="ablation: pixel space", paper=("639.56", "59.70"), study="pixel space"),
        Line(label="ablation: attention only", paper=("704.41", "50.01"), study="attention only"),
        Line(label="ablation: convolution only", study="convolution only"),
        Line(label="ablation: end to end, no image pre-training", paper=("1155.10", "71.26"), study="end to end"),
    ),
    "(b) Table 3: decoder and upsampler": (
        Line(label="decoder, image-only", paper=("390.88", "7.61"), of=DECODED_PER_FRAME),
        Line(label="decoder, temporally tuned", paper=("32.94", "9.17"), of=DECODED),
        Line(label="upsampler, per frame", paper=("165.98", "19.71"), of=UPSAMPLED_PER_FRAME),
        Line(label="upsampler, temporally aligned", paper=("45.39", "19.85"), of=UPSAMPLED),
    ),
    "(c) interpolation from 7.5 to 30 fps": (
        Line(label="interpolation model", of=INTERPOLATED),
        Line(label="linear blending", of=BLENDED),
    ),
    "(d) departures: what starts a clip": (
        Line(label="prediction that is given no frame"),
        Line(label="image first, then animated", study=IMAGE_FIRST),
    ),
    "(e) guidance scale": tuple(Line(label=f"{scale:g}", study=sweep_name(scale)) for scale in GUIDANCE_SCALES),
}

NOTES: Mapping[str, str] = {
    "(a) Table 1: generated clips": "ablations are trained for the same time each, from the same image model (end to "
    "end from nothing), on clips without given frames; `ours, small` is the one to compare them with",
    "(d) departures: what starts a clip": "identity start, zero terminal SNR and context noise need trainings of their "
    "own; the drift of the shipped model with context noise stands in W7",
}


def show_tables(studies: Mapping[str, Evaluation]) -> str:
    """All tables as Markdown."""
    parts = []
    for title, lines in TABLES.items():
        parts += [f"### {title}", "", _table(lines, studies), ""]
        if title in NOTES:
            parts += [NOTES[title], ""]
    return "\n".join(parts)


def drift_lines(studies: Mapping[str, Evaluation]) -> list[str]:
    """Per-frame distance of both ends of the roll-outs."""
    found = [(end, _find(studies, "main", "FD-EffLite0", f"{ROLLOUT} {end}")) for end in ("first", "last")]
    return [f"roll-out, {end} 15 %: FD-EffLite0 {figure.interval}" for end, figure in found if figure is not None]


def _table(lines: Sequence[Line], studies: Mapping[str, Evaluation]) -> str:
    header = "| | paper FVD | paper FID | FVD [95 %] | floor | FD-EffLite0 | ST-LPIPS-Alex | PSNR | N |"
    rows = [header, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        names = ("FVD", "FD-EffLite0", "ST-LPIPS-Alex", "PSNR")
        fvd, frames, perceptual, psnr = (_find(studies, line.study, name, line.of) for name in names)
        floor = "-" if fvd is None or fvd.floor is None else f"{fvd.floor:.4g}"
        known = next((figure for figure in (fvd, frames, perceptual, psnr) if figure is not None), None)
        count = "not run" if known is None else str(known.samples)
        cells = [line.label, *line.paper, _said(fvd), floor, _said(frames), _said(perceptual), _said(psnr), count]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _find(studies: Mapping[str, Evaluation], study: str, name: str, of: str) -> Figure | None:
    return studies[study].find(name, of) if study in studies else None


def _said(figure: Figure | None) -> str:
    return "-" if figure is None else figure.interval
