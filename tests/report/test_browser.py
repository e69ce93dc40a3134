"""The report in a real browser: nothing fails, is fetched or overflows, and everything can be seen."""

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

# Before the page: whatever it would fetch or run is forbidden and noted, as are errors.
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

# A window cannot be as narrow as a phone, so the page is shown in a frame of the width.
FRAME = """<script>addEventListener("message", e => {
const told = document.createElement("pre"); told.id = "measured"; told.textContent = e.data;
document.body.append(told); });</script>
<iframe src="inner.html" style="width:WIDTHpx;height:900px;border:0"></iframe>"""


@pytest.fixture(scope="module")
def page(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything that a report can show."""
    first = toy.report(draws=20, label="seed 0", targets=(0.1, 0.01, 0.001), nearest=True)
    crossed = toy.report(right=toy.degraded, condition="clean/degraded", draws=20)
    failed = replace(crossed, failures=[("p1/" + "x" * 200, "truncated")])
    rng = np.random.default_rng(0)

    def picture(key: str) -> bytes:
        return cv2.imencode(".png", rng.integers(0, 256, (8, 8, 3), np.uint8))[1].tobytes()

    near = {name: (found.tmr, found.nearest, found.signature) for name, found in first.scores.items()}
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
        tmp_path_factory.mktemp("report"), [first, replace(first, label="seed 1"), failed],
        title="All that a report can show", sections=[section, nearest_section(near)],
        summary=["A note.", Table("Summary", ["pairs", "mls"], [["lfw", "0.99"]], "A note.")],
        strips=[strip_by_kappa("faces", toy.clean, picture), *strips_of_mistakes(crossed.mistakes, picture)],
        provenance={"path": "x" * 300},
    )  # fmt: skip
    return files.html.read_text("utf-8")


def browse(text: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """Open a page with a measuring script in it, in a frame of the width; what was found."""
    watched = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{WATCH}', 1)
    (folder / "inner.html").write_text(watched.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    (folder / "outer.html").write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    command = [
        str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="measured">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, f"the page did not load: {ran.stderr[-2000:]}"
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    measured["console"] = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return measured


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_all_is_there_and_can_be_read(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    found = browse(page, tmp_path, width, dark)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["noted"] == found["console"] == found["fetched"] == []
    assert found["overflow"] <= 0 and found["outside"] == []
    assert len(found["plots"]) == 15 and all(w > 250 and h > 150 for w, h in found["plots"])
    assert all(w <= width for w, _ in found["plots"]) and found["strokes"] > 200
    assert len(found["images"]) == 14 + 2 * (4 + 32) and set(found["images"]) == {8}
    assert found["links"] == 9 and found["lost"] == []
    assert found["written"] > 300 and found["faint"] == []


def test_what_is_wrong_is_found(page: str, tmp_path: Path) -> None:
    wrong = """<img src="data:image/png;base64,AAAA" alt=""><img src="http://example.invalid/a.png" alt="">
    <div style="width:2000px;color:#ccc;background:#ddd">faint</div><a href="#nowhere">lost</a>
    <script>nothing.there()</script></main>"""
    found = browse(page.replace("</main>", wrong), tmp_path, 390)
    assert found["overflow"] > 1000 and "DIV." in found["outside"] and 0 in found["images"]
    assert found["lost"] == ["#nowhere"] and "faint" in found["faint"][0][1]
    noted = " ".join(found["noted"])
    assert "fetched: http://example.invalid" in noted and "nothing is not defined" in noted
    assert any("nothing is not defined" in line for line in found["console"])
