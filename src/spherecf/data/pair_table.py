"""Read tables of image pairs, ``left right 0|1``, in any of the usual forms, including CFP's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from spherecf.common.files import describe_content
from spherecf.common.parsing import composed, has_image_suffix, is_number, is_whole
from spherecf.data.pairbin import fold_numbers
from spherecf.data.pairs import PairList, make_pair_list, subject_of
from spherecf.data.text import SEPARATORS, check_name, read_lines, split_cells
from spherecf.errors import FileFormatError

PAIR_LISTS = (
    "Supported: LFW's pairs.txt (line 1 `10<TAB>300`), lines `left right 0|1` (separated by tabs, commas or "
    "semicolons, or by spaces if no name contains one), a table with a header like "
    "`fold<TAB>left<TAB>right<TAB>mated`, a pair .bin."
)
_LAYOUTS = (
    ("left", "right", "label"), ("label", "left", "right"),
    ("fold", "left", "right", "label"), ("left", "right", "label", "fold"),
)  # fmt: skip
_CFP_HEADER = ["fold", "left", "right", "mated"]
_TRUE = ("1", "true", "same", "yes", "mated", "genuine", "match", "matched", "positive")
_FALSE = ("0", "-1", "false", "different", "no", "nonmated", "impostor", "imposter", "mismatch", "negative")
_MATED = dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False)
_ROLES = {
    word: role
    for role, words in {
        "fold": "fold folds foldid",
        "label": "label mated same issame match ismatch sameperson issameperson genuine target",
    }.items()
    for word in words.split()
}
_SIDES = {"1": "left", "a": "left", "left": "left", "first": "left"} | {
    "2": "right", "b": "right", "right": "right", "second": "right"
}  # fmt: skip
_IMAGE_WORDS = re.compile("filename|image|img|file|path|name|key|photo|picture|face|sample")


class _Table(NamedTuple):
    lines: list[int]
    """Line number of each row."""
    rows: list[list[str]]
    columns: Mapping[str, int]
    """Column of ``left``, ``right``, ``label`` and, if there is one, ``fold``."""
    width: int
    """Number of cells per row."""


def read_pair_table(path: str | Path) -> PairList:
    """Read lines ``left right label``, separated by tabs, commas, semicolons or spaces.

    A header may name the columns, in any order (``path1,path2,same``; other columns are ignored). Without a
    header the columns are ``left right label``, ``label left right``, ``fold left right label`` or
    ``left right label fold``. Labels are 1 and 0 (or -1), true and false, or same and different. Lines that
    start with ``#`` are ignored.

    Folds count from 1. Without a fold column the pairs are split into ten consecutive folds, as in a
    ``.bin``; if one of these would hold only mated or only non-mated pairs, each kind is split separately
    into ten folds, or into as many as there are pairs of the rarer kind.

    Subjects are the first folder in which the names differ, provided that these folders agree with every
    mated flag of the list; otherwise subjects are unknown.

    Raises:
        FileFormatError: a line does not fit (with its number), or the columns are ambiguous.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "own.txt"
        >>> _ = path.write_text("Ann/1.jpg Ann/2.jpg 1\\nAnn/1.jpg Bo/1.jpg 0\\n")
        >>> pairs = read_pair_table(path)
        >>> pairs.mated.tolist(), pairs.subjects_right
        ([True, False], ['Ann', 'Bo'])
    """
    path = Path(path)
    table = _read_table(path)
    left, right, mated = _pairs(path, table)
    fold = _fold_column(path, table) if "fold" in table.columns else _default_folds(mated)
    return make_pair_list(path, table.lines, left, right, mated, fold, _subjects(left, right, mated))


def read_cfp_pairs(path: str | Path) -> PairList:
    """Read a table ``fold<TAB>left<TAB>right<TAB>mated`` with a header line, as for CFP-FP and CFP-FF.

    Folds count from 1, ``mated`` is 0 or 1, and keys start with the subject: ``001/frontal/01.jpg``.

    Raises:
        FileFormatError: a line does not fit (with its number), or the folds differ in size.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.txt"
        >>> _ = path.write_text("fold\\tleft\\tright\\tmated\\n1\\t1/front/1.jpg\\t1/side/2.jpg\\t1\\n")
        >>> pairs = read_cfp_pairs(path)
        >>> pairs.subjects_left, pairs.mated.tolist(), pairs.fold.tolist()
        (['1'], [True], [0])
    """
    path = Path(path)
    lines, rows = _split_lines(read_lines(path), "\t")
    if not rows or rows[0] != _CFP_HEADER:
        got = repr("\t".join(rows[0])[:60]) if rows else "an empty file"
        raise FileFormatError(path, f"line 1: expected {'<TAB>'.join(_CFP_HEADER)!r}, got {got}.")
    table = _Table(lines[1:], rows[1:], _columns(("fold", "left", "right", "label")), 4)
    _check_rows(path, table)
    left, right, mated = _pairs(path, table)
    subjects = [subject_of(key) for key in left], [subject_of(key) for key in right]
    for number, flag, left_subject, right_subject in zip(table.lines, mated.tolist(), *subjects):
        if flag != (left_subject == right_subject):
            raise FileFormatError(
                path,
                f"line {number}: mated is {int(flag)}, which contradicts the subjects {left_subject[:40]!r} "
                f"and {right_subject[:40]!r}.",
            )
    fold = _fold_column(path, table)
    sizes = np.bincount(fold, minlength=1).tolist()
    if len(set(sizes)) != 1 or not sizes[0]:
        raise FileFormatError(
            path, f"expected folds of equal size, got {sizes[:20]} pairs.", "The file may be incomplete."
        )
    return make_pair_list(path, table.lines, left, right, mated, fold, subjects)


def is_pair_table(path: Path) -> bool:
    """Whether the first line belongs to a pair table rather than to a list of images."""
    for separator in SEPARATORS:
        _, rows = _split_lines(read_lines(path)[:1], separator)
        if not rows or len(rows[0]) < 3:
            continue
        if _column_roles(path, rows[0]).keys() >= {"left", "right", "label"}:
            return True
        if any(not _mismatch(rows[0], _columns(layout), len(layout)) for layout in _LAYOUTS):
            return sum(map(has_image_suffix, rows[0])) == 2
    return False


def _read_table(path: Path) -> _Table:
    """The table, with the separator and the roles of the columns inferred from the text."""
    text = read_lines(path)
    splits = [_split_lines(text, separator) for separator in SEPARATORS]
    candidates = [(lines, rows) for lines, rows in splits if rows and len(rows[0]) >= 3]
    for lines, rows in candidates:
        table = _table_with_header(path, lines, rows) or _table_without_header(path, lines, rows)
        if table is not None:
            return table
    if not candidates:
        got = (
            f"line {text[0][0]}: expected `left right label`, got {text[0][1][:80]!r}"
            if text
            else "it has no lines"
        )
        raise FileFormatError(
            path, f"expected a pair list, but this is {describe_content(path)}: {got}.", PAIR_LISTS
        )
    lines, rows = candidates[0]
    likely = _LAYOUTS[0 if len(rows[0]) == 3 else 2 if is_whole(rows[0][0]) else 3]
    table = _Table(lines, rows, _columns(likely), len(likely))
    _check_rows(path, table)
    raise FileFormatError(path, "expected a pair list, but the columns fit no known layout.", PAIR_LISTS)


def _split_lines(text: Sequence[tuple[int, str]], separator: str | None) -> tuple[list[int], list[list[str]]]:
    content = [(number, line) for number, line in text if not line.startswith("#")]
    return [number for number, _ in content], [split_cells(line, separator) for _, line in content]


def _column_roles(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Column by role (left, right, label, fold), from the names in the first line."""
    columns: dict[str, int] = {}
    for index, cell in enumerate(header):
        word = re.sub(r"[\W_]", "", cell.lower())
        role = _ROLES.get(word) or _side(word)
        if role is not None and columns.setdefault(role, index) != index:
            raise FileFormatError(
                path, f"the header is ambiguous: {header[columns[role]]!r} and {cell!r} could both be the "
                f"{role} column.",
                "Remove one of them.",
            )  # fmt: skip
    return columns


