"""Input that cannot be used is a written row, never a missing one."""

from dataclasses import dataclass

STAGES = ("list", "fetch", "probe", "plan", "decode", "encode")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a source or a clip was put into quarantine.

    Attributes:
        source: name of the source.
        clip_id: empty if the whole source is meant.
        stage: where it happened, one of STAGES.
        reason: short code, such as open, no_video, decode, timeout, memory, crash, io.
        message: what the library said.
        clips: how many planned clips it cost; 0 for sources refused before any was planned.
    """

    source: str
    clip_id: str
    stage: str
    reason: str
    message: str
    clips: int = 0
