"""The study's order and its exact intervals; the page in a real browser."""

import http.client
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from pipelines.video_io import write_mp4
from training.evaluation.preference import (
    Answer,
    AnswerFile,
    Pair,
    exact_interval,
    find_pairs,
    order_for,
    report,
    shares,
    sign_test,
)
from training.evaluation.preference_server import Arguments, Study, make_server


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    """Four pairs of clips; system A is red, B blue."""
    root = tmp_path_factory.mktemp("study")
    for system, colour in (("ours", (220, 40, 40)), ("theirs", (40, 40, 220))):
        for index in range(4):
            frames = torch.tensor(colour, dtype=torch.uint8).expand(8, 32, 64, 3).clone()
            frames[:, :, 8 * index : 8 * index + 8] = 255
            write_mp4(root / system / f"{index}.mp4", frames, Fraction(4))
    return Arguments(a=root / "ours", b=root / "theirs", answers=root / "answers.jsonl", port=0)


def test_pairs_are_shown_in_another_order_to_every_rater_and_half_of_them_swapped() -> None:
    pairs = [Pair(str(index), Path("a"), Path("b")) for index in range(100)]
    orders = [order_for(pairs, rater, seed=3) for rater in (1, 2)]
    assert orders[0] == order_for(pairs, 1, seed=3)
    assert [seen.pair for seen in orders[0]] != [seen.pair for seen in orders[1]]
    for order in orders:
        assert sorted(seen.pair.name for seen in order) == sorted(pair.name for pair in pairs)
        assert sum(seen.swapped for seen in order) == 50


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Clopper and Pearson's intervals from tables: 95 %.
    [(0, 10, 0.0, 0.3085), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1.0), (197, 400, 0.4424, 0.5427)],
)
def test_exact_intervals(hits: int, total: int, low: float, high: float) -> None:
    assert exact_interval(hits, total) == pytest.approx((low, high), abs=1e-4)


def test_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(1, 9) == pytest.approx(2 * 11 / 1024)
    assert sign_test(5, 5) == 1


def test_answers_survive_and_later_ones_replace_earlier_ones(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", "study")
    for choice in ("A", "equal"):
        file.add(Answer(rater=1, pair="x", choice=choice))
    file.add(Answer(rater=2, pair="x", choice="B"))
    again = AnswerFile(tmp_path / "answers.jsonl", "study")
    assert [(s.choice, s.count) for s in shares(again.answers.values())] == [("A", 0), ("B", 1), ("equal", 1)]
    assert "2 answers of 2 raters to 1 pairs" in report(list(again.answers.values()), ("one", "other"))
    with pytest.raises(ValueError, match="another study"):
        AnswerFile(tmp_path / "answers.jsonl", "other")


def test_folders_without_common_names_are_refused(folders: Arguments, tmp_path: Path) -> None:
    assert [pair.name for pair in find_pairs(folders.a, folders.b, count=None, seed=0)] == [
        f"{i}.mp4" for i in range(4)
    ]
    with pytest.raises(ValueError, match="share no file names"):
        find_pairs(folders.a, tmp_path, count=None, seed=0)


def test_sides_are_told_as_systems(folders: Arguments, tmp_path: Path) -> None:
    study = Study(replace(folders, answers=tmp_path / "a.jsonl"))
    for rater in study.orders:
        for place in range(4):
            # This rater always prefers the red clip, wherever it stands.
            side = "left" if study.clip(rater, place, "left").parent == folders.a else "right"
            study.answer(rater, place, side)
        assert study.state(rater)["place"] is None
    assert [(s.choice, s.count) for s in shares(study.file.answers.values())] == [("A", 16), ("B", 0), ("equal", 0)]


@contextmanager
def served(arguments: Arguments) -> Iterator[ThreadingHTTPServer]:
    server = make_server(arguments)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_server_hides_the_systems_and_refuses_nonsense(folders: Arguments, tmp_path: Path) -> None:
    with served(replace(folders, answers=tmp_path / "a.jsonl")) as server:
        port = server.server_port
        status, state = ask(port, "GET", "/rater/1/next")
        assert status == 200
        assert "ours" not in state.decode()
        clips = {ask(port, "GET", f"/rater/1/clip/0/{side}")[1] for side in ("left", "right")}
        assert clips == {(folder / find_name(server)).read_bytes() for folder in (folders.a, folders.b)}
        for path in ("/rater/9", "/rater/1/clip/7/left", "/rater/1/clip/0/..", "/../setup.py"):
            assert ask(port, "GET", path)[0] == 404
        for body in ({"place": 0}, {"place": 0, "side": "both"}, {"place": 99, "side": "left"}, [1]):
            assert ask(port, "POST", "/rater/1/answer", body)[0] == 400
        assert json.loads(ask(port, "POST", "/rater/1/answer", {"place": 0, "side": "equal"})[1])["done"] == 1


def find_name(server: ThreadingHTTPServer) -> str:
    return server.RequestHandlerClass.args[0].orders[1][0].pair.name  # type: ignore[attr-defined]


@pytest.mark.browser
@pytest.mark.slow
def test_a_rater_answers_in_a_browser(folders: Arguments, tmp_path: Path) -> None:
    selenium = pytest.importorskip("selenium.webdriver")
    waiting = pytest.importorskip("selenium.webdriver.support.ui")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        if os.environ.get("VIDEOLDM_REQUIRE_PEERS"):
            pytest.fail("no Chromium on this machine, and VIDEOLDM_REQUIRE_PEERS is set")
        pytest.skip("no Chromium on this machine; apt-get install chromium chromium-driver to run this test")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,800"):
        options.add_argument(option)
    arguments = replace(folders, answers=tmp_path / "a.jsonl")
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(chromedriver))
    try:
        with served(arguments) as server:
            driver.get(f"http://127.0.0.1:{server.server_port}/rater/2")
            wait = waiting.WebDriverWait(driver, 120)
            for done, way in enumerate(("click", "left", "right", "space")):
                wait.until(lambda page, done=done: page.find_element("id", "count").text == f"{done} of 4")
                wait.until(lambda page: page.find_element("css selector", "[data-side=left]").is_enabled())
                if done == 0 and (folder := os.environ.get("PAGE_PICTURES")):
                    driver.save_screenshot(str(Path(folder) / "preference.png"))
                if way == "click":
                    driver.find_element("css selector", "[data-side=equal]").click()
                else:
                    key = {"left": selenium.Keys.ARROW_LEFT, "right": selenium.Keys.ARROW_RIGHT, "space": " "}[way]
                    selenium.ActionChains(driver).send_keys(key).perform()
            wait.until(lambda page: page.find_element("id", "end").is_displayed())
            assert driver.find_element("id", "error").text == ""
            answers = AnswerFile(arguments.answers, Study(arguments).file.study).answers
            assert [answer.choice == "equal" for answer in answers.values()] == [True, False, False, True]
            assert {answer.rater for answer in answers.values()} == {2}
    finally:
        driver.quit()