def _side(word: str) -> str | None:
    """``left`` or ``right`` for column names such as ``left``, ``img1`` and ``path_b``, otherwise None.

    A number alone is not a column name.
    """
    remainder = _IMAGE_WORDS.sub("", word)
    return _SIDES.get(remainder) if remainder != word or remainder in ("left", "right") else None


def _table_with_header(path: Path, lines: list[int], rows: list[list[str]]) -> _Table | None:
    """The table if its first line names the columns left, right and label, otherwise None."""
    columns = _column_roles(path, rows[0])
    if not {"left", "right", "label"} <= columns.keys():
        return None
    title = rows[0][columns["label"]]
    if any(title in row[columns["label"] :][:1] for row in rows[1:]):  # `img1 img2 same` may be a pair
        return None
    if len(rows) == 1:
        raise FileFormatError(path, "expected pairs after the header, but the file has none.")
    table = _Table(lines[1:], rows[1:], columns, len(rows[0]))
    _check_rows(path, table)
    return table


def _table_without_header(path: Path, lines: list[int], rows: list[list[str]]) -> _Table | None:
    """The table if exactly one layout without header fits all rows, otherwise None.

    Left and right must both be names, or both be numbers.
    """
    fitting = []
    for layout in _LAYOUTS:
        columns, width = _columns(layout), len(layout)
        if len(rows[0]) != width or any(_mismatch(row, columns, width) for row in rows):
            continue
        numbers = [all(is_number(row[columns[side]]) for row in rows) for side in ("left", "right")]
        if numbers[0] == numbers[1]:
            fitting.append(layout)
    if len(fitting) > 1:
        readings = " or ".join(f"`{' '.join(layout)}`" for layout in fitting)
        raise FileFormatError(
            path,
            f"its columns are ambiguous: they could be {readings}.",
            "Add a first line that names them, e.g. `left right label`.",
        )
    return _Table(lines, rows, _columns(fitting[0]), len(fitting[0])) if fitting else None


