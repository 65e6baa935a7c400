"""The page in a real browser, against the whole service in one process."""

import os
import shutil
from pathlib import Path

import pytest

from serving.config import Limits
from tests.serving.house import House, serving, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]
selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402


@pytest.fixture(scope="module")
def driver():
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        if os.environ.get("VIDEOLDM_REQUIRE_PEERS"):
            pytest.fail("no Chromium on this machine, and VIDEOLDM_REQUIRE_PEERS is set")
        pytest.skip("no Chromium on this machine; apt-get install chromium chromium-driver to run this test")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    limits = Limits(max_steps=9000)
    return House(tmp_path_factory.mktemp("page"), {"limits": limits}, preview_every_s=0.0)


@pytest.fixture(scope="module")
def page(house, driver):
    with serving(house) as url:
        driver.get(url)
        yield driver


def element(page, name):
    return page.find_element(By.ID, name)


def picture(page, name):
    """Keep a screenshot where PAGE_PICTURES says, for people to look at."""
    if folder := os.environ.get("PAGE_PICTURES"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


def fill(page, **values):
    for name, value in values.items():
        field = element(page, name)
        field.clear()
        field.send_keys(str(value))


def test_visitor_chooses_a_scene_draws_a_box_watches_and_gets_the_video(page, house):
    wait_for(lambda: element(page, "model").text.startswith("toy"))
    fill(page, prompt="a wet road", num_inference_steps=600, seed=12, num_frames=16)
    page.find_element(By.CSS_SELECTOR, "input[value=night]").click()
    canvas = element(page, "boxes")
    ActionChains(page).move_to_element_with_offset(canvas, -60, -20).click_and_hold().move_by_offset(
        80, 50
    ).release().perform()
    element(page, "go").click()
    wait_for(lambda: element(page, "preview").is_displayed())
    wait_for(lambda: "step" in element(page, "status").text)
    picture(page, "running")
    wait_for(lambda: element(page, "player").is_displayed())
    wait_for(lambda: page.execute_script("return document.getElementById('player').readyState") >= 2)
    assert page.execute_script("return document.getElementById('player').videoWidth") == 32
    assert element(page, "status").text == "completed (seed 12)"
    assert element(page, "download").get_attribute("download").endswith(".mp4")
    assert not element(page, "cancel").is_displayed()
    wait_for(lambda: page.find_elements(By.CSS_SELECTOR, "#history img[src^=blob]"))
    picture(page, "done")
    request = house.backend.jobs.list("anonymous", limit=1)[0].request
    assert (request["scene"], request["seed"], request["num_frames"]) == ("night", 12, 16)
    (box,) = request["boxes"]
    assert 0 < box[0] < box[2] < 1
    assert 0 < box[1] < box[3] < 1


def test_visitor_cancels_and_the_work_stops(page, house):
    fill(page, num_inference_steps=9000)
    element(page, "go").click()
    wait_for(lambda: "step" in element(page, "status").text)
    element(page, "cancel").click()
    wait_for(lambda: element(page, "status").text.startswith("cancelled"))
    picture(page, "cancelled")
    job = house.backend.jobs.list("anonymous", limit=1)[0]
    assert not house.backend.jobs.is_running(job.id)


def test_refusal_is_told_in_words(page):
    fill(page, num_inference_steps=10_000)
    element(page, "go").click()
    wait_for(lambda: "the limit is 9000" in element(page, "problem").text)
    picture(page, "refused")


def test_page_logs_no_error_of_its_own(page):
    errors = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in errors if "status of 400" not in entry["message"]] == []
