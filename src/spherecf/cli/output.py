"""What the commands print: JSON for programs on stdout, and how a command ends where nobody takes it."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from spherecf.common.files import check_destination, check_folder
from spherecf.common.progress import console
from spherecf.errors import SpherecfError, StorageError

AsLines = Annotated[
    bool, typer.Option("--json", help="JSON lines on stdout; the default where stdout is no terminal.")
]


def lines_wanted(asked: bool) -> bool:
    """True where a program reads stdout; at a terminal the table on stderr is enough unless asked."""
    return asked or not sys.stdout.isatty()


def print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line on stdout, keys in order, NaN refused."""
    for row in rows:
        typer.echo(json.dumps(row, ensure_ascii=False, allow_nan=False))


def file_to_write(path: Path | None) -> Path | None:
    """Callback of options that name a file to write: refused before the work, not after."""
    if path is not None:
        check_destination(path)
    return path


def folder_to_write(path: Path | None) -> Path | None:
    """Callback of options that name a folder to write into."""
    if path is not None:
        check_folder(path)
    return path


def run_command(command: Callable[[], int | None]) -> int:
    """The exit code of a command: 0 done, 1 failed with one line on stderr, 130 interrupted.

    A stdout that is full, closed or a pipe that nobody reads is a failure, also where a library writes to it;
    messages that stderr does not take are lost, and change nothing.
    """
    with _guarded_streams() as check_stdout:
        try:
            try:
                return command() or 0
            finally:
                check_stdout()
        except SpherecfError as error:
            console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            return 1
        except KeyboardInterrupt:
            console.print(
                "interrupted: run the same command again to go on where it stopped", highlight=False
            )
            return 130


@contextmanager
def _guarded_streams() -> Iterator[Callable[[], None]]:
    """stdout and stderr behind guards; yields what raises if stdout, flushed, did not take everything."""
    for descriptor in range(3):  # one that is closed would be the next file opened, and libraries print to it
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    guard = _Guard(sys.stdout)
    sys.stdout, sys.stderr = text, _ = guard.as_text(), _Guard(sys.stderr, silent=True).as_text()

    def check_stdout() -> None:
        text.flush()
        if guard.error is not None:
            raise guard.error

    try:
        yield check_stdout
    finally:
        sys.stdout, sys.stderr = before


class _Guard(io.RawIOBase):
    """The bytes of a stream. The first failure raises `StorageError`; what comes after it is dropped, so that
    no buffer is left for the interpreter to complain about at exit.

    Args:
        stream: of text; None where the descriptor was closed when the program began.
        silent: drop from the first failure on, and raise nothing.
    """

    def __init__(self, stream: Any, *, silent: bool = False) -> None:
        self._stream, self._silent = stream, silent
        self.error: StorageError | None = None

    def as_text(self) -> Any:
        """Text in UTF-8, whatever the locale says, but at a terminal in the terminal's own encoding."""
        if self._stream is not None and not hasattr(self._stream, "buffer"):
            return self._stream  # somebody's own object for text
        terminal = self.isatty()
        encoding = self._stream.encoding if terminal and self._stream is not None else "utf-8"
        return io.TextIOWrapper(
            io.BufferedWriter(self), encoding, "backslashreplace", line_buffering=terminal or self._silent
        )

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is closed")
        return int(self._stream.fileno())

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                if self._stream is None:
                    raise OSError("it is closed")
                buffer = self._stream.buffer
                written: int | None = getattr(buffer, "raw", buffer).write(data)
                if written is None:
                    raise OSError("it takes no more at present")
                return written
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                self.error = StorageError(
                    f"stdout: could not be written ({reason}); what it got is not complete, files that the "
                    "command wrote are"
                )
                if not self._silent:
                    raise self.error from error
        return len(data)
