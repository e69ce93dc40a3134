"""benchmarks/long_runs.py: growth is reported, and nothing else is; every section runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import long_runs
from benchmarks.long_runs import Sample


def run(section: str, folder: Path, minutes: float) -> tuple[int, dict]:
    """Run a section; returns the exit code and the results of the section."""
    out = folder / "out.json"
    limits = ["--minutes", str(minutes), "--every", "0.2", "--out", str(out)]
    code = long_runs.main([section, *limits, "--plot", str(folder / "plot.png")])
    return code, json.loads(out.read_text())[section]


@pytest.mark.slow
def test_a_leak_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run("leak", tmp_path, 0.1)
    assert code == 1 and result["grew"] == ["memory_mib", "files"]
    assert "memory_mib, files" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("section", [section.__name__ for section in long_runs.SECTIONS])
def test_section_does_some_work(section: str, tmp_path: Path) -> None:
    assert run(section, tmp_path, 0.1)[1]["done"] > 0


@pytest.mark.parametrize(
    ("memory", "files", "threads", "grew"),
    [
        (lambda t: 100.0, lambda t: 9, lambda t: 2, []),
        (lambda t: 100 + 15 * (t > 50), lambda t: 9 + 4 * (t > 50), lambda t: 2, []),
        (lambda t: 100 + 17 * (t > 50), lambda t: 9, lambda t: 2, ["memory_mib"]),
        (lambda t: 1000 + 49 * (t > 50), lambda t: 9, lambda t: 2, []),
        (lambda t: 1000 + 51 * (t > 50), lambda t: 9, lambda t: 2, ["memory_mib"]),
        (lambda t: 100 + 500 * (t % 10 == 0), lambda t: 9, lambda t: 2 + 5 * (t > 50), ["threads"]),
        (lambda t: 300 - t, lambda t: 9 + t // 8, lambda t: 2, ["files"]),
    ],
    ids=["flat", "small", "small process", "large process", "larger", "peaks", "falls"],
)
def test_growth_is_reported_beyond_the_tolerance(
    memory: Callable[[int], float],
    files: Callable[[int], int],
    threads: Callable[[int], int],
    grew: list[str],
) -> None:
    samples = [Sample(t, 3 * t, memory(t), files(t), threads(t)) for t in range(100)]
    summary = long_runs.summarise(samples)
    assert summary["grew"] == grew and summary["per_second"] == [3, 3]


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected 8 samples or more, got 7"):
        long_runs.summarise([Sample(t, t, 1, 1, 1) for t in range(7)])


@pytest.mark.slow
def test_a_section_that_ends_by_itself_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ends_at_once ended by itself, with exit code 1"):
        long_runs.watch(ends_at_once, 1.0, 0.1)


def ends_at_once(folder: Path, count: long_runs.Count) -> None:
    raise SystemExit(1)
