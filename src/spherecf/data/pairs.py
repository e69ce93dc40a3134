"""Lists of mated and non-mated image pairs for verification, in folds: read from a file, or drawn."""

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
        mated: (n,) True if both images show the same person.
        fold: (n,) fold of each pair, from 0; every number up to the largest occurs.
        subjects_left, subjects_right: (n,) subjects of the two images, or None if the list does not contain
            them (needed for confidence intervals over subjects).

    Raises:
        InputError: the columns differ in length, there is no pair, or a fold number is negative or skipped.

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
                f"{self.name}: expected columns of equal length, at least 1, got lengths {sorted(lengths)}"
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
        """Subjects of the left and of the right images; None unless both are known."""
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
        """Rows in ``keys`` of the left and of the right images.

        An equal key takes precedence. Otherwise names may differ from keys in Unicode form, separator, image
        extension, and by one parent folder common to all.

        Raises:
            InputError: images of the list are not among ``keys`` (with their number and the first few), or a
                name fits several keys.
        """
        index = match_keys((*self.left, *self.right), keys, self.name)
        unknown = list(dict.fromkeys(key for key in (*self.left, *self.right) if key not in index))
        if unknown:
            raise InputError(
                f"{self.name}: {len(unknown)} images of the list are not among the {len(keys)} images given, "
                f"e.g. {', '.join(unknown[:3])}. The given names look like {', '.join(keys[:2])}; the names "
                "in the list must match them."
            )
        left, right = (
            np.array([index[key] for key in column], np.int64) for column in (self.left, self.right)
        )
        return left, right


def read_lfw_pairs(path: str | Path) -> PairList:
    """Read LFW's official list (View 2): ``10<TAB>300``, then per fold 300 mated and 300 non-mated lines.

    A mated line is ``name n m``, a non-mated one ``name n other m``; keys are ``Name/Name_0001.jpg``. A
    header with one number (the development lists of View 1) means one fold. See
    http://vis-www.cs.umass.edu/lfw/ .

    Raises:
        FileFormatError: with the line number.

    Example:
        >>> from pathlib import Path
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
    folds, per_kind = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    if len(lines) - 1 != folds * per_kind * 2 or not folds * per_kind:
        raise FileFormatError(
            path,
            f"line 1 declares {folds} folds of 2 x {per_kind} pairs = {folds * per_kind * 2} lines, but "
            f"{len(lines) - 1} follow.",
            "The file may be incomplete, or its folds unequal.",
        )
    left, right = list[str](), list[str]()
    mated = np.tile(np.repeat([True, False], per_kind), folds)
    for (number, line), flag in zip(lines[1:], mated.tolist()):
        for side, key in zip((left, right), _lfw_line(path, number, line, flag)):
            side.append(key)
    subjects = [subject_of(key) for key in left], [subject_of(key) for key in right]
    fold = np.repeat(np.arange(folds, dtype=np.int64), 2 * per_kind)
    return make_pair_list(path, [number for number, _ in lines[1:]], left, right, mated, fold, subjects)


def _lfw_line(path: Path, number: int, line: str, mated: bool) -> tuple[str, str]:
    fields = split_cells(line, "\t" if "\t" in line else None)
    if mated and len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    elif mated or len(fields) != 4 or composed(fields[0]) == composed(fields[2]):
        expected = "`name n m` (a mated pair)" if mated else "`name n other m` (a non-mated pair)"
        raise FileFormatError(path, f"line {number}: expected {expected}, got {line[:80]!r}.")
    if not (_is_count(fields[1]) and _is_count(fields[3])):
        raise FileFormatError(path, f"line {number}: expected image numbers, got {line[:80]!r}.")
    if any(mark in fields[0] + fields[2] for mark in "/\\"):
        raise FileFormatError(
            path,
            f"line {number}: expected names of people, got a path: {line[:80]!r}.",
            "Remove the folders.",
        )
    left, right = (f"{name}/{name}_{int(image):04d}.jpg" for name, image in (fields[:2], fields[2:]))
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
    subjects: tuple[list[str], list[str]] | None,
) -> PairList:
    """A `PairList` of the pairs on a file's ``lines``, checked for contradictions.

    Raises:
        FileFormatError: with the line number: an image is compared with itself, or a pair is listed both as
            mated and as non-mated.
    """
    first_rows: dict[tuple[str, str], int] = {}
    for row, (number, left_key, right_key) in enumerate(zip(lines, left, right)):
        if left_key == right_key:
            raise FileFormatError(
                path, f"line {number}: {left_key[:80]!r} is compared with itself.", "Remove this line."
            )
        first = first_rows.setdefault((min(left_key, right_key), max(left_key, right_key)), row)
        if mated[first] != mated[row]:
            kinds = ("non-mated", "mated") if mated[row] else ("mated", "non-mated")
            raise FileFormatError(
                path,
                f"line {number}: this pair is {kinds[1]} here and {kinds[0]} on line {lines[first]}.",
                "Remove one of the two lines.",
            )
    return PairList(path.stem, left, right, mated, fold, *(subjects or (None, None)))


def subject_of(key: str) -> str:
    """The first folder of a key, which is the subject's name, in composed Unicode form (NFC)."""
    return composed(key.split("/", 1)[0])


def draw_pairs(source: ImageSource, max_pairs: int = 3000, folds: int = 10, seed: int = 0) -> PairList:
    """Draw up to ``max_pairs`` mated and as many non-mated pairs of different images, without repetition.

    A pair is in the fold of its left image's subject, so all mated pairs of a subject are in one fold. Images
    of unknown identity are not used.

    Args:
        source: images with identities.
        max_pairs: maximum number of mated pairs; as many non-mated ones are drawn, if there are as many.
        folds: maximum number of folds; there are fewer if fewer people have mated pairs.
        seed: the same seed and source give the same pairs.

    Raises:
        InputError: fewer than two people have two or more images.

    Example:
        >>> from spherecf.data import orl_faces
        >>> pairs = draw_pairs(orl_faces(), max_pairs=100)
        >>> len(pairs), int(pairs.mated.sum()), pairs.folds
        (200, 100, 10)
    """
    rng = np.random.default_rng(seed)
    labels = source.labels
    counts = np.bincount(labels[labels >= 0], minlength=1)
    people_with_pairs = np.flatnonzero(counts > 1)
    if len(people_with_pairs) < 2 or max_pairs < 1:
        raise InputError(
            f"{source.name}: drawing pairs needs at least two people with two or more images each, got "
            f"{len(people_with_pairs)}"
        )
    mated = _subsample(_mated(labels, people_with_pairs), max_pairs, rng)
    non_mated = _non_mated(labels, len(mated), rng)
    left, right = np.concatenate([mated, non_mated]).T
    fold_of = np.zeros(len(counts), np.int64)
    # People with one image are in non-mated pairs only; put them last, so that every fold has mated pairs.
    order = np.concatenate([rng.permutation(people_with_pairs), np.flatnonzero(counts == 1)])
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
    while len(drawn) < count and attempts < 100 * count:  # with few people there may be fewer pairs
        attempts += 1
        a, b = rng.choice(rows, 2, replace=False).tolist()
        if labels[a] != labels[b] and (b, a) not in drawn:
            drawn.add((a, b))
    return np.array(sorted(drawn), np.int64)
