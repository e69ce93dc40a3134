"""The page in a real browser, with mouse, keyboard and phone size, on real faces."""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chromium import CHROMIUM, CONTRAST, MARKS
from tests.serve.conftest import TOKEN, png

from spherecf.data import IdentityFolder
from spherecf.gallery import Gallery
from spherecf.photos import FaceAssessor
from spherecf.serve import create_app
from spherecf.serve.tickets import Tickets

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
pytestmark = MARKS
FLAGS = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
expect = sync_api.expect

# JavaScript: all text with too little contrast to its background.
LOW_CONTRAST = (
    "() => {"
    + CONTRAST
    + """return [...document.querySelectorAll("body *")].filter(node => node.checkVisibility()
  && !node.closest("svg, noscript, option")
  && [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()))
  .map(node => [contrast(node), node.outerHTML.slice(0, 90)]).filter(([value]) => value < 4.5); }"""
)
OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(node => node.checkVisibility()
  && node.getBoundingClientRect().right > innerWidth + 1 && !node.closest("svg"))
  .map(node => node.outerHTML.slice(0, 90))"""
ORIGIN = re.compile(r"^(?:blob:)?(\w+://[^/]+).*")
FOCUSED = "(({ id, textContent, ariaLabel }) => ariaLabel || id || textContent)(document.activeElement)"


@pytest.fixture(scope="module")
def address(assessor: FaceAssessor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a service with a gallery, shared by the tests of this file."""
    import uvicorn

    model = assessor.model
    facts = {"model": model.fingerprint(), "dim": model.backbone.dim, "radius": model.radius}
    people = Gallery.open(
        tmp_path_factory.mktemp("gallery") / "people", calibration=model.calibration, **facts
    )
    app = create_app(assessor, people, token=TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
        people.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def photos(people: IdentityFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG images of two people, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("photos")
    for index in (0, 3, 10, 11, 12, 13, 14):
        (folder / f"{index}.png").write_bytes(png(people.image(index), 3.0))
    (folder / "none.png").write_bytes(b"not a picture")
    return folder


class Visit:
    """A page that records its errors and the origins of its requests."""

    def __init__(self, browser: Any, address: str, width: int = 1200, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.origins: set[str] = set()
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type != "log" else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.origins.add(ORIGIN.sub(r"\1", request.url)))
        self.page.goto(f"{address}/#token={TOKEN}")
        expect(self.page).to_have_url(f"{address}/")  # the token is removed from the URL
        expect(self.page.locator("#quality:not([inert])")).to_be_visible()

    def expect_status(self, view: str, text: str) -> None:
        expect(self.page.locator(f"#{view} .status").first).to_contain_text(text, timeout=20_000)

    def close(self, address: str) -> None:
        assert self.errors == [] and self.origins == {address}
        assert self.page.evaluate(LOW_CONTRAST) == []
        self.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_photos_can_be_assessed_compared_enrolled_and_identified(
    browser: Any, address: str, photos: Path, width: int, scheme: str
) -> None:
    visit = Visit(browser, address, width, color_scheme=scheme, reduced_motion="reduce")
    page, name = visit.page, f"Ada {scheme}"
    page.set_input_files("#quality-photos", [photos / "0.png", photos / "none.png"])
    visit.expect_status("quality", "2 photos assessed, 1 face found")
    expect(page.locator("#quality .picture svg rect.outline")).to_have_count(1)
    figure = page.locator("#quality .picture").last
    outline, image = figure.locator("rect.outline").bounding_box(), figure.locator("img").bounding_box()
    assert outline["width"] > 0.4 * image["width"] and outline["x"] >= image["x"] - 2
    expect(page.locator("#quality .results")).to_contain_text("Not an image")
    expect(page.locator("#quality .results")).to_contain_text("Confidence")
    assert page.evaluate(OVERFLOWING) == []

    page.get_by_role("tab", name="Compare").click()
    page.set_input_files("#compare-left", photos / "0.png")
    page.set_input_files("#compare-right", photos / "3.png")
    expect(page.locator("#compare .verdict h2")).to_have_text(re.compile("^(Match|Undecided)$"))
    page.set_input_files("#compare-right", photos / "none.png")
    expect(page.locator("#compare .verdict h2")).to_have_text("Undecided")
    expect(page.locator("#compare .verdict")).to_contain_text("not an image")
    assert page.evaluate(OVERFLOWING) == []

    page.get_by_role("tab", name="Template").click()
    kappas = []
    for count, index in enumerate((10, 11, 12), 1):
        page.set_input_files("#template-photos", photos / f"{index}.png")
        visit.expect_status("template", f"with {count} photo")
        kappas.append(float(page.locator("#template .card b").inner_text().replace(",", "")))
    assert kappas == sorted(kappas) and kappas[2] > 1.5 * kappas[0]
    expect(page.locator("#template .growth circle")).to_have_count(3)
    page.set_input_files("#template-photos", photos / "0.png")
    expect(page.locator("#template .members")).to_contain_text("Looks like a different person")
    page.get_by_label("Leave out 0.png").click()
    expect(page.locator("#template .members li")).to_have_count(3)

    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Enrol").click()  # the browser requires the consent first
    assert page.locator("#enrol-consent").evaluate("node => node.validity.valueMissing")
    page.get_by_label("has agreed").check()
    page.get_by_role("button", name="Enrol").click()
    expect(page.locator("#enrol .status")).to_contain_text(f"{name} is enrolled from 3 photos")
    assert page.evaluate(OVERFLOWING) == []

    page.get_by_role("tab", name="Gallery").click()
    page.set_input_files("#gallery-photo", photos / "14.png")
    expect(page.locator("#gallery .verdict h2")).to_have_text(name)
    page.set_input_files("#gallery-photo", photos / "0.png")
    expect(page.locator("#gallery .verdict h2")).to_have_text(re.compile("Unknown person|Undecided"))
    assert page.evaluate(OVERFLOWING) == []
    page.get_by_label(f"Remove {name}").click()
    page.get_by_label(f"Remove {name}").click()
    visit.expect_status("gallery", f"{name} was removed")
    expect(page.locator("#people")).to_have_text("No one is enrolled yet.")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    visit.close(address)


def test_each_photo_is_sent_once(
    browser: Any, address: str, photos: Path, assessed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates and enrolment send tickets; photos are sent again only after a restart of the service."""
    visit = Visit(browser, address)
    page = visit.page
    page.get_by_role("tab", name="Template").click()
    for count, index in enumerate((10, 11, 12), 1):
        page.set_input_files("#template-photos", photos / f"{index}.png")
        visit.expect_status("template", f"with {count} photo")
    page.get_by_label("Leave out 11.png").click()
    visit.expect_status("template", "with 2 photos")
    page.get_by_label("Name", exact=True).fill("Bob")
    page.get_by_label("has agreed").check()
    page.get_by_role("button", name="Enrol").click()
    expect(page.locator("#enrol .status")).to_contain_text("Bob is enrolled from 2 photos")
    assert assessed == ["10.png", "11.png", "12.png"] and visit.errors == []

    monkeypatch.setattr(Tickets, "_sign", lambda self, content: b"by another key")
    page.set_input_files("#template-photos", photos / "13.png")
    visit.expect_status("template", "with 3 photos")
    assert assessed[3:] == ["10.png", "12.png", "13.png"]
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_label("Remove Bob").click()
    page.get_by_label("Remove Bob").click()
    visit.expect_status("gallery", "Bob was removed")
    visit.context.close()


def test_markup_in_a_name_is_text(browser: Any, address: str, people: IdentityFolder, tmp_path: Path) -> None:
    visit = Visit(browser, address)
    page = visit.page
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(png(people.image(10), 3.0))
    page.set_input_files("#quality-photos", tmp_path / name)
    visit.expect_status("quality", "1 face found")
    expect(page.locator("#quality .results h2")).to_have_text(name)
    for side in ("left", "right"):
        page.set_input_files(f"#compare-{side}", tmp_path / name)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare .drop-title").first).to_have_text(name)
    expect(page.locator("#compare .verdict")).to_be_visible()
    page.get_by_role("tab", name="Template").click()
    page.set_input_files("#template-photos", tmp_path / name)
    visit.expect_status("template", "with 1 photo")
    expect(page.locator("#template .members strong")).to_have_text(name)
    assert page.locator("img[src=x]").count() == 0
    visit.close(address)


def test_everything_works_by_keyboard(browser: Any, address: str, photos: Path) -> None:
    visit = Visit(browser, address)
    page = visit.page
    expect(page.get_by_role("tabpanel", name="Quality")).to_be_visible()

    def press(key: str) -> str:
        page.keyboard.press(key)
        return str(page.evaluate(FOCUSED))

    assert [press("Tab"), press("Tab")] == ["Skip to the content", "tab-quality"]
    views_by_key = {"ArrowRight": "compare", "End": "gallery", "ArrowLeft": "template", "Home": "quality"}
    for key, view in views_by_key.items():
        assert press(key) == f"tab-{view}"
        expect(page.locator(f"#{view}")).to_be_visible()
        assert page.get_by_role("tabpanel").count() == 1
    assert press("Tab") == "quality-photos"
    zone = page.locator("#quality .drop")
    assert zone.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"  # the focus is visible
    page.on("filechooser", lambda chooser: chooser.set_files(photos / "0.png"))
    expect(page.locator("#quality-photos")).to_be_focused()
    page.keyboard.press("Enter")
    visit.expect_status("quality", "1 face found")

    page.locator("#tab-template").focus()
    page.keyboard.press("Enter")
    page.set_input_files("#template-photos", [photos / "10.png", photos / "11.png"])
    visit.expect_status("template", "with 2 photos")
    order = [press("Tab") for _ in range(6)]
    buttons = ["Leave out 10.png", "Leave out 11.png"]
    assert order == ["template-photos", *buttons, "enrol-name", "enrol-consent", "Enrol"]
    page.get_by_label("Leave out 11.png").focus()
    page.keyboard.press("Space")
    visit.expect_status("template", "with 1 photo")
    expect(page.locator("#template-photos")).to_be_focused()  # the focus is not lost with the button
    visit.close(address)


def test_controls_have_names_and_results_are_announced(browser: Any, address: str) -> None:
    """Every control has an accessible name, and every result is in a live region."""
    visit = Visit(browser, address)
    page = visit.page
    unnamed = """() => [...document.querySelectorAll("input, select, button, img, [role=tabpanel]")]
      .filter(node => !(node.labels?.length || node.textContent.trim() || node.hasAttribute("alt")
        || node.hasAttribute("aria-labelledby"))).map(node => node.outerHTML)"""
    assert page.evaluate(unnamed) == []
    for view in ("quality", "compare", "template", "gallery"):
        assert page.locator(f"#{view} .status[role=status][aria-live=polite]").count() >= 1
        assert page.locator(f"#{view} h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    visit.close(address)


def test_the_page_asks_for_a_missing_token(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type("wrong-token-of-some-length")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This token is wrong.")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("tabpanel", name="Quality")).to_be_visible()
    assert TOKEN not in page.url and context.cookies() == []
    context.close()
