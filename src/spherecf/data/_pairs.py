"""Pair lists: who is compared with whom, mated or not, in which fold."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from spherecf._names import match_keys
from spherecf.data._list import read_lines
from spherecf.errors import FileFormatError, InputError


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of keys for verification.

    Attributes:
        name: a short name for reports.
        left, right: (n,) keys of the two images of each pair.
        mated: (n,) True where both show the same person.
        fold: (n,) fold of each pair, from 0; every fold up to the largest occurs.
        subjects_left, subjects_right: (n,) the persons, where the list tells (for intervals over subjects).

    Raises:
        InputError: lengths differ, there is no pair, or a fold is negative or left out.

    Example:
        >>> pairs = PairList("toy", ["a", "a"], ["b", "c"], np.array([True, False]), np.array([0, 0]))
        >>> len(pairs), pairs.folds, [rows.tolist() for rows in pairs.rows(["c", "b", "a"])]
        (2, 1, [[2, 2], [1, 0]])
    """

    name: str
    left: list[str]
    right: list[str]
    mated: Bool[np.ndarray, " n"]
    fold: Int64[np.ndarray, " n"]
    subjects_left: list[str] | None = None
    subjects_right: list[str] | None = None

    def __post_init__(self) -> None:
        columns = (self.left, self.right, self.fold, self.subjects_left, self.subjects_right)
        lengths = {len(self.mated)} | {len(column) for column in columns if column is not None}
        if len(lengths) != 1 or not len(self.mated):
            raise InputError(
                f"{self.name}: expected columns of one length, at least 1, got lengths {sorted(lengths)}"
            )
        present = np.unique(self.fold)
        if not np.array_equal(present, np.arange(len(present))):
            raise InputError(f"{self.name}: folds must be 0, 1, 2, ... without a gap, got {present.tolist()}")

    def __len__(self) -> int:
        return len(self.mated)

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    @property
    def subjects(self) -> tuple[list[str], list[str]] | None:
        """The persons left and right, or None where the list does not tell both."""
        if self.subjects_left is None or self.subjects_right is None:
            return None
        return self.subjects_left, self.subjects_right

    def fingerprint(self) -> str:
        """Hex SHA-256 over keys, mated flags and folds, in order."""
        digest = hashlib.sha256(b"spherecf.pairs/1\0")
        for column in (self.left, self.right):
            digest.update(b"\0".join(map(os.fsencode, column)) + b"\0\0")
        digest.update(self.mated.astype("u1").tobytes() + self.fold.astype("<i8").tobytes())
        return digest.hexdigest()

    def rows(self, keys: Sequence[str]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Rows of the left and of the right images in ``keys``.

        Names may differ from keys in Unicode form, separator, the suffix of an image, and by one folder above
        all of them; an equal key counts first.

        Raises:
            InputError: keys of the list that are not among ``keys``: the first few and their number; or a
                name that several keys fit.
        """
        index = match_keys((*self.left, *self.right), keys, self.name)
        unknown = list(dict.fromkeys(key for key in (*self.left, *self.right) if key not in index))
        if unknown:
            raise InputError(
                f"{self.name}: {len(unknown)} images of the list are not among the {len(keys)} given keys, "
                f"first {', '.join(unknown[:3])}. Those look like {', '.join(keys[:2])}; "
                "both must be spelt alike."
            )
        left, right = (
            np.array([index[key] for key in column], np.int64) for column in (self.left, self.right)
        )
        return left, right


def read_lfw_pairs(path: str | Path) -> PairList:
    """The official LFW list (View 2): ``10<TAB>300``, then per fold 300 mated and 300 non-mated lines.

    A mated line is ``name n m``, a non-mated one ``name n other m``; keys are ``Name/Name_0001.jpg``. A
    header of one number (the development lists of View 1) means one fold. See
    http://vis-www.cs.umass.edu/lfw/ .

    Raises:
        FileFormatError: with the line number.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.txt"
        >>> _ = path.write_text("1\\t1\\nAnn_Lee\\t1\\t2\\nAnn_Lee\\t1\\tBo_Ray\\t3\\n")
        >>> pairs = read_lfw_pairs(path)
        >>> pairs.right, pairs.mated.tolist()
        (['Ann_Lee/Ann_Lee_0002.jpg', 'Bo_Ray/Bo_Ray_0003.jpg'], [True, False])
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0][1].split() if lines else []
    if not 1 <= len(header) <= 2 or not all(map(str.isdecimal, header)):
        got = repr(lines[0][1][:60]) if lines else "an empty file"
        raise FileFormatError(path, f"line 1: expected `folds<TAB>pairs of each kind`, got {got}.")
    folds, half = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    if len(lines) - 1 != folds * half * 2 or not folds * half:
        raise FileFormatError(
            path,
            f"line 1 promises {folds} x 2 x {half} pairs, {len(lines) - 1} lines follow.",
            "Unequal folds?",
        )
    rows = []
    for position, (number, line) in enumerate(lines[1:]):
        fold, place = divmod(position, 2 * half)
        rows.append((*_lfw_line(path, number, line, mated=place < half), place < half, fold))
    return _pair_list(path, rows)


