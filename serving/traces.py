"""OpenTelemetry spans: what was done for a job, in every process, as one trace.

A job's id ends in 32 hexadecimal digits, which are its trace's id: processes need not hand a context to each other.
"""

import logging
import os
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

_ID_DIGITS = 32


def write_traces(folder: Path | None, process: str) -> None:
    """Append this process's spans to a file of its own, one JSON object a line; None writes none.

    Args:
        folder: made if missing.
        process: what the process is, such as "ingress".
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{process}-{os.getpid()}.jsonl").open("a", buffering=1)
    provider = TracerProvider(resource=Resource.create({"service.name": "videoldm", "process": process}))
    exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def write_logs(folder: Path | None, process: str) -> None:
    """Append this process's lines, one for each request, job and task, to a file of its own; None writes none."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{process}-{os.getpid()}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def of_job(job_id: str) -> Context:
    """The trace that a job's spans belong to."""
    digits = job_id[-_ID_DIGITS:]
    root = trace.SpanContext(
        trace_id=int(digits, 16),
        span_id=int(digits[:16], 16) or 1,
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(root))
