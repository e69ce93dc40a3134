"""Errors of SphereCF. Each message states what was expected, what was found, where, and the remedy.

All derive from `SpherecfError`: ``except spherecf.errors.SpherecfError`` catches every error that the library
raises on purpose, and no bugs. Each class also derives from the matching built-in exception.
"""

from pathlib import Path


class SpherecfError(Exception):
    """Base class of all errors that this library raises on purpose."""


class InputError(SpherecfError, ValueError):
    """An argument has the wrong shape, type or range, or contains NaN."""


class FileFormatError(SpherecfError, ValueError):
    """A file cannot be used: it is missing, corrupt, truncated, malicious or in another format.

    Args:
        path: the file.
        problem: what was expected and what was found, with the position if known.
        hint: the remedy.
    """

    def __init__(self, path: str | Path, problem: str, hint: str = "") -> None:
        self.path, self.problem, self.hint = Path(path), problem, hint
        super().__init__(f"{path}: {problem}" + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type["FileFormatError"], tuple[object, ...]]:
        # Pickled by its arguments, since it may be sent between processes.
        return type(self), (self.path, self.problem, self.hint)


class ModelError(SpherecfError, RuntimeError):
    """A network cannot be used: not a recogniser, or not the expected architecture or backbone."""


class MissingDependencyError(SpherecfError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


class StorageError(SpherecfError, OSError):
    """Writing failed (disk full, no permission). Files that were already complete are intact."""


class RankError(SpherecfError, RuntimeError):
    """Another process of a distributed run failed or does not respond; the last checkpoint is intact."""