def _lfw_line(path: Path, number: int, line: str, mated: bool) -> tuple[str, str]:
    fields = line.split("\t") if "\t" in line else line.split()
    if mated and len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    elif mated or len(fields) != 4 or fields[0] == fields[2]:
        expected = "`name n m` (a mated pair)" if mated else "`name n other m` (a non-mated pair)"
        raise FileFormatError(path, f"line {number}: expected {expected}, got {line[:80]!r}.")
    if not (fields[1].isdecimal() and fields[3].isdecimal()):
        raise FileFormatError(path, f"line {number}: expected picture numbers, got {line[:80]!r}.")
    left, right = (f"{name}/{name}_{int(picture):04d}.jpg" for name, picture in (fields[:2], fields[2:]))
    return left, right


def read_cfp_pairs(path: str | Path) -> PairList:
    """A table ``fold<TAB>left<TAB>right<TAB>mated`` with a header line, as for CFP-FP and CFP-FF.

    Folds count from 1, ``mated`` is 0 or 1, and keys start with the person: ``001/frontal/01.jpg``.

    Raises:
        FileFormatError: with the line number; also if folds are of unequal size.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.txt"
        >>> _ = path.write_text("fold\\tleft\\tright\\tmated\\n1\\t1/front/1.jpg\\t1/side/2.jpg\\t1\\n")
        >>> pairs = read_cfp_pairs(path)
        >>> pairs.subjects_left, pairs.mated.tolist(), pairs.fold.tolist()
        (['1'], [True], [0])
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines or lines[0][1].split("\t") != _CFP_HEADER:
        got = repr(lines[0][1][:60]) if lines else "an empty file"
        raise FileFormatError(path, f"line 1: expected {'<TAB>'.join(_CFP_HEADER)!r}, got {got}.")
    rows = []
    for number, line in lines[1:]:
        fields = line.split("\t")
        if len(fields) != 4 or not fields[0].isdecimal() or int(fields[0]) < 1 or fields[3] not in ("0", "1"):
            raise FileFormatError(
                path, f"line {number}: expected `fold left right 0|1`, tab separated, got {line[:80]!r}."
            )
        mated = fields[3] == "1"
        if mated != (_subject(fields[1]) == _subject(fields[2])):
            raise FileFormatError(
                path, f"line {number}: mated is {fields[3]}, which the persons contradict: {line[:80]!r}."
            )
        rows.append((fields[1], fields[2], mated, int(fields[0]) - 1))
    sizes = np.bincount([row[3] for row in rows]) if rows else np.zeros(1, int)
    if len(set(sizes.tolist())) != 1 or not sizes[0]:
        raise FileFormatError(
            path, f"expected folds of one size, got {sizes.tolist()} pairs.", "Is the file complete?"
        )
    return _pair_list(path, rows)


_CFP_HEADER = ["fold", "left", "right", "mated"]


def _pair_list(path: Path, rows: list[tuple[str, str, bool, int]]) -> PairList:
    left, right, mated, fold = (list(column) for column in zip(*rows))
    return PairList(
        path.stem, left, right, np.array(mated, bool), np.array(fold, np.int64),
        [_subject(key) for key in left], [_subject(key) for key in right],
    )  # fmt: skip


def _subject(key: str) -> str:
    return key.split("/", 1)[0]
