"""The page in a real browser: Debian's chromium, driven by Selenium."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from api_server import served
from PIL import Image
from test_image_input import maker, picture  # noqa: F401, fixtures: a model that takes images, and one for it

from mindspeed_mm.serving.keys import VARIABLE, Keys

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
TOKEN = "a-token-0123456789"


@pytest.fixture(scope="module")
def page(maker):  # noqa: F811
    """(address, desk) of a server of the page."""
    with served(maker) as (address, desk):
        yield address, desk


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
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

    def all(self, selector: str):
        return [found for found in self.browser.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()]

    def wait(self, condition, timeout_s: float = 30):
        try:
            return WebDriverWait(self.browser, timeout_s, poll_frequency=0.05).until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"nothing came of it in {timeout_s} s; the page says:\n{self.text('body')}")

    def script(self, code: str):
        return self.browser.execute_script(code)

    def fill(self, **fields) -> None:
        self.wait(lambda: self.all("#send"))
        for name, value in fields.items():
            (field,) = self.all(f"#{name}")
            if field.get_attribute("type") != "file":
                field.clear()
            field.send_keys(str(value))

    def ask(self, **fields) -> None:
        self.fill(**fields)
        self.click("#send")

    def click(self, selector: str) -> None:
        self.wait(lambda: self.all(selector))[0].click()

    def text(self, selector: str) -> str:
        return self.script(f"return document.querySelector('{selector}')?.innerText ?? ''")

    def states(self) -> list[str]:
        return self.script("return [...document.querySelectorAll('.video')].map(card => card.dataset.status)")


def held(maker, monkeypatch) -> threading.Event:  # noqa: F811
    """Samples stop behind their second step until the event is set."""
    go, make = threading.Event(), maker.make

    def slowly(name, line, tell, check):
        def told(number, total, preview):
            tell(number, total, preview)
            while number == 2 and not go.wait(0.01):
                tell(number, total, preview)  # a later look finds a picture, as in a long step
                check()

        return make(name, line, told, check)

    monkeypatch.setattr(maker, "make", slowly)
    return go


def test_a_prompt_becomes_a_video_that_plays(page, browser, maker, monkeypatch):  # noqa: F811
    """With its place in the queue, its progress and a picture of it before."""
    go = held(maker, monkeypatch)
    view = Page(browser, page[0])
    view.ask(prompt="a blue square <b>moving</b> ${1+1} {{up}}", seed=5)
    view.wait(lambda: view.states() == ["in_progress"])
    view.ask(prompt="another", frames=1)
    view.wait(lambda: "it is the next one" in view.text("[data-status=queued] .state"))
    view.wait(lambda: view.script("return document.querySelector('[data-status=in_progress] progress').value") == 49)
    preview = "document.querySelector('[data-status=in_progress] img')"
    view.wait(lambda: view.script(f"return {preview}?.naturalWidth") == 64)
    assert view.script(f"return {preview}.src").startswith("blob:")
    if "PAGE_SCREENSHOT" in os.environ:
        Path(os.environ["PAGE_SCREENSHOT"]).write_bytes(browser.get_screenshot_as_png())
    go.set()
    view.wait(lambda: view.states() == ["completed", "completed"])
    view.wait(lambda: view.all(".picture video"))
    video = "document.querySelector('video')"
    view.wait(lambda: view.script(f"return {video}.readyState") >= 3)
    assert view.script(f"return [{video}.videoWidth, {video}.videoHeight, {video}.error]") == [64, 64, None]
    assert view.script(f"return {video}.duration") == pytest.approx(9 / 24, abs=0.05)
    view.wait(lambda: view.script(f"return {video}.getVideoPlaybackQuality().totalVideoFrames") > 1)
    first = view.all(".video")[1].text
    assert "a blue square <b>moving</b> ${1+1} {{up}}" in first and "seed 5, 9 frames, 64x64, 4 steps" in first
    view.wait(lambda: view.script("return document.querySelector('.video img').naturalWidth") == 64)  # the still image
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert [line for line in said if "409" not in line] == []  # a picture that is not there yet


def test_images_are_sent_and_the_video_follows_their_shape(page, browser, picture):  # noqa: F811
    address, desk = page
    view = Page(browser, address)
    view.ask(prompt="from dawn", input_reference=picture, last_image=picture)
    view.wait(lambda: view.text(".facts + .actions") and "96x48" in view.text(".video .facts"))
    view.wait(lambda: view.states()[0] == "completed")
    (newest,) = desk.queue.list("anyone", 1, None, True)
    kept = {key: Path(newest.request["line"][key]) for key in ("image", "last_image")}
    assert len(set(kept.values())) == 2
    assert all(np.array_equal(Image.open(file), Image.open(picture)) for file in kept.values())


def test_what_cannot_be_made_is_said_at_its_field(page, browser):
    view = Page(browser, page[0])
    before = len(page[1].queue.list("anyone", 100, None, True))
    view.ask(prompt="a red circle", width=8000, height=8000)
    view.wait(lambda: "pixels" in view.text("#fault"))
    view.ask(prompt="a red circle", width=64, height=64, frames=10)
    view.wait(lambda: "10 frames" in view.text("#fault"))
    assert len(page[1].queue.list("anyone", 100, None, True)) == before


def test_cancel_ends_a_video_and_delete_removes_it(page, browser, maker, monkeypatch):  # noqa: F811
    go = held(maker, monkeypatch)
    view = Page(browser, page[0])
    view.ask(prompt="a red circle", seed=8)
    view.wait(lambda: view.states()[:1] == ["in_progress"])
    count = len(view.states())
    view.click("[data-status=in_progress] [data-does=cancel]")
    view.wait(lambda: view.text(".video .state") == "Cancelled.")
    go.set()
    view.click(".video [data-does=again]")
    assert view.script("return [prompt.value, seed.value, frames.value]".replace("prompt", "byId('prompt')")
                       .replace("seed.", "byId('seed').").replace("frames.", "byId('frames').")) == ["a red circle", "8", "9"]  # fmt: skip
    view.click(".video [data-does=remove]")
    browser.switch_to.alert.accept()
    view.wait(lambda: len(view.states()) == count - 1)
    view.click("#send")
    view.wait(lambda: view.states()[0] == "completed")


def test_a_server_with_keys_asks_for_one_and_shows_its_videos_alone(maker, browser, tmp_path, monkeypatch):  # noqa: F811
    maker.archive.folder, before = tmp_path, maker.archive.folder
    try:
        with served(maker, keys=Keys.read(None, None, {VARIABLE: f"alice {TOKEN}"})) as (address, _):
            view = Page(browser, address)
            view.wait(lambda: view.all("#token"))
            view.fill_token = lambda word: (view.all("#token")[0].send_keys(word), view.click("#access button"))
            view.fill_token("wrong")
            view.wait(lambda: "send a token" in view.text("#refused"))
            view.fill_token(TOKEN)
            view.wait(lambda: view.all("#none"))
            view.ask(prompt="mine", seed=1)
            view.wait(lambda: view.script("return document.querySelector('video')?.readyState") == 4)
            assert view.script("return document.querySelector('video').src").startswith("blob:")
            assert TOKEN not in view.script("return document.documentElement.outerHTML")
    finally:
        maker.archive.folder = before


def test_it_keeps_the_browser_at_home(page, browser):
    """Nothing of the page comes from another host."""
    view = Page(browser, page[0])
    view.wait(lambda: view.all(".video"))
    sources = view.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [source for source in sources if not source.startswith((page[0], "data:", "blob:"))] == []
