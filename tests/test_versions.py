"""tests/versions.py: what is installed, what is counted, and what is not run twice."""

import json
import sys
from pathlib import Path

import pytest
from tests import versions

SUITE = """
import pytest
def test_good(): pass
def test_bad(): assert False
def test_other(): pytest.skip("no reason")
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of four tests, in this environment."""

    def install(python: str, torch: str, numpy: str, folder: Path) -> str:
        folder.mkdir()
        return sys.executable

    (tmp_path / "test_small.py").write_text(SUITE)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "install", install)
    return tmp_path


def main(folder: Path, *combinations: str) -> int:
    return versions.main([*combinations, "--folder", str(folder / "runs")])


@pytest.mark.slow
def test_counts_stand_in_the_table_and_are_not_made_twice(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy
    import torch

    assert main(suite, "python3,newest,2.0.*") == 1
    first = capsys.readouterr().out
    python = ".".join(map(str, sys.version_info[:3]))
    assert f"| {python} | {torch.__version__} | {numpy.__version__} | 1 | 2 | 1 |" in first
    assert "- python3,newest,2.0.*: `test_small::test_bad`" in first
    (suite / "test_small.py").unlink()
    assert main(suite, "python3,newest,2.0.*") == 1 and capsys.readouterr().out == first


@pytest.mark.slow
def test_a_suite_that_passes(suite: Path) -> None:
    (suite / "test_small.py").write_text("def test_good(): pass")
    assert main(suite, "python3,newest,newest") == 0


@pytest.mark.slow
def test_a_suite_that_cannot_run_is_no_success(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite / "test_small.py").write_text("")
    assert main(suite, "python3,newest,newest") == 1
    assert "| pytest ended with 5: see " in capsys.readouterr().out
    (suite / "test_small.py").write_text("def test_good(): pass")
    (suite / "runs" / "python3-newest-newest").rename(suite / "gone")
    assert main(suite, "python3,newest,newest") == 0  # it is tried again


def test_what_cannot_be_installed_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "python0.1,newest,newest") == 1
    assert "| python0.1 | newest | newest | [Errno 2] No such file or directory" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert set(found) == {"asked", "error"}


def test_the_line_of_pip_that_says_error_is_the_reason() -> None:
    words = "import sys; sys.exit('WARNING: cap\\nERROR: No matching distribution\\n[notice] new pip')"
    with pytest.raises(versions.NotInstalled, match=r"^ERROR: No matching distribution$"):
        versions.ordered([sys.executable, "-c", words])


def test_requirements_are_those_of_the_project_without_the_pinned() -> None:
    project = {
        "dependencies": ["torch>=2.6,<2.14", "numpy>=2.0", "scipy>=1.14"],
        "optional-dependencies": {
            "dev": ["spherecf[one, two]", "pytest"],
            "one": ["a"],
            "two": ["spherecf[one]"],
        },
    }
    assert versions.requirements(project) == ["scipy>=1.14", "pytest", "a", "a"]
    assert versions.pins("2.6.0", "2.0.*") == ["torch==2.6.0", "numpy==2.0.*"]
    assert versions.pins("newest", "newest") == ["torch", "numpy"]


@pytest.mark.parametrize("text", ["python3", "python3,2.6.0", "python3,,2.0.*", "a,b,c,d"])
def test_an_argument_that_is_no_combination(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versions.main([text])
    assert "expected PYTHON,TORCH,NUMPY" in capsys.readouterr().err
