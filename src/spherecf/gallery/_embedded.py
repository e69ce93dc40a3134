"""Milvus Lite inside this process: a folder behind a socket that only this user can reach."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spherecf.errors import FileFormatError, MissingDependencyError, StorageError
from spherecf.gallery._lock import Lock

_LOGGERS = ("pymilvus", "milvus_lite", "grpc")


class Embedded:
    """A Milvus Lite server in threads of this process.

    Milvus Lite as such listens at a port of 127.0.0.1 and asks nobody for a password, so that every user of
    the machine could read the gallery while it is open. Here it listens at a Unix socket in a folder of mode
    700, where there are Unix sockets.

    Args:
        path: folder of the gallery; made if missing.

    Raises:
        StorageError: another process has it open, or it cannot be written.
        FileFormatError: ``path`` is a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from milvus_lite.adapter.grpc.server import start_server_in_thread
        except ImportError as error:
            raise missing() from error
        if path.exists() and not path.is_dir():
            raise FileFormatError(path, "expected a gallery, which is a folder; this is a file.")
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"{path}: cannot be made ({error.strerror})") from error
        self.path = path
        self._lock = Lock(path / "spherecf.lock")
        self._folder = tempfile.mkdtemp(prefix="spherecf-")
        host = f"unix:{self._folder}/gallery" if os.name == "posix" else "127.0.0.1"
        try:
            self._server, self._db, port = start_server_in_thread(str(path), host, 0)
        except Exception as error:
            self._free()
            raise StorageError(f"{path}: the gallery cannot be opened ({error})") from error
        self.uri = f"{host}:0" if os.name == "posix" else f"http://{host}:{port}"

    def sync(self) -> None:
        """Have the disk itself take what was written: Milvus Lite leaves that to the operating system."""
        for file in self.path.glob("collections/*/wal/*.arrow"):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Write everything to its final files and let others in; may be called twice."""
        try:
            self._server.stop(grace=2).wait()
            self._db.close()
        finally:
            self._free()

    def _free(self) -> None:
        self._lock.release()
        shutil.rmtree(self._folder, ignore_errors=True)


def missing() -> MissingDependencyError:
    """What to say without the packages."""
    return MissingDependencyError('a gallery needs Milvus: pip install "spherecf[gallery]"')


@contextmanager
def hushed() -> Iterator[list[str]]:
    """Take what Milvus would log, tracebacks among it, from the terminal; yields its messages.

    Inside another one it yields the messages of that.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    outer = next((one for one in loggers[0].handlers if isinstance(one, _Taken)), None)
    if outer is not None:
        yield outer.messages
        return
    taken = _Taken()
    before = [(one.handlers, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [taken], False
    try:
        yield taken.messages
    finally:
        for one, (handlers, propagate) in zip(loggers, before):
            one.handlers, one.propagate = handlers, propagate


class _Taken(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: Any) -> None:
        self.messages.append(record.getMessage())
