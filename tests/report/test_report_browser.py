"""The report in headless Chromium: no errors, no network requests, working filters, a hand that rotates."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import shutil
import subprocess
import time

import aiohttp
import numpy as np
import pytest
from PIL import Image

from annotator.report import write_report
from tests.report.test_report import NAMES, write_labels, write_truth
from tests.robustness.hostile_photos import encoded

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: apt-get install chromium"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-unsafe-swiftshader", "--remote-debugging-port=0"),
)

LAPTOP, PHONE = (1366, 900), (390, 844)


class Browser:
    """One tab, controlled through the DevTools protocol."""

    def __init__(self, profile, *flags):
        self._loop = asyncio.new_event_loop()
        arguments = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._ids, self.events = itertools.count(1), []
        self._session = self._socket = None
        self._loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    async def _connect(self, port_file):
        for _ in range(300):
            if port_file.exists() and "\n" in port_file.read_text():
                break
            await asyncio.sleep(0.1)
        self._session = aiohttp.ClientSession()
        port = port_file.read_text().split()[0]
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            (page,) = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def ask(self, method, **parameters):
        return self._loop.run_until_complete(self._ask(method, parameters))

    async def _ask(self, method, parameters):
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=30)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script):
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script):
        """Wait until a script returns a true value, and return it."""
        end = time.monotonic() + 15
        while not (value := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return value

    def open(self, page, size=LAPTOP, theme="light"):
        width, height = size
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete' && document.title.includes('amvur')")

    def canvas(self):
        """Return the canvas's box and its pixels (H, W, 3) after pending frames."""
        box = self.run(
            "(b => [b.x, b.y, b.width, b.height])(document.querySelector('canvas').getBoundingClientRect())"
        )
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        shot = self.ask("Page.captureScreenshot", format="png", clip=clip)["data"]
        return box, np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")).astype(int)

    def drag(self, start, by):
        x, y = start
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for step in (0.5, 1):
            where = {"x": x + by[0] * step, "y": y + by[1] * step}
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **where)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **where)

    def press(self, key, code=0):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def complaints(self):
        """Return errors of the console, and URLs requested from the network."""
        self.run("1")
        found = []
        for event in self.events:
            message = event.get("params", {})
            if (
                event.get("method") == "Runtime.exceptionThrown"
                or message.get("entry", {}).get("level") == "error"
            ):
                found.append(message)
            if event.get("method") == "Network.requestWillBeSent":
                url = message["request"]["url"]
                found += [] if url.startswith(("file://", "data:")) else [url]
        return found

    def close(self):
        self._loop.run_until_complete(self._session.close())
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (folder / "photo.jpg").write_bytes(encoded(pixels, "JPEG"))
    labels = write_labels(folder / "labels", 120, NAMES, [str(folder / "photo.jpg")] * 120, bad=0.25)
    write_truth(folder / "truth.parquet", labels)
    return write_report(str(labels), folder / "out", 36, str(folder / "truth.parquet"))


def shown(browser):
    """Return the numbers of hands and rows that meet the filters."""
    hands = "[...document.querySelectorAll('.count')].reduce((sum, e) => sum + Number(e.textContent), 0)"
    return browser.run(hands), browser.run("rows.length")


def fill(browser, **values):
    for name, value in values.items():
        browser.run(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
            f"(document.querySelector('#filters').elements[{json.dumps(name)}])"
        )


