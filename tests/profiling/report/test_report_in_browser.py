"""The report as a browser shows it: Debian's Chromium, headless, by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devit_profiling.report.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from conftest import FakeRun
else:
    FakeRun = Browser = Page = object

pytestmark = pytest.mark.system

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PLOTS = ("Energy per inference", "Power of jetson1", "Power of jetson2", "Share of answers", "Parts of", "Arrival of")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a network of its own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[test]'")
    # As root, Chromium starts without its sandbox alone; the page is one that this test made.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield opened
        opened.close()


@pytest.fixture(params=WIDTHS)
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    yield opened
    opened.close()


def simulated(run: FakeRun) -> FakeRun:
    devices = tuple(replace(device, simulated_board="orin-nano") for device in run.devices)
    return replace(run, devices=devices)


def open_report(page: Page, folder: Path) -> None:
    """Open it; anything on the console, and any request but for the file itself, fails."""
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    url = (folder / "report.html").as_uri()
    page.goto(url, wait_until="networkidle")
    assert said == []
    assert asked == [url]


def test_real_report_opens_offline_without_a_word_on_the_console(page: Page, real_run: Path) -> None:
    write_report(real_run)
    open_report(page, real_run)
    assert page.locator("h1").inner_text().startswith("Profile: jetson1, jetson2")


def test_plots_are_there_and_visible_at_any_width(page: Page, two_devices: FakeRun, tmp_path: Path) -> None:
    write_report(two_devices.write(tmp_path / "run"))
    open_report(page, tmp_path / "run")
    assert page.locator("figure").count() == len(PLOTS)
    width = page.viewport_size["width"] if page.viewport_size is not None else 0
    for title in PLOTS:
        plot = page.locator(f'figure[aria-label^="{title}"] svg')
        plot.scroll_into_view_if_needed()
        assert plot.is_visible()
        box = plot.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert 0.6 * min(width, 800) < box["width"] <= width - box["x"]
        assert box["height"] > 50
        # Something is drawn: curves, bars or bands, and their texts.
        assert plot.locator("path").count() > 10
        assert plot.locator("text").count() > 5


def test_page_never_scrolls_sideways(page: Page, two_devices: FakeRun, tmp_path: Path) -> None:
    """Wide tables scroll in a frame of their own."""
    write_report(two_devices.write(tmp_path / "run"))
    open_report(page, tmp_path / "run")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_simulated_is_seen_on_the_first_screen_and_in_the_figures(
    page: Page, two_devices: FakeRun, tmp_path: Path
) -> None:
    write_report(simulated(two_devices).write(tmp_path / "run"))
    open_report(page, tmp_path / "run")
    banner = page.get_by_role("alert").bounding_box()
    assert banner is not None
    assert banner["y"] + banner["height"] < 900
    for title in PLOTS[:3]:
        texts = page.locator(f'figure[aria-label^="{title}"] svg text').all_text_contents()
        assert any("SIMULATED" in text for text in texts)
