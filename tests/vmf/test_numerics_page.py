"""docs/numerics.md says what benchmarks/vmf_accuracy.py measures, and both are within the limits."""

import re
import runpy
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(_ROOT / "benchmarks" / "vmf_accuracy.py"))


@pytest.fixture(scope="module")
def found(benchmark):
    return benchmark["errors"]()


@pytest.fixture(scope="module")
def page():
    return [unpadded(line) for line in (_ROOT / "docs" / "numerics.md").read_text().splitlines()]


def unpadded(line):
    """A row of a table without the spaces that align its columns."""
    cells = [re.sub("-{3,}", "---", cell.strip()) for cell in line.strip("|").split("|")]
    return f"| {' | '.join(cells)} |" if line.startswith("|") else line


def test_every_error_is_within_its_limit(found):
    assert len(found) > 3000 and {e.function for e in found} >= {"log C_d", "A_d", "A_d'", "inverse of A_d"}
    assert [e for e in found if not e.size <= e.limit] == []


def numbers(line):
    return [float(word) for word in re.findall(r"(?<=\| )\d\.\d?e[-+]\d+|(?<=\| )\de[-+]\d+", line)]


@pytest.mark.parametrize("which", ["dim", "regime"])
def test_page_has_the_measured_table(benchmark, found, page, which):
    """The same heads and rows; numbers within a factor of 4, as processors round differently."""
    group = benchmark["regime"] if which == "regime" else lambda e: f"d = {e.dim}"
    head, rule, *rows = map(unpadded, benchmark["table"](found, group))
    start = page.index(head)
    assert page[start + 1] == rule and page[start + 2 + len(rows)] == ""
    for said, measured in zip(page[start + 2 :], rows):
        assert said.split(" | ")[:2] == measured.split(" | ")[:2]
        stated, now = numbers(said), numbers(measured)
        assert len(stated) == len(now) == head.count("|") - 3
        assert stated[0] == now[0] and max(stated) == stated[0], "above its limit"
        assert all(a / 4 <= b <= 4 * a for a, b in zip(stated, now)), said


def test_page_says_what_others_reach(benchmark, page):
    lines = [unpadded(line) for line in benchmark["rivals"]()]
    start = page.index(lines[0])
    for said, measured in zip(page[start + 2 :], lines[2:]):
        assert said.split(" | ")[:3] == measured.split(" | ")[:3]
        assert len(numbers(said)) == len(numbers(measured))