def _columns(layout: Sequence[str]) -> dict[str, int]:
    return {role: column for column, role in enumerate(layout)}


def _mismatch(row: Sequence[str], columns: Mapping[str, int], width: int) -> str:
    """Why the cells are not a pair; empty if they are."""
    if len(row) != width:
        return f"{len(row)} cells instead of {width}" if row else "a quote is not closed"
    if _mated_flag(row[columns["label"]]) is None:
        return f"{row[columns['label']][:40]!r} is not 0 or 1"
    if "fold" in columns and not re.fullmatch(r"-?\d+", row[columns["fold"]]):
        return f"fold {row[columns['fold']][:40]!r} is not a whole number"
    return ""


def _check_rows(path: Path, table: _Table) -> None:
    for number, row in zip(table.lines, table.rows):
        if reason := _mismatch(row, table.columns, table.width):
            form = " ".join(sorted(table.columns, key=table.columns.__getitem__))
            raise FileFormatError(
                path, f"line {number}: expected `{form}`, got {' '.join(row)[:80]!r}: {reason}.", PAIR_LISTS
            )


def _mated_flag(cell: str) -> bool | None:
    return _MATED.get(re.sub(r"(?<=\d)\.0+$|(?<=n)[-_ ](?=m)", "", cell.lower()))


def _pairs(path: Path, table: _Table) -> tuple[list[str], list[str], Bool[np.ndarray, " n"]]:
    """Left names, right names, mated flags."""
    sides: list[list[str]] = []
    for side in ("left", "right"):
        cells = [row[table.columns[side]] for row in table.rows]
        for number, cell in zip(table.lines, cells):
            check_name(path, number, cell)
        sides.append([cell.replace("\\", "/") for cell in cells])
    labels = [row[table.columns["label"]] for row in table.rows]
    if {"0", "-1"} <= set(labels):
        lines = [table.lines[labels.index(label)] for label in ("-1", "0")]
        raise FileFormatError(
            path,
            f"line {lines[0]} has the label -1 and line {lines[1]} the label 0, but only one of them can "
            "mean non-mated.",
            "Remove the lines whose label means unknown.",
        )
    return sides[0], sides[1], np.array([_mated_flag(label) for label in labels], bool)


def _fold_column(path: Path, table: _Table) -> Int64[np.ndarray, " n"]:
    cells = [row[table.columns["fold"]] for row in table.rows]
    count = len(set(cells))
    for number, cell in zip(table.lines, cells):
        if not is_whole(cell) or not 1 <= int(cell) <= count:
            raise FileFormatError(
                path,
                f"line {number}: expected a fold from 1 to {count}, since there are {count} different folds, "
                f"got {cell[:40]}.",
            )
    return np.array([int(cell) - 1 for cell in cells], np.int64)


def _default_folds(mated: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Ten consecutive folds if each has both kinds of pairs, otherwise each kind is split separately."""
    folds = fold_numbers(len(mated))
    kinds = [np.flatnonzero(mated == kind) for kind in (True, False)]
    rarer = min(map(len, kinds))
    if rarer and any(len(np.unique(folds[rows])) < folds.max() + 1 for rows in kinds):
        for rows in kinds:
            folds[rows] = np.arange(len(rows)) * min(rarer, 10) // len(rows)
    return folds


def _subjects(
    left: Sequence[str], right: Sequence[str], mated: Bool[np.ndarray, " n"]
) -> tuple[list[str], list[str]] | None:
    """Subjects, from the first folder in which the names differ; None if they contradict ``mated``."""
    parts = [composed(name).split("/") for name in (*left, *right)]
    depth = 0
    while min(map(len, parts)) > depth + 1 and len({names[depth] for names in parts}) == 1:
        depth += 1
    if min(map(len, parts)) < depth + 2 or mated.all() or not mated.any():
        return None
    subjects = [names[depth] for names in parts]
    left_subjects, right_subjects = subjects[: len(left)], subjects[len(left) :]
    same = np.array([a == b for a, b in zip(left_subjects, right_subjects)])
    return (left_subjects, right_subjects) if np.array_equal(same, mated) else None
