"""Requests made up from the OpenAPI document: whatever is sent, the answer is one that the document promises."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from serving.config import Limits
from tests.serving.house import House, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    # Few steps and frames: what is accepted must also be done while more is being sent.
    limits = Limits(max_steps=5, max_frames=8)
    house = House(tmp_path_factory.mktemp("schema"), {"limits": limits, "max_unfinished": 8})
    with serving(house) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    "POST /v1/videos",
    "GET /v1/videos",
    "GET /v1/videos/{video_id}",
    "DELETE /v1/videos/{video_id}",
    "POST /v1/videos/{video_id}/cancel",
    "GET /v1/videos/{video_id}/content",
    "GET /v1/videos/{video_id}/events",
    "POST /v1/videos/{video_id}/remix",
    "POST /v1/videos/edits",
    "POST /v1/videos/extensions",
    "GET /v1/models",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]


def test_document_lists_these_operations_and_no_other(document):
    found = [result.ok().label for result in document.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_made_up_request_gets_a_promised_answer(document, operation):
    method, path = operation.split()
    strategy = document[path][method].as_strategy()
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]

    @hypothesis.given(case=strategy)
    @hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    def send(case):
        case.call_and_validate(checks=checks, timeout=20)

    send()
