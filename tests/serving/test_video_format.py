import pytest

from serving.video_format import poll_after_ms


@pytest.mark.parametrize(
    ("eta_s", "elapsed_s", "wanted_ms"),
    [(8.0, 1.0, 2000), (0.0, 1.0, 200), (0.1, 30.0, 3000), (1000.0, 1.0, 5000), (0.0, 1000.0, 5000)],
)
def test_clients_are_told_to_ask_seldom_when_the_end_is_far_or_the_job_is_old(eta_s, elapsed_s, wanted_ms):
    assert poll_after_ms(eta_s, elapsed_s) == wanted_ms