@pytest.mark.parametrize(("size", "theme"), [(LAPTOP, "light"), (PHONE, "light"), (PHONE, "dark")])
def test_it_opens_without_a_complaint_and_fits_the_screen(browser, page, size, theme):
    browser.open(page, size, theme)
    browser.run("for (const image of document.images) image.loading = 'eager'")
    browser.until("[...document.images].every(image => image.complete)")
    assert browser.run("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert browser.run("document.images.length") == 4 * 36
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    assert browser.run(
        "[...document.querySelectorAll('img, svg')].every(e => e.alt || e.getAttribute('aria-label'))"
    )
    dark = browser.run("getComputedStyle(document.documentElement).backgroundColor").startswith("rgb(21")
    assert dark == (theme == "dark")
    # Small print stays readable: at least 9 pixels in a shrunk chart.
    assert browser.run(
        "Math.min(...[...document.querySelectorAll('svg.chart text')].filter(e => e.getBoundingClientRect().width)"
        ".map(e => 12 * e.closest('svg').getBoundingClientRect().width / e.closest('svg').viewBox.baseVal.width))"
    ) >= 9  # fmt: skip
    assert browser.complaints() == []


def test_the_filters_act_on_hands_and_rows(browser, page):
    browser.open(page)
    rows = browser.run("data.rows")
    hands = [row for row in rows if row["hand"] is not None]
    assert shown(browser) == (36, 120)

    def expect(meeting, **values):
        browser.run("document.querySelector('#filters').reset()")
        browser.until("document.querySelector('#found').textContent === ''")
        fill(browser, **values)
        assert shown(browser) == (sum(map(meeting, hands)), sum(map(meeting, rows))), values

    expect(lambda row: row["side"] == "left", side="left")
    expect(lambda row: row["outcome"] == "unreadable: missing", outcome="unreadable: missing")
    expect(lambda row: row["std"] is not None and 10 <= row["std"] <= 14.5, low="10", high="14.5")
    expect(lambda row: "<script>" in row["name"], text=" <SCRIPT> ")
    expect(lambda row: row["side"] == "right" and "00001" in row["name"], side="right", text="00001")
    expect(lambda row: False, text="no such name")
    assert browser.run("document.querySelector('.rows tbody').textContent") == "No row meets the filters."
    browser.run("document.querySelector('#filters [type=reset]').click()")
    browser.until("rows.length === 120")
    # Rows are sorted by the chosen column, unknown values last.
    browser.run(
        "[...document.querySelectorAll('.rows th button')].find(b => b.textContent.startsWith('error')).click()"
    )
    column = "[...document.querySelectorAll('.rows tbody tr')].map(row => row.lastChild.textContent)"
    errors = [float(text) for text in browser.run(column) if text]
    assert errors == sorted(errors) and len(errors) == 50
    assert browser.complaints() == []


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_hand_opens_rotates_zooms_and_changes_its_colours(browser, page, size):
    browser.open(page, size)
    browser.run("document.querySelector('.card').click()")
    browser.until("viewer && viewer.mesh && !viewer.waiting")
    box, first = browser.canvas()
    assert (np.abs(first - first[2, 2]).sum(-1) > 30).mean() > 0.05  # the canvas is not empty
    middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    views = [first]
    browser.drag(middle, (60, 20))
    views.append(browser.canvas()[1])
    browser.run("document.querySelector('canvas').focus()")
    browser.press("ArrowLeft", 37)
    views.append(browser.canvas()[1])
    browser.ask(
        "Input.dispatchMouseEvent", type="mouseWheel", x=middle[0], y=middle[1], deltaX=0, deltaY=-300
    )
    browser.until("viewer.zoom > 1.1")
    views.append(browser.canvas()[1])
    browser.run("document.querySelector('[data-mode=texture]').click()")
    browser.until("mode === 'texture'")
    views.append(browser.canvas()[1])
    for one, other in itertools.pairwise(views):
        assert (np.abs(one - other).sum(-1) > 30).mean() > 0.01
    browser.run("document.querySelector('[data-mode=uncertainty]').click()")
    browser.press("0", 48)
    browser.run("document.querySelector('[data-do=reset]').click()")
    browser.until("viewer.zoom === 1")
    again = browser.canvas()[1]  # except the focus ring
    np.testing.assert_allclose(again[8:-8, 8:-8], first[8:-8, 8:-8], atol=3)
    name = browser.run("document.querySelector('#viewer-name').textContent")
    browser.run("document.querySelector('[data-do=next]').click()")
    browser.until(f"document.querySelector('#viewer-name').textContent !== {json.dumps(name)}")
    browser.press("Escape", 27)
    browser.until("!document.querySelector('#viewer').open")
    assert browser.complaints() == []


def test_a_hand_rotates_where_there_is_no_webgl(page, tmp_path):
    browser = Browser(tmp_path, "--disable-3d-apis")
    try:
        browser.open(page)
        assert browser.run("document.createElement('canvas').getContext('webgl')") is None
        browser.run("document.querySelector('.card').click()")
        browser.until("viewer && viewer.mesh && !viewer.waiting")
        box, first = browser.canvas()
        assert (np.abs(first - first[2, 2]).sum(-1) > 30).mean() > 0.05
        browser.drag((box[0] + box[2] / 2, box[1] + box[3] / 2), (60, 20))
        assert (np.abs(first - browser.canvas()[1]).sum(-1) > 30).mean() > 0.01
    finally:
        browser.close()


def test_a_page_that_was_moved_alone_says_what_is_missing(browser, page, tmp_path):
    shutil.copy(page, tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    browser.run("document.querySelector('.card').click()")
    browser.until("document.querySelector('.hint').textContent.includes('is missing beside this page')")
