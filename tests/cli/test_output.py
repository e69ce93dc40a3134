"""How a command ends where stdout or stderr takes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spherecf.cli import main, reference
from spherecf.cli.options import print_lines, run_command
from spherecf.errors import StorageError

FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def report() -> None:
    print_lines([{"number": number, "name": "Zo\u00eb"} for number in range(3)])


def ends(command: Callable[[], int | None]) -> int:
    try:
        return run_command(command)
    except SystemExit as ended:
        return int(ended.code or 0)


def put(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spherecf", *words])


@full_disk
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["quality", "--help"], ["gallery", "--help"], ["data"]]
)
def test_a_full_disk_is_one_line_whoever_writes(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, *words)
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "No space left" in said and len(said.splitlines()) == 1


@full_disk
def test_an_error_that_a_library_swallows_still_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow() -> None:
        with suppress(OSError):
            report()

    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(swallow) == 1
        assert reference.main(["--help"]) == 1  # argparse prints, and passes over what goes wrong
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_closed_stdout_is_an_error_where_something_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of >&-
    assert run_command(report) == 1
    assert "stdout" in capsys.readouterr().err
    assert run_command(lambda: None) == 0 and sys.stdout is None


@full_disk
def test_messages_that_stderr_does_not_take_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk() -> int:
        sys.stderr.write("lost\n")
        report()
        sys.stderr.write("lost\n")
        return 0

    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_command(talk) == 0
        assert run_command(lambda: fail(StorageError("no"))) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(talk) == 0


def fail(error: BaseException) -> Any:
    raise error


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_command(lambda: None), run_command(lambda: 3)] == [0, 3]
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert ends(lambda: sys.exit(2)) == 2
    assert run_command(lambda: fail(StorageError("photos/[/red] is [odd"))) == 1
    assert "photos/[/red] is [odd" in capsys.readouterr().err  # no markup
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_json_is_utf8_in_files_whatever_the_locale_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "lines").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_command(report) == 0
    lines = (tmp_path / "lines").read_text("utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["Zo\u00eb"] * 3


def test_a_closed_pipe_is_one_line_also_at_the_end_of_the_interpreter() -> None:
    program = "import sys; from spherecf.cli import main; sys.argv = ['spherecf', '--help']; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


INTERRUPTED_RANK = """
import sys, time
from spherecf.cli.options import run_command

class Group:
    def __del__(self):
        time.sleep(60)

def command():
    group = Group()
    print("printed before")
    raise KeyboardInterrupt

sys.exit(run_command(command))
"""


def test_an_interrupted_rank_does_not_wait_in_the_destructor_of_its_process_group() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_RANK], env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert ended.returncode == 130 and ended.stdout == "printed before\n"
    assert "run the same command again" in ended.stderr
