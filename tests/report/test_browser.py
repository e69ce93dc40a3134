"""The report in a real browser: no errors, nothing fetched, no overflow, and everything is readable."""

import json
import re
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.chromium import CHROMIUM, CONTRAST, MARKS
from tests.evaluation.conftest import Toy

from spherecf.report import (
    Axis,
    Histogram,
    Section,
    Series,
    Table,
    det_lines,
    histogram_plot,
    line_plot,
    nearest_section,
    strip_by_kappa,
    strips_of_mistakes,
    write_report,
)

pytest.importorskip("matplotlib")
pytestmark = MARKS
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--enable-logging=stderr",
]

# Inserted before the page: fetching or running anything is forbidden; violations and errors are recorded.
WATCH = """<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'">
<script>const noted = [];
addEventListener("error", e => noted.push("error: " + (e.message || e.target.outerHTML.slice(0, 80))), true);
addEventListener("securitypolicyviolation", e => noted.push("fetched: " + e.blockedURI));
console.error = console.warn = text => noted.push("console: " + text);
</script>"""

MEASURE = """<script>addEventListener("load", () => {
const all = query => [...document.querySelectorAll(query)];
const size = node => { const box = node.getBoundingClientRect(); return [box.width, box.height]; };
"""
MEASURE += CONTRAST
MEASURE += """
const written = all("body *").filter(node => !node.matches("script, style, .swatch") && node.checkVisibility()
  && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
const measured = {
  width: innerWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
  overflow: document.documentElement.scrollWidth - innerWidth,
  outside: all("main *").filter(node => !node.closest(".scroll, .strip, svg, details:not([open])")
    && node.getBoundingClientRect().right > innerWidth + 1).map(node => node.tagName + "." + node.className),
  plots: all("svg").map(size), strokes: all("svg path").length,
  images: all("img").map(image => image.complete ? image.naturalWidth : 0),
  lost: all("a[href]").map(a => a.getAttribute("href")).filter(link => !document.querySelector(link)),
  links: all("a[href]").length, fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  faint: written.map(node => [contrast(node), node.outerHTML.slice(0, 80)]).filter(([value]) => value < 4.5),
  written: written.length, noted,
};
parent.postMessage(JSON.stringify(measured), "*");
});</script>"""

# A window cannot be as narrow as a phone, so the page is shown in a frame of that width.
FRAME = """<script>addEventListener("message", e => {
const output = document.createElement("pre"); output.id = "measured"; output.textContent = e.data;
document.body.append(output); });</script>
<iframe src="inner.html" style="width:WIDTHpx;height:900px;border:0"></iframe>"""


@pytest.fixture(scope="module")
def page(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every element that it can contain."""
    clean_report = toy.report(draws=20, label="seed 0", targets=(0.1, 0.01, 0.001), nearest=True)
    crossed = toy.report(right=toy.degraded, condition="clean/degraded", draws=20)
    failed = replace(crossed, failures=[("p1/" + "x" * 200, "truncated")])
    rng = np.random.default_rng(0)

    def picture(key: str) -> bytes:
        return cv2.imencode(".png", rng.integers(0, 256, (8, 8, 3), np.uint8))[1].tobytes()

    nearest = {
        name: (score_report.tmr, score_report.nearest, score_report.signature)
        for name, score_report in clean_report.scores.items()
    }
    long = "ijbc/1:N|meta:sha256:3f1a|" + "pool:media-mean+kappa|" * 12
    names = ["kappa", "norm", "random", "oracle", *(f"confidence_{i}" for i in range(9))]
    section = Section(
        "1:N, gallery 1",
        ["A note.", "A name without a break: " + "n" * 150],
        [Table("Found", ["Score", *["FNIR at FPIR ≤ 0.01"] * 9], [["mls", *["0.1"] * 9]], "Note.", [long])],
        [
            line_plot("l", [Series(name, [0, 0.5, 1], [0.8, 0.9, i / 13]) for i, name in enumerate(names)],
                      Axis("rejected"), Axis("F1"), caption="PRR. Higher is better.", alt="kappa 0.4"),
            det_lines("d", [Series("mls", [0, 0.01, 1], [1, 0.2, 0])], caption="DET.", alt="x", low=1e-3),
            histogram_plot("h", [Histogram("mated", [1, 2], [0, 1, 2])], xlabel="s", caption="S.", alt="x"),
        ],
        strips_of_mistakes(crossed.mistakes[:4], picture),
    )  # fmt: skip
    files = write_report(
        tmp_path_factory.mktemp("report"), [clean_report, replace(clean_report, label="seed 1"), failed],
        title="All that a report can show", sections=[section, nearest_section(nearest)],
        summary=["A note.", Table("Summary", ["pairs", "mls"], [["lfw", "0.99"]], "A note.")],
        strips=[strip_by_kappa("faces", toy.clean, picture), *strips_of_mistakes(crossed.mistakes, picture)],
        provenance={"path": "x" * 300},
    )  # fmt: skip
    return files.html.read_text("utf-8")


def browse(text: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """Load a page with a measuring script in a frame of the given width; returns the measurements."""
    watched = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{WATCH}', 1)
    (folder / "inner.html").write_text(watched.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    (folder / "outer.html").write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    command = [
        str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="measured">(.*?)</pre>', process.stdout, re.DOTALL)
    assert match, f"the page did not load: {process.stderr[-2000:]}"
    measured: dict[str, Any] = json.loads(unescape(match[1]))
    measured["console"] = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return measured


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_element_is_present_and_readable(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    measured = browse(page, tmp_path, width, dark)
    assert (measured["width"], measured["dark"]) == (width, dark)
    assert measured["noted"] == measured["console"] == measured["fetched"] == []
    assert measured["overflow"] <= 0 and measured["outside"] == []
    assert len(measured["plots"]) == 15 and all(w > 250 and h > 150 for w, h in measured["plots"])
    assert all(w <= width for w, _ in measured["plots"]) and measured["strokes"] > 200
    assert len(measured["images"]) == 14 + 2 * (4 + 32) and set(measured["images"]) == {8}
    assert measured["links"] == 9 and measured["lost"] == []
    assert measured["written"] > 300 and measured["faint"] == []


def test_the_measurements_detect_defects(page: str, tmp_path: Path) -> None:
    defects = """<img src="data:image/png;base64,AAAA" alt=""><img src="http://example.invalid/a.png" alt="">
    <div style="width:2000px;color:#ccc;background:#ddd">faint</div><a href="#nowhere">lost</a>
    <script>nothing.there()</script></main>"""
    measured = browse(page.replace("</main>", defects), tmp_path, 390)
    assert measured["overflow"] > 1000 and "DIV." in measured["outside"] and 0 in measured["images"]
    assert measured["lost"] == ["#nowhere"] and "faint" in measured["faint"][0][1]
    noted = " ".join(measured["noted"])
    assert "fetched: http://example.invalid" in noted and "nothing is not defined" in noted
    assert any("nothing is not defined" in line for line in measured["console"])
