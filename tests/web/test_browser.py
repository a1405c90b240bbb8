"""The page in a real browser: Debian's chromium, driven by Selenium."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import ROOT, environment

pytest.importorskip("gradio", reason="the web page's extra is not installed")
pytest.importorskip("selenium", reason="Selenium is not installed (tests/requirements.txt)")

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian: chromium-driver)"),
]
# Without the network's features, which would look up hosts at every start.
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]


@pytest.fixture(scope="module")
def page(small_model, tmp_path_factory):
    """(address, folder of its samples) of `python -m mindspeed_mm.serve`."""
    folder = tmp_path_factory.mktemp("browser") / "samples"
    flags = ["--device", "cpu", "--mm-model", small_model / "sample.json", "--port", 0, "--save-path", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "mindspeed_mm.serve", *map(str, flags)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"the page is at (http://127\.0\.0\.1:\d+)", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[1], folder
    process.terminate()
    try:
        process.wait(10)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in [*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page as its reader sees it."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all("#prompt textarea"))

    def all(self, selector: str):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition, timeout_s: float = 60):
        try:
            return WebDriverWait(self.browser, timeout_s, poll_frequency=0.05).until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"nothing came of it in {timeout_s} s; the page says:\n{self.text('body')}")

    def script(self, code: str):
        return self.browser.execute_script(code)

    def fill(self, selector: str, text) -> None:
        (field,) = self.all(selector)
        field.clear()
        field.send_keys(str(text))

    def ask(self, prompt: str, **fields) -> None:
        self.fill("#prompt textarea", prompt)
        for name, value in fields.items():
            self.fill(f"#{name} input", value)
        self.all("#sample")[0].click()

    def text(self, selector: str) -> str:
        return self.script(f"return document.querySelector('{selector}')?.innerText ?? ''")


def test_a_prompt_becomes_a_video_that_plays(page, browser):
    address, folder = page
    view = Page(browser, address)
    view.ask("a blue square <b>moving</b> ${1+1} {{up}}", steps=90, seed=5)
    view.wait(lambda: view.all("#status progress"))
    seen, previews = set(), set()
    while not view.all("#result video"):
        state = view.script(
            "return [document.querySelector('#status progress')?.value, document.querySelector('#status img')?.src]"
        )
        seen.add(state[0])
        previews.add(state[1])
        assert not view.all("#status .failed"), view.text("#status")
    steps = sorted(value for value in seen if value is not None)
    assert len(steps) >= 3 and 0 < steps[0] < steps[-1] <= 90
    assert any(source and source.startswith("data:image/jpeg") for source in previews)

    video = "document.querySelector('#result video')"
    view.wait(lambda: view.script(f"return {video}.readyState") >= 3)
    assert view.script(f"return [{video}.videoWidth, {video}.videoHeight, {video}.error]") == [32, 32, None]
    assert view.script(f"return {video}.duration") == pytest.approx(9 / 24, abs=0.05)
    first = view.script(f"return [{video}.paused, {video}.getVideoPlaybackQuality().totalVideoFrames]")
    view.wait(lambda: view.script(f"return {video}.getVideoPlaybackQuality().totalVideoFrames") > first[1])
    assert not first[0]  # it started by itself

    assert "a blue square <b>moving</b> ${1+1} {{up}}" in view.text("#result")
    assert "seed 5, 9 x 32 x 32, 90 steps" in view.text("#result")
    assert len(view.all("#history figure")) == len(list(folder.glob("*.mp4"))) == 1
    if "PAGE_SCREENSHOT" in os.environ:
        Path(os.environ["PAGE_SCREENSHOT"]).write_bytes(browser.get_screenshot_as_png())


def test_a_size_that_cannot_be_is_explained(page, browser):
    view = Page(browser, page[0])
    view.ask("a red circle", frames=10, steps=2)
    view.wait(lambda: "10 frames" in view.text("#status .failed"))


def test_stop_ends_a_sample_and_the_next_one_works(page, browser):
    address, folder = page
    before = len(list(folder.glob("*.mp4")))
    view = Page(browser, address)
    assert view.wait(lambda: len(view.all("#history figure"))) == before  # the history outlives a visit
    view.ask("a red circle", steps=200)
    view.wait(lambda: view.all("#status progress"))
    view.all("#stop")[0].click()
    view.wait(lambda: "Stopped" in view.text("#status"))
    time.sleep(1)
    assert not view.all("#status progress")
    assert len(list(folder.glob("*.mp4"))) == before
    view.ask("a green triangle", steps=2)
    view.wait(lambda: view.all("#result video"))
    assert len(view.all("#history figure")) == before + 1


def test_it_keeps_the_browser_at_home(page, browser):
    """Nothing of the page comes from another host."""
    view = Page(browser, page[0])
    sources = view.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    elsewhere = [source for source in sources if not source.startswith((page[0], "data:", "blob:"))]
    assert elsewhere == []
