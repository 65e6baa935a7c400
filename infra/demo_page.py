"""The page that shows what the demo did: corpus, reconstruction, loss curves, the clip, and where everything lies."""

import html
from pathlib import Path

from infra.tracking import Curve, curves

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222; }
img, video { max-width: 100%; border: 1px solid #ccc; image-rendering: auto; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: 0.9rem; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; } code { background: #f2f2f2; padding: 0 0.2em; }
td { padding: 0.1rem 1rem 0.1rem 0; vertical-align: top; }
"""

PLACES = {
    "corpus/": "the videos that went in: synthetic drives with labels, real clips",
    "shards/": "their latents, with plan, ledger and index",
    "runs/": "resumable state of the trainings",
    "mlflow.db": "curves and samples: <code>mlflow ui --backend-store-uri sqlite:///mlflow.db</code>",
    "checkpoint/": "the fine-tuned system: <code>python -m pipelines generate --checkpoint</code> takes it",
    "day.mp4, night.mp4": "clips of the checkpoint that ships",
    "service/": "the service's database and results",
    "demo.mp4": "the clip the service answered with",
    "demo.log": "everything the commands said",
}


def write(out: Path) -> None:
    """Write `index.html` into the demo's folder from the files the other steps left there."""
    drawn = "\n".join(_curve_svg(curve) for curve in curves(f"sqlite:///{out.absolute() / 'mlflow.db'}", "loss"))
    places = "\n".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{text}</td></tr>" for name, text in PLACES.items()
    )
    body = f"""
<h1>From a folder of videos to an HTTP answer</h1>
<p>Everything on this page was made on this machine within minutes. It starts from a small driving model that ships with
the project and was trained on drawn drives; its image model and temporal layers are then fine-tuned on real clips.</p>
<h2>What ships</h2>
{_video("day.mp4", "Driving by day: eight key frames, half a second apart.")}
{_figure("day.png", "The same clip, frame by frame.")}
{_video("night.mp4", "Driving by night.")}
{_figure("night.png", "The same clip, frame by frame.")}
<h2>Fine-tuned, and served</h2>
{_video("demo.mp4", "<code>POST /v1/videos</code> without a scene, as the stock <code>openai</code> client sends it.")}
{_figure("demo.png", "The same clip, frame by frame.")}
<h2>What went in</h2>
{_figure("synthetic.png", "Synthetic driving: two drives.")}
{_figure("real.png", "Real driving clips.")}
<h2>What the latents keep</h2>
{_figure("again.png", "Rows of real frames, each above the same after encoding and decoding.")}
<h2>Loss</h2>
<div class="curves">{drawn}</div>
<h2>Where everything lies</h2>
<table>{places}</table>
"""
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>videoldm demo</title><style>{STYLE}</style>'
    (out / "index.html").write_text(head + body)


def _video(name: str, caption: str) -> str:
    shown = f'<video src="{name}" controls autoplay loop muted width="512"></video>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _figure(name: str, caption: str) -> str:
    return f'<figure><img src="{name}" alt="{html.escape(caption)}"><figcaption>{caption}</figcaption></figure>'


def _curve_svg(curve: Curve, width: int = 300, height: int = 150) -> str:
    steps = [step for step, _ in curve.points]
    values = [value for _, value in curve.points]
    low, high = min(values), max(values)
    points = " ".join(
        f"{(step - steps[0]) / max(steps[-1] - steps[0], 1) * width:.1f},"
        f"{height - (value - low) / max(high - low, 1e-9) * height:.1f}"
        for step, value in curve.points
    )
    return (
        f'<figure><svg viewBox="-4 -4 {width + 8} {height + 8}" width="{width}" height="{height}">'
        f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/></svg>'
        f"<figcaption>{html.escape(curve.run)}: {values[0]:.3g} to {values[-1]:.3g} in {steps[-1]} steps"
        "</figcaption></figure>"
    )
