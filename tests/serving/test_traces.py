import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A process has one provider of traces for its whole life, so this one is another's.
CODE = """
import sys
from pathlib import Path
from opentelemetry import trace
import logging
from serving.traces import of_job, write_logs, write_traces
write_logs(Path(sys.argv[1]), "decode")
logging.getLogger("serving.worker").info("task done job=%s", "x")
write_traces(Path(sys.argv[1]), "decode")
trace_of_job = of_job("video_" + "0f" * 16)
with trace.get_tracer("x").start_as_current_span("stage decode", trace_of_job, attributes={"segment": 2}):
    pass
"""


def test_spans_of_a_job_are_one_trace_named_by_its_id(tmp_path):
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, check=True)
    (file,) = tmp_path.glob("decode-*.jsonl")
    (lines,) = tmp_path.glob("decode-*.log")
    assert lines.read_text().endswith("INFO serving.worker task done job=x\n")
    (span,) = map(json.loads, file.read_text().splitlines())
    assert (span["name"], span["attributes"]) == ("stage decode", {"segment": 2})
    assert span["context"]["trace_id"] == "0x" + "0f" * 16
    assert span["resource"]["attributes"]["process"] == "decode"
