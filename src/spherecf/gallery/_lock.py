"""One process at a time writes an embedded gallery; whoever comes second is told who has it."""

import os
from pathlib import Path

from spherecf.errors import StorageError

if os.name == "posix":
    import fcntl


class Lock:
    """A lock on a file that holds the process id; the system frees it when the process ends, however it ends.

    Args:
        path: the file; made if missing, and left behind.

    Raises:
        StorageError: another process holds it (its id is named), or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a+")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            if os.name == "posix":
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StorageError(
                f"{path.parent}: the gallery is in use by process {holder}; one process at a time may have "
                "it open. Wait for it, or end it; for many writers use a Milvus server"
            ) from error
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Free it; may be called twice."""
        self._file.close()
