"""What a plan will cost: shards, bytes and hours."""

from preprocessing.config import MIB
from preprocessing.plan_store import PlanSummary


def show_forecast(summary: PlanSummary) -> None:
    """Print the forecast of a plan."""
    print(f"sources       {summary.sources} ({summary.rejected} unusable, {summary.refused} left out)")
    print(f"clips         {summary.clips} ({summary.seconds_of_video / 3600:.2f} h of video)")
    print(f"groups        {summary.groups}")
    print(f"latents       {summary.latent_bytes / MIB:.1f} MiB")
    print(f"corpus        {summary.corpus_digest[:16]}")
