"""Errors of SphereCF: every one says what was expected, what came, where, and what to do.

All derive from `SpherecfError`, so ``except spherecf.errors.SpherecfError`` catches whatever the library
itself refuses, and nothing that is a bug. Each also derives from the built-in error people already catch.
"""

from pathlib import Path


class SpherecfError(Exception):
    """Base of all errors raised on purpose by this library."""


class InputError(SpherecfError, ValueError):
    """An argument has the wrong shape, type or range, or contains NaN."""


class FileFormatError(SpherecfError, ValueError):
    """A file exists but is not what it should be: corrupt, truncated, hostile or of another kind.

    Args:
        path: the file.
        problem: what was expected and what came, with the position if known.
        hint: what to do about it.
    """

    def __init__(self, path: str | Path, problem: str, hint: str = "") -> None:
        self.path, self.problem, self.hint = Path(path), problem, hint
        super().__init__(f"{path}: {problem}" + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type["FileFormatError"], tuple[object, ...]]:
        return type(self), (self.path, self.problem, self.hint)  # as it was made: it may cross processes


class ModelError(SpherecfError, RuntimeError):
    """A network cannot be used as asked: not a recogniser, another architecture, another backbone."""


class MissingDependencyError(SpherecfError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class StorageError(SpherecfError, OSError):
    """Writing failed (full disk, no permission). What was already complete is intact."""


class RankError(SpherecfError, RuntimeError):
    """Another process of a distributed training is gone, or does not answer; the last checkpoint is whole."""
