"""Pair lists: who is compared with whom, mated or not, in which fold; read or drawn."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from spherecf.common.parsing import composed, is_whole, match_keys
from spherecf.data.source import ImageSource
from spherecf.data.text import check_name, read_lines, split_cells
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
    if not 1 <= len(header) <= 2 or not all(map(_is_count, header)):
        got = repr(lines[0][1][:60]) if lines else "an empty file"
        raise FileFormatError(path, f"line 1: expected `folds<TAB>pairs of each kind`, got {got}.")
    folds, half = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    if len(lines) - 1 != folds * half * 2 or not folds * half:
        raise FileFormatError(
            path,
            f"line 1 promises {folds} x 2 x {half} pairs, {len(lines) - 1} lines follow.",
            "Unequal folds?",
        )
    left, right = list[str](), list[str]()
    mated = np.tile(np.repeat([True, False], half), folds)
    for (number, line), flag in zip(lines[1:], mated.tolist()):
        for side, key in zip((left, right), _lfw_line(path, number, line, flag)):
            side.append(key)
    people = [subject_of(key) for key in left], [subject_of(key) for key in right]
    fold = np.repeat(np.arange(folds, dtype=np.int64), 2 * half)
    return make_pair_list(path, [number for number, _ in lines[1:]], left, right, mated, fold, people)


def _lfw_line(path: Path, number: int, line: str, mated: bool) -> tuple[str, str]:
    fields = split_cells(line, "\t" if "\t" in line else None)
    if mated and len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    elif mated or len(fields) != 4 or composed(fields[0]) == composed(fields[2]):
        expected = "`name n m` (a mated pair)" if mated else "`name n other m` (a non-mated pair)"
        raise FileFormatError(path, f"line {number}: expected {expected}, got {line[:80]!r}.")
    if not (_is_count(fields[1]) and _is_count(fields[3])):
        raise FileFormatError(path, f"line {number}: expected picture numbers, got {line[:80]!r}.")
    if any(mark in fields[0] + fields[2] for mark in "/\\"):
        raise FileFormatError(path, f"line {number}: expected names of people, got a path in {line[:80]!r}.")
    left, right = (f"{name}/{name}_{int(picture):04d}.jpg" for name, picture in (fields[:2], fields[2:]))
    check_name(path, number, left)
    return left, right


def _is_count(text: str) -> bool:
    return is_whole(text) and not text.startswith("-")


def make_pair_list(
    path: Path,
    lines: Sequence[int],
    left: list[str],
    right: list[str],
    mated: Bool[np.ndarray, " n"],
    fold: Int64[np.ndarray, " n"],
    people: tuple[list[str], list[str]] | None,
) -> PairList:
    """The pairs of a file's ``lines``, after a look at what no pair list can mean.

    Raises:
        FileFormatError: an image compared with itself, or a pair both mated and not, with the line.
    """
    known: dict[tuple[str, str], int] = {}
    for row, (number, one, other) in enumerate(zip(lines, left, right)):
        if one == other:
            raise FileFormatError(path, f"line {number}: {one[:80]!r} is compared with itself.")
        first = known.setdefault((min(one, other), max(one, other)), row)
        if mated[first] != mated[row]:
            kinds = ("non-mated", "mated") if mated[row] else ("mated", "non-mated")
            raise FileFormatError(
                path, f"line {number}: this pair is {kinds[1]} here and {kinds[0]} on line {lines[first]}."
            )  # fmt: skip
    return PairList(path.stem, left, right, mated, fold, *(people or (None, None)))


def subject_of(key: str) -> str:
    """The person of a key that starts with one, in one spelling."""
    return composed(key.split("/", 1)[0])


def draw_pairs(source: ImageSource, max_pairs: int = 3000, folds: int = 10, seed: int = 0) -> PairList:
    """Up to ``max_pairs`` mated and as many non-mated pairs of different images, without repetition.

    Folds are by person, that of the left image: all mated pairs of a person are in one fold. Images without
    identity are left out.

    Args:
        source: images with identities.
        max_pairs: of each kind; fewer where there are fewer.
        folds: at most, and not more than there are people with two images.
        seed: the same seed and source give the same pairs.

    Raises:
        InputError: fewer than two people with two or more images.

    Example:
        >>> from spherecf.data import orl_faces
        >>> pairs = draw_pairs(orl_faces(), max_pairs=100)
        >>> len(pairs), int(pairs.mated.sum()), pairs.folds
        (200, 100, 10)
    """
    rng = np.random.default_rng(seed)
    labels = source.labels
    counts = np.bincount(labels[labels >= 0], minlength=1)
    several = np.flatnonzero(counts > 1)
    if len(several) < 2 or max_pairs < 1:
        raise InputError(
            f"{source.name}: pairs need at least two people with two or more images, got {len(several)}"
        )
    mated = _subsample(_mated(labels, several), max_pairs, rng)
    other = _non_mated(labels, len(mated), rng)
    left, right = np.concatenate([mated, other]).T
    fold_of = np.zeros(len(counts), np.int64)
    # People with one image take part in non-mated pairs only; every fold has mated ones.
    order = np.concatenate([rng.permutation(several), np.flatnonzero(counts == 1)])
    fold_of[order] = np.arange(len(order)) % min(folds, len(np.unique(labels[mated[:, 0]])))
    fold = np.unique(fold_of[labels[left]], return_inverse=True)[1].astype(np.int64)
    keys, names = source.keys, source.identities
    return PairList(
        source.name,
        [keys[row] for row in left],
        [keys[row] for row in right],
        np.arange(len(left)) < len(mated),
        fold,
        [names[labels[row]] for row in left],
        [names[labels[row]] for row in right],
    )


def _mated(labels: Int64[np.ndarray, " n"], people: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "pairs 2"]:
    combinations = []
    for person in people:
        rows = np.flatnonzero(labels == person)
        combinations.append(rows[np.stack(np.triu_indices(len(rows), 1), 1)])
    return np.concatenate(combinations)


def _subsample(
    pairs: Int64[np.ndarray, "n 2"], count: int, rng: np.random.Generator
) -> Int64[np.ndarray, "m 2"]:
    return pairs if len(pairs) <= count else pairs[rng.choice(len(pairs), count, replace=False)]


def _non_mated(
    labels: Int64[np.ndarray, " n"], count: int, rng: np.random.Generator
) -> Int64[np.ndarray, "pairs 2"]:
    rows = np.flatnonzero(labels >= 0)
    drawn: set[tuple[int, int]] = set()
    attempts = 0
    while len(drawn) < count and attempts < 100 * count:  # few people: there may not be so many
        attempts += 1
        a, b = rng.choice(rows, 2, replace=False).tolist()
        if labels[a] != labels[b] and (b, a) not in drawn:
            drawn.add((a, b))
    return np.array(sorted(drawn), np.int64)
