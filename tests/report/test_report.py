"""The page is self-contained and complete, no name becomes markup, and the JSON contains everything."""

import dataclasses
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.evaluation.conftest import Toy

from spherecf.errors import InputError, MissingDependencyError, StorageError
from spherecf.evaluation import PairReport
from spherecf.report import Plot, Section, Strip, Table, write_report

pytest.importorskip("matplotlib")
HOSTILE = '<script>alert("1")</script> & $x_1^{$'


class Page(HTMLParser):
    """Collects ids, links, tags, images and visible text of a page."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.labels: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if attributes.get("id") else []
        self.links += [
            str(attributes[name]) for name in ("href", "src", "xlink:href", "action") if name in attributes
        ]
        if tag == "img":
            self.images.append(attributes)
        if attributes.get("role") == "img":
            self.labels.append(str(attributes.get("aria-label", "")))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def reports(toy: Toy) -> list[PairReport]:
    clean = toy.report(draws=30, label="seed 0", targets=(0.1, 0.01, 0.001))
    crossed = toy.report(right=toy.degraded, condition="clean/degraded", draws=30)
    hostile = dataclasses.replace(
        crossed, name=HOSTILE, condition=HOSTILE, failures=[(HOSTILE, HOSTILE)], absent_confidences=[HOSTILE],
        edc=[dataclasses.replace(item, confidence=HOSTILE) for item in crossed.edc[:3]],
        scores={HOSTILE: dataclasses.replace(crossed.scores["mls"], score=HOSTILE, signature=HOSTILE)},
        differences={f"{HOSTILE}-cosine:eer": crossed.differences["mls-cosine:eer"]}, rejection=[],
    )  # fmt: skip
    return [clean, dataclasses.replace(clean, label="seed 1"), crossed, hostile]


@pytest.fixture(scope="module")
def written_report(
    reports: list[PairReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict, str]:
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    section = Section(
        HOSTILE, [HOSTILE],
        [Table(HOSTILE, ["score", "rank 1"], [["a", "1"], ["b", HOSTILE]], "", ["s1", HOSTILE])],
        [Plot("<svg></svg>", HOSTILE, HOSTILE)],
        [Strip(HOSTILE, [png], [f"{HOSTILE}\nsecond"], [png])],
    )  # fmt: skip
    files = write_report(
        tmp_path_factory.mktemp("report"), reports, title=HOSTILE,
        summary=[HOSTILE, Table(HOSTILE, ["a", HOSTILE], [[HOSTILE, "1"]], HOSTILE)],
        strips=[Strip(HOSTILE, [png, png], ["κ 10", HOSTILE])],
        sections=[section], results={"rank": np.int64(1), "rates": np.array([0.5, np.nan])},
        provenance={"key": HOSTILE, "nan": float("nan"), "path": Path("x")},
    )  # fmt: skip
    texts = [path.read_text("utf-8") for path in (files.html, files.json, files.markdown)]
    return texts[0], json.loads(texts[1]), texts[2]


def test_the_page_is_self_contained(written_report: tuple[str, dict, str]) -> None:
    page = Page(written_report[0])
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert (
        "http" not in re.sub(r' xmlns(:xlink)?="[^"]*"', "", written_report[0])
        and "@import" not in written_report[0]
    )
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", written_report[0]))


def test_every_section_exists_and_every_link_resolves(written_report: tuple[str, dict, str]) -> None:
    page = Page(written_report[0])
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    expected = {
        "summary",
        "list-0",
        "list-0-0",
        "list-0-1",
        "list-1",
        "list-1-0",
        "section-0",
        "faces",
        "reading",
        "provenance",
    }
    assert expected <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert expected <= {link[1:] for link in page.links}
    for words in (
        "clean/degraded",
        "Minus cosine",
        "signature",
        "200 mated",
        "unresolved",
        "How these numbers",
    ):
        assert words in page.words
    assert "FMR 0.001 needs at least 1000 non-mated pairs, there are 200" in page.words


def test_every_image_and_plot_has_an_alternative_text(written_report: tuple[str, dict, str]) -> None:
    page = Page(written_report[0])
    assert len(page.images) == 4 and all(image["alt"] for image in page.images)
    kinds = ("DET", "Rejection", "EDC", "κ by severity", HOSTILE)
    assert len(page.labels) >= 12 and all(label.startswith(kinds) for label in page.labels)
    for kind in kinds:
        assert any(label.startswith(kind) for label in page.labels)


def test_external_names_never_become_markup(written_report: tuple[str, dict, str]) -> None:
    assert "<script" not in written_report[0].lower()
    assert Page(written_report[0]).words.count(HOSTILE) >= 10


def test_every_row_has_its_signature(
    written_report: tuple[str, dict, str], reports: list[PairReport]
) -> None:
    words = Page(written_report[0]).words
    for report in reports:
        for result in report.scores.values():
            assert result.signature in words
            assert f"{result.accuracy.value:.4f} ± {result.tenfold.std:.4f}" in words


def test_the_json_contains_the_complete_report(
    written_report: tuple[str, dict, str], reports: list[PairReport]
) -> None:
    content = written_report[1]
    assert content["reports"] == [report.to_dict() for report in reports]
    assert content["title"] == HOSTILE and content["provenance"] == {"key": HOSTILE, "nan": None, "path": "x"}
    assert content["tables"][0]["rows"] == [[HOSTILE, "1"]] and content["strips"][0]["captions"][0] == "κ 10"
    assert content["results"] == {"rank": 1, "rates": [0.5, None]}
    section = content["sections"][0]
    assert section["tables"][0]["signatures"] == ["s1", HOSTILE] and section["plots"][0]["alt"] == HOSTILE


def test_table_rows_have_their_signatures(written_report: tuple[str, dict, str]) -> None:
    page = written_report[0]
    section = page[page.index('<section id="section-0">') : page.index('<section id="faces">')]
    assert section.count("<summary>signature</summary>") == 2 and "<code>s1</code>" in section
    assert re.search(r'<th scope="row"><span class="name">a</span>.*?</th>\s*<td>1</td>', section)
    assert section.count("<img") == 2 and 'class="strip pairs"' in section


def test_markdown_contains_the_same_content(
    written_report: tuple[str, dict, str], reports: list[PairReport]
) -> None:
    text = written_report[2]
    for line in text.split("## Provenance")[0].splitlines():
        assert "<" not in re.sub(r"`[^`]*`", "", line), line  # no external markup
    for report in reports[:3]:
        for result in report.scores.values():
            assert f"`{result.signature}`" in text and f"{result.accuracy.value:.4f} ±" in text
    assert "- row 1: `s1`" in text and "- Plot. DET: FNMR against FMR" in text
    assert "second" in text and "| mls" in text and "Minus cosine" in text and "FMR 0.001 needs" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1 and len(table) >= 3, table[0]
    assert len(tables) >= 7


def test_a_report_may_consist_of_sections_only(tmp_path: Path) -> None:
    files = write_report(tmp_path, title="t", sections=[Section("CMC of something", ["one note"])])
    page = files.html.read_text("utf-8")
    assert "1 section<" in page and '<a href="#section-0">CMC of something</a>' in page
    # only metrics on the page are explained
    assert "<b>CMC, rank-k</b>" in page and "<b>Accuracy</b>" not in page
    assert files.markdown.read_text("utf-8").startswith("# t\n\nspherecf ")


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    files = write_report(tmp_path, title="t", sections=[Section("s", [name])], results={"key": name})
    assert json.loads(files.json.read_text("utf-8"))["results"] == {"key": name}
    assert "caf\\udce9.jpg" in files.html.read_text("utf-8")


def test_reports_are_reproducible_byte_for_byte(reports: list[PairReport], tmp_path: Path) -> None:
    files = [write_report(tmp_path / name, reports[2:3], title="t") for name in "ab"]
    assert files[0].html.read_bytes() == files[1].html.read_bytes()
    assert files[0].json.read_bytes() == files[1].json.read_bytes()
    assert files[0].markdown.read_bytes() == files[1].markdown.read_bytes()


def test_bad_input_is_refused(
    reports: list[PairReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="at least one report"):
        write_report(tmp_path / "a", [], title="t")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(tmp_path / "file" / "b", reports[2:3], title="t")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'spherecf\[report\]'"):
        write_report(tmp_path / "a", reports, title="t")
    assert not (tmp_path / "a").exists()
