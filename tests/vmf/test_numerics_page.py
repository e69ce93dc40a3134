"""The tables of docs/numerics.md are those of benchmarks/vmf_accuracy.py, and within the limits."""

import re
import runpy
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(_ROOT / "benchmarks" / "vmf_accuracy.py"))


@pytest.fixture(scope="module")
def errors(benchmark):
    return benchmark["errors"]()


@pytest.fixture(scope="module")
def page():
    return [unpadded(line) for line in (_ROOT / "docs" / "numerics.md").read_text().splitlines()]


def unpadded(line):
    """A row of a table without the spaces that align its columns."""
    cells = [re.sub("-{3,}", "---", cell.strip()) for cell in line.strip("|").split("|")]
    return f"| {' | '.join(cells)} |" if line.startswith("|") else line


def test_every_error_is_within_its_limit(errors):
    assert len(errors) > 3000 and {e.function for e in errors} >= {"log C_d", "A_d", "A_d'", "inverse of A_d"}
    assert [e for e in errors if not e.size <= e.limit] == []


def numbers(line):
    return [float(word) for word in re.findall(r"(?<=\| )\d\.\d?e[-+]\d+|(?<=\| )\de[-+]\d+", line)]


@pytest.mark.parametrize("which", ["dim", "regime"])
def test_page_has_the_measured_table(benchmark, errors, page, which):
    """The same heads and rows; numbers within a factor of 4, as processors round differently."""
    group = benchmark["regime"] if which == "regime" else lambda e: f"d = {e.dim}"
    head, rule, *rows = map(unpadded, benchmark["table"](errors, group))
    start = page.index(head)
    assert page[start + 1] == rule and page[start + 2 + len(rows)] == ""
    for stated_row, measured_row in zip(page[start + 2 :], rows):
        assert stated_row.split(" | ")[:2] == measured_row.split(" | ")[:2]
        stated, now = numbers(stated_row), numbers(measured_row)
        assert len(stated) == len(now) == head.count("|") - 3
        assert stated[0] == now[0] and max(stated) == stated[0], "above its limit"
        assert all(a / 4 <= b <= 4 * a for a, b in zip(stated, now)), stated_row


def test_page_says_what_others_reach(benchmark, page):
    lines = [unpadded(line) for line in benchmark["rivals"]()]
    start = page.index(lines[0])
    for stated_row, measured_row in zip(page[start + 2 :], lines[2:]):
        assert stated_row.split(" | ")[:3] == measured_row.split(" | ")[:3]
        assert len(numbers(stated_row)) == len(numbers(measured_row))
