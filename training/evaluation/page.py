"""The report of an evaluation as one HTML page with players and contact sheets beside it."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.tensors import VideoFrames
from pipelines.video_io import contact_sheet, write_mp4
from training.evaluation.figures import HEADER, Evaluation, figure_rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { border-bottom: 1px solid #ddd; padding: 0.2rem 0.6rem; }
th { text-align: left; } video, img { max-width: 100%; border: 1px solid #ccc; }
.clips { display: flex; flex-wrap: wrap;
gap: 0.5rem; } code { background: #f2f2f2; padding: 0 0.2em; } p.note { color: #555; font-size: 0.9rem; }
"""


def write_page(
    out: Path, evaluation: Evaluation, clips: Mapping[str, Sequence[VideoFrames]], fps: Mapping[str, float]
) -> None:
    """Write index.html, an MP4 for each clip and a sheet for each set.

    Args:
        out: folder.
        evaluation: the figures.
        clips: some clips of each set.
        fps: of the clips of each set.
    """
    sections = [_section(out, of, several, fps[of]) for of, several in clips.items() if several]
    rows = "\n".join(_row("td", row) for row in figure_rows(evaluation.figures))
    skipped = "".join(f"<li>{html.escape(s.name)}: {html.escape(s.why)}</li>" for s in evaluation.skipped)
    notes = "".join(
        f"<li>{html.escape(note)}</li>"
        for note in sorted({f"{f.name}: {f.note}" for f in evaluation.figures if f.note})
    )
    body = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation of {html.escape(evaluation.checkpoint)}</title>
<style>{STYLE}</style>
<h1>Evaluation of {html.escape(evaluation.checkpoint)}</h1>
<p>v: lower is better, ^: higher is better. The interval holds the figure in 95 of 100 resamples of the clips; the floor
is the same measure of real clips against as many other real clips. Everything is in <code>evaluation.json</code>.</p>
<table>{_row("th", HEADER)}{rows}</table>
<ul class="note">{notes}</ul>
{"<h2>Skipped</h2><ul>" + skipped + "</ul>" if skipped else ""}
{"".join(sections)}
"""
    (out / "index.html").write_text(body)


def _section(out: Path, of: str, clips: Sequence[VideoFrames], fps: float) -> str:
    slug = "".join(letter if letter.isalnum() else "-" for letter in of)
    (out / f"{slug}.png").write_bytes(contact_sheet(clips))
    players = []
    for number, clip in enumerate(clips):
        if len(clip) > 1:
            write_mp4(out / f"{slug}-{number}.mp4", clip, fps)
            players.append(f'<video src="{slug}-{number}.mp4" controls loop muted width="256"></video>')
    sheet = f'<p><img src="{slug}.png" alt="frames of {html.escape(of)}"></p>'
    return f'<h2>{html.escape(of)}</h2><div class="clips">{"".join(players)}</div>{sheet}'


def _row(cell: str, values: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(value)}</{cell}>" for value in values) + "</tr>"
