"""Exit codes and messages of a command whose stdout or stderr cannot be written."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spherecf import __version__
from spherecf.cli import main, reference
from spherecf.cli.options import print_lines, run_command
from spherecf.errors import StorageError

FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def report() -> None:
    print_lines([{"number": number, "name": "Zo\u00eb"} for number in range(3)])


def exit_code(command: Callable[[], int | None]) -> int:
    try:
        return run_command(command)
    except SystemExit as error:
        return int(error.code or 0)


def set_arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spherecf", *arguments])


@full_disk
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["quality", "--help"], ["gallery", "--help"], ["data"]]
)
def test_a_full_disk_is_reported_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_arguments(monkeypatch, *arguments)
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as error:
            main()
    message = capsys.readouterr().err
    assert error.value.code == 1 and "No space left" in message and len(message.splitlines()) == 1


@full_disk
def test_output_errors_that_a_library_swallows_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow() -> None:
        with suppress(OSError):
            report()

    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(swallow) == 1
        assert reference.main(["--help"]) == 1  # argparse prints, and ignores errors
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_closed_stdout_is_an_error_if_something_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it for >&-
    assert run_command(report) == 1
    assert "stdout" in capsys.readouterr().err
    assert run_command(lambda: None) == 0 and sys.stdout is None


@full_disk
def test_an_unwritable_stderr_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_messages() -> int:
        sys.stderr.write("lost\n")
        report()
        sys.stderr.write("lost\n")
        return 0

    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_command(print_messages) == 0
        assert run_command(lambda: fail(StorageError("no"))) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(print_messages) == 0


def fail(error: BaseException) -> Any:
    raise error


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_command(lambda: None), run_command(lambda: 3)] == [0, 3]
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert exit_code(lambda: sys.exit(2)) == 2
    assert run_command(lambda: fail(StorageError("photos/[/red] is [odd"))) == 1
    assert "photos/[/red] is [odd" in capsys.readouterr().err  # not parsed as markup
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_arguments(monkeypatch, "--version")
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 0 and capsys.readouterr().out == f"{__version__}\n"


def test_a_stream_without_bytes_below_it_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the stdout of a notebook."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run_command(report) == 0
    assert [json.loads(line)["number"] for line in sys.stdout.getvalue().splitlines()] == [0, 1, 2]


def test_a_full_pipe_that_does_not_block_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    with os.fdopen(write, "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run_command(report) == 1
    os.close(read)
    message = capsys.readouterr().err
    assert "stdout: could not be written (it is blocked)" in message and len(message.splitlines()) == 1


def test_a_guarded_stream_has_the_descriptor_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries pass it to child processes."""
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_command(lambda: sys.stdout.fileno() - out.fileno()) == 0
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="the stream is closed"):
        run_command(lambda: sys.stdout.fileno())


def test_json_in_files_is_utf8_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "lines").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_command(report) == 0
    lines = (tmp_path / "lines").read_text("utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["Zo\u00eb"] * 3


def test_a_closed_pipe_is_reported_in_one_line_at_interpreter_exit() -> None:
    program = "import sys; from spherecf.cli import main; sys.argv = ['spherecf', '--help']; main()"
    read, write = os.pipe()
    os.close(read)
    completed = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert completed.returncode == 1 and len(completed.stderr.splitlines()) == 1, completed.stderr


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
    completed = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_RANK], env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert completed.returncode == 130 and completed.stdout == "printed before\n"
    assert "run the same command again" in completed.stderr


CLOSED = """
import sys
from spherecf.cli.options import run_command
sys.exit(run_command(lambda: print(open(sys.argv[1]).fileno())))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell")
def test_files_do_not_reuse_a_closed_descriptor(tmp_path: Path) -> None:
    """Otherwise what a library writes to stderr would end up in a file of the command."""
    (tmp_path / "file").touch()
    shell = ["sh", "-c", 'exec "$0" "$@" 0<&- 2>&-', sys.executable, "-c", CLOSED, str(tmp_path / "file")]
    completed = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=50, check=True)
    assert int(completed.stdout) > 2
