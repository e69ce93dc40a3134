"""tests/versions.py: installation, counting of results, and reuse of completed suites."""

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
    """A project with four tests; its suites run in the current environment."""

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
def test_table_has_the_counts_and_suites_are_not_run_twice(
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
def test_exit_code_is_0_if_all_tests_pass(suite: Path) -> None:
    (suite / "test_small.py").write_text("def test_good(): pass")
    assert main(suite, "python3,newest,newest") == 0


@pytest.mark.slow
def test_exit_code_is_1_if_a_suite_cannot_run(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite / "test_small.py").write_text("")
    assert main(suite, "python3,newest,newest") == 1
    assert "| pytest ended with 5: see " in capsys.readouterr().out
    (suite / "test_small.py").write_text("def test_good(): pass")
    (suite / "runs" / "python3-newest-newest").rename(suite / "gone")
    assert main(suite, "python3,newest,newest") == 0  # the suite is tried again


def test_installation_errors_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "python0.1,newest,newest") == 1
    assert "| python0.1 | newest | newest | [Errno 2] No such file or directory" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert set(result) == {"asked", "error"}


def test_the_error_line_of_pip_is_the_reason() -> None:
    script = "import sys; sys.exit('WARNING: cap\\nERROR: No matching distribution\\n[notice] new pip')"
    with pytest.raises(versions.NotInstalled, match=r"^ERROR: No matching distribution$"):
        versions.run_step([sys.executable, "-c", script])


def test_requirements_exclude_the_pinned_packages() -> None:
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
def test_invalid_combinations_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versions.main([text])
    assert "expected PYTHON,TORCH,NUMPY" in capsys.readouterr().err
