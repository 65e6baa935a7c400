import pytest

from serving.conductor import Conductor
from serving.worker import Worker
from tests.serving.house import House, wait_for, working
from tests.serving.toy import ToyStages, make_checkpoint


@pytest.fixture
def house(tmp_path):
    return House(tmp_path, save_every_s=0.0)


def run_to_end(house: House, job: str) -> bytes:
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    return house.video(job)


def test_worker_makes_a_video_and_leaves_only_results_behind(house):
    job = house.submit(frames=24)
    run_to_end(house, job)
    done = house.backend.jobs.get(job)
    assert sorted(done.results) == ["segment-0", "segment-1", "segment-2", "spritesheet", "thumbnail", "video"]
    assert house.steps(job) == [(segment, step) for segment in range(3) for step in range(5)]
    assert done.steps_done == done.num_steps == 3 * 5 + 3 + 1


class Killed(BaseException):
    """Ends a worker's thread on the spot, as SIGKILL ends its process: nothing is saved or given back."""


def test_worker_killed_at_any_step_changes_no_byte(tmp_path):
    alone = House(tmp_path / "alone", save_every_s=0.0)
    expected = run_to_end(alone, alone.submit(frames=16))
    house = House(tmp_path / "killed", save_every_s=0.0, lease_s=1.0)
    job = house.submit(frames=16)
    for number, fatal_step in enumerate([2, 2, 1, 3]):
        worker = house.worker("denoise", f"w{number}")
        worker.shelf._models[house.release.digest] = house.stages.load(house.config.checkpoint, "denoise")
        countdown = [fatal_step]

        def observe(name, value, stage, countdown=countdown):
            countdown[0] -= name == "step_s"
            if countdown[0] <= 0:
                raise Killed

        worker.observe = observe
        wait_for(lambda worker=worker: try_work(worker))
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
    assert house.video(job) == expected
    assert len(house.steps(job)) > 10


def try_work(worker: Worker) -> bool:
    lease = worker._lease()
    if lease is None:
        return False
    with pytest.raises(Killed):
        worker._work(lease)
    return True


def test_results_do_not_depend_on_neighbours(tmp_path):
    alone = House(tmp_path / "alone")
    expected = run_to_end(alone, alone.submit(seed=7, steps=30))
    house = House(tmp_path / "mixed")
    job = house.submit(seed=7, steps=30)
    others = [house.submit(seed=seed, steps=2 + seed) for seed in range(5)]
    workers = [house.worker("denoise", "d1"), house.worker("denoise", "d2"), house.worker("decode")]
    with working(*workers):
        wait_for(lambda: all(house.backend.jobs.get(each).is_finished for each in [job, *others]))
    assert house.video(job) == expected
    assert len({house.video(each) for each in others}) == 5


def test_cancel_stops_the_work_before_the_next_step(house):
    job = house.submit(steps=200_000)
    with working(house.worker("denoise")):
        wait_for(lambda: len(house.steps(job)) > 3)
        house.backend.jobs.cancel(job)
        wait_for(lambda: not house.backend.jobs.is_running(job))
        stopped_at = len(house.steps(job))
        other = house.submit(seed=5)
        wait_for(lambda: len(house.steps(other)) == 5)
        assert len(house.steps(job)) == stopped_at


def test_job_cancelled_during_its_last_step_is_let_go_at_once(tmp_path):
    class LateCancel(ToyStages):
        def _publish(self, model, call):
            output = yield from super()._publish(model, call)
            house.backend.jobs.cancel(call.job)
            return output

    house = House(tmp_path, stages=LateCancel(trace=str(tmp_path / "trace")), lease_s=1000.0)
    job = house.submit()
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: house.backend.jobs.get(job).is_finished)
        wait_for(lambda: not house.backend.jobs.is_running(job))
    assert house.backend.jobs.get(job).status == "cancelled"


def test_short_job_overtakes_a_long_one_within_a_step(house):
    long = house.submit(seed=1, steps=3000)
    with working(house.worker("denoise")):
        wait_for(lambda: len(house.steps(long)) > 3)
        before = len(house.steps(long))
        short = house.submit(seed=2, steps=4)
        wait_for(lambda: len(house.steps(short)) == 4)
        lines = [line.split()[2] for line in house.trace.read_text().splitlines()]
        assert lines.index(short) - before < 60
        assert lines[lines.index(short) :][:4] == [short] * 4
        wait_for(lambda: len(house.steps(long)) > before + 100)
    steps = house.steps(long)
    assert steps == [(0, step) for step in range(len(steps))]


def test_worker_that_stops_saves_its_state_and_another_goes_on(house):
    job = house.submit(steps=3000)
    with working(house.worker("denoise", "first")):
        wait_for(lambda: len(house.steps(job)) > 20)
    done = len(house.steps(job))
    with working(house.worker("denoise", "second")):
        wait_for(lambda: len(house.steps(job)) > done + 5)
    assert house.steps(job)[: done + 5] == [(0, step) for step in range(done + 5)]


def test_job_that_cannot_be_done_fails_with_the_reason_and_harms_no_other(house):
    bad, good = house.submit(prompt="raise"), house.submit(seed=9)
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: all(house.backend.jobs.get(job).is_finished for job in (bad, good)))
    failed = house.backend.jobs.get(bad)
    assert (failed.status, failed.error_code) == ("failed", "stage_failed")
    assert "this prompt cannot be drawn" in failed.error_message
    assert house.video(good)


def test_release_becomes_active_when_all_pools_hold_it_and_a_broken_one_changes_nothing(house, tmp_path):
    conductor = Conductor(house.backend)
    stages = house.stages

    def settle(digest: str, status: str) -> None:
        def is_settled() -> bool:
            conductor.look()
            return house.backend.releases.get(digest).status == status

        wait_for(is_settled)

    with working(house.worker("denoise")):
        wait_for(lambda: house.backend.queue.lease("nobody", (), ()) is None)
        conductor.look()
        assert house.backend.releases.active() is None
        with working(house.worker("decode")):
            settle(house.release.digest, "active")
            old_job = house.submit(steps=300)
            broken = make_checkpoint(tmp_path, "bad", broken=True)
            digest, description = stages.describe(broken)
            house.backend.releases.propose(digest, broken, description)
            settle(digest, "failed")
            assert "damaged" in house.backend.releases.get(digest).error
            assert house.backend.releases.active().digest == house.release.digest
            better = make_checkpoint(tmp_path, "better")
            digest, description = stages.describe(better)
            house.backend.releases.propose(digest, better, description)
            settle(digest, "active")
            assert house.backend.releases.get(house.release.digest).status == "retired"
            wait_for(lambda: house.backend.jobs.get(old_job).is_finished)
    assert house.video(old_job)
