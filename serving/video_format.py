"""A job as the `Video` object of the OpenAI Videos API, with our own fields beside it."""

from typing import Any

from serving.records import Job

_MIN_POLL_MS, _MAX_POLL_MS = 200, 5000


def video(job: Job, *, model: str, retention_s: float, queue_position: int, eta_s: float) -> dict[str, Any]:
    """Describe a job to its caller.

    Args:
        job: the job.
        model: name of the checkpoint it runs on.
        retention_s: how long results are kept.
        queue_position: jobs that go before it.
        eta_s: estimated seconds until it is done.
    """
    request = job.request
    kept_until = None if job.completed_at is None else int(job.completed_at + retention_s)
    return {
        "id": job.id,
        "object": "video",
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": kept_until,
        "model": model,
        "progress": _progress(job),
        "prompt": request["prompt"],
        "seconds": f"{(request['num_frames'] + request.get('given_frames', 0)) / request['fps']:g}",
        "size": f"{request['width']}x{request['height']}",
        "status": job.status,
        "remixed_from_video_id": job.parent,
        "error": None if job.error_code is None else {"code": job.error_code, "message": job.error_message},
        "seed": request["seed"],
        "num_frames": request["num_frames"],
        "fps": request["fps"],
        "num_inference_steps": request["num_inference_steps"],
        "guidance_scale": request["guidance_scale"],
        "scene": request["scene"],
        "boxes": request.get("boxes"),
        "priority": job.priority,
        "queue_position": queue_position,
        "eta_s": round(eta_s, 1),
        "steps_done": job.steps_done,
        "num_steps": job.num_steps,
        "stage_durations": {stage: round(duration_s, 3) for stage, duration_s in job.stages_s.items()},
        "segments": sum(variant.startswith("segment-") for variant in job.results),
        "release": job.release,
    }


def poll_after_ms(eta_s: float, elapsed_s: float) -> int:
    """When to ask again: often near the expected end, but never sooner than a tenth of the time gone by.

    So a job costs a few dozen questions at most, however long it takes and however wrong the estimate is.

    Args:
        eta_s: estimated seconds until the job is done.
        elapsed_s: seconds since it was accepted.
    """
    return int(min(_MAX_POLL_MS, max(_MIN_POLL_MS, 1000 * eta_s / 4, 1000 * elapsed_s / 10)))


def _progress(job: Job) -> int:
    if job.status == "completed":
        return 100
    return min(99, 100 * job.steps_done // max(1, job.num_steps))
