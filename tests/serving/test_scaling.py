"""How many replicas a pool gets, and when a checkpoint that has not all stages becomes active."""

from types import SimpleNamespace

import pytest

from serving.releases import ReleaseStore
from serving.scaling import QueueDepth


@pytest.fixture
def releases(service):
    return ReleaseStore(service.engine, service.bell, service.clock)


def wanted(service, stages, lowest):
    context = SimpleNamespace(capacity_adjusted_max_replicas=3, target_num_replicas=7)
    return QueueDepth(service.url, stages, lowest)(context)[0]


def test_pool_grows_with_its_own_queue_within_its_bounds(service):
    assert wanted(service, ["paint"], 1) == 1
    assert wanted(service, ["paint"], 0) == 0
    for jobs, replicas in ((1, 1), (2, 2), (5, 3)):
        while len(service.jobs.list("anonymous", limit=100)) < jobs:
            service.submit()
        assert wanted(service, ["paint"], 1) == replicas
    assert wanted(service, ["show"], 0) == 0


def test_pool_sleeps_unless_a_checkpoint_needs_it_and_wakes_for_a_new_one(service, releases):
    releases.propose("r2", "/new", {"runs": ["paint"]})
    assert wanted(service, ["enlarge"], 0) == 0
    releases.propose("r3", "/newer", {"runs": ["paint", "enlarge"]})
    assert wanted(service, ["enlarge"], 0) == 1


def test_checkpoint_becomes_active_when_the_stages_it_has_are_loaded(service, releases):
    stages = {"paint", "show", "enlarge"}
    releases.propose("r2", "/new", {"runs": ["paint", "show"]})
    releases.end_load("r2", "a", ["paint"], None)
    assert releases.advance(stages) is None
    releases.end_load("r2", "b", ["show"], None)
    assert releases.advance(stages).status == "active"
