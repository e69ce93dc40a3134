"""Tables of pairs: ``left right 0|1`` in any of the usual forms, CFP's among them."""

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
    "Looked for: LFW's pairs.txt (line 1 `10<TAB>300`), lines `left right 0|1` (tabs, commas or semicolons "
    "between them, or blanks where no name holds one), a table with a header like "
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
    """Number of each row's line."""
    rows: list[list[str]]
    columns: Mapping[str, int]
    """Where ``left``, ``right``, ``label`` and perhaps ``fold`` stand."""
    width: int
    """Number of cells that a row must have."""


def read_pair_table(path: str | Path) -> PairList:
    """Lines ``left right label``, separated by tabs, commas, semicolons or blanks.

    A header may name the columns, in any order (``path1,path2,same``; other columns do not count). Without
    one they are ``left right label``, ``label left right``, or the former with a fold before or behind.
    Labels are 1 and 0 (or -1), true and false, same and different. Lines that start with ``#`` do not count.

    Folds count from 1. Without them there are ten in order, as in a ``.bin``; where one of those would hold
    one kind of pairs alone, each kind is cut into ten, or as many as there are pairs of the rarer kind.

    Persons are the first folder that the names do not share, if it tells mated from non-mated pairs without
    any exception; otherwise they are unknown.

    Raises:
        FileFormatError: with the number of the line that does not fit; columns that can be read in two ways.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "own.txt"
        >>> _ = path.write_text("Ann/1.jpg Ann/2.jpg 1\\nAnn/1.jpg Bo/1.jpg 0\\n")
        >>> pairs = read_pair_table(path)
        >>> pairs.mated.tolist(), pairs.subjects_right
        ([True, False], ['Ann', 'Bo'])
    """
    path = Path(path)
    table = _read(path)
    left, right, mated = _pairs(path, table)
    fold = _given_folds(path, table) if "fold" in table.columns else _made_folds(mated)
    return make_pair_list(path, table.lines, left, right, mated, fold, _people(left, right, mated))


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
    lines, rows = _cut(read_lines(path), "\t")
    if not rows or rows[0] != _CFP_HEADER:
        got = repr("\t".join(rows[0])[:60]) if rows else "an empty file"
        raise FileFormatError(path, f"line 1: expected {'<TAB>'.join(_CFP_HEADER)!r}, got {got}.")
    table = _Table(lines[1:], rows[1:], _places(("fold", "left", "right", "label")), 4)
    _refuse_misfits(path, table)
    left, right, mated = _pairs(path, table)
    people = [subject_of(key) for key in left], [subject_of(key) for key in right]
    for number, flag, one, other in zip(table.lines, mated.tolist(), *people):
        if flag != (one == other):
            raise FileFormatError(
                path, f"line {number}: mated is {int(flag)}, which the persons contradict: {one[:40]!r} and "
                f"{other[:40]!r}."
            )  # fmt: skip
    fold = _given_folds(path, table)
    sizes = np.bincount(fold, minlength=1).tolist()
    if len(set(sizes)) != 1 or not sizes[0]:
        raise FileFormatError(
            path, f"expected folds of one size, got {sizes[:20]} pairs.", "Is the file complete?"
        )
    return make_pair_list(path, table.lines, left, right, mated, fold, people)


def is_pair_table(path: Path) -> bool:
    """Whether the first line is one of a pair table, and not of a list of images."""
    for separator in SEPARATORS:
        _, rows = _cut(read_lines(path)[:1], separator)
        if not rows or len(rows[0]) < 3:
            continue
        if _roles(path, rows[0]).keys() >= {"left", "right", "label"}:
            return True
        if any(not _misfit(rows[0], _places(layout), len(layout)) for layout in _LAYOUTS):
            return sum(map(has_image_suffix, rows[0])) == 2
    return False


def _read(path: Path) -> _Table:
    """The rows, cut at the separator that fits, and which column is which."""
    text = read_lines(path)
    cuts = [_cut(text, separator) for separator in SEPARATORS]
    wide = [(lines, rows) for lines, rows in cuts if rows and len(rows[0]) >= 3]
    for lines, rows in wide:
        table = _headed(path, lines, rows) or _headless(path, lines, rows)
        if table is not None:
            return table
    if not wide:
        got = (
            f"line {text[0][0]}: expected `left right label`, got {text[0][1][:80]!r}" if text else "no line"
        )
        raise FileFormatError(path, f"not a pair list but {describe_content(path)}: {got}.", PAIR_LISTS)
    lines, rows = wide[0]
    likely = _LAYOUTS[0 if len(rows[0]) == 3 else 2 if is_whole(rows[0][0]) else 3]
    table = _Table(lines, rows, _places(likely), len(likely))
    _refuse_misfits(path, table)
    raise FileFormatError(path, "not a pair list: its columns fit no known layout.", PAIR_LISTS)


def _cut(text: Sequence[tuple[int, str]], separator: str | None) -> tuple[list[int], list[list[str]]]:
    content = [(number, line) for number, line in text if not line.startswith("#")]
    return [number for number, _ in content], [split_cells(line, separator) for _, line in content]


def _roles(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Which columns the names in a first line tell."""
    columns: dict[str, int] = {}
    for index, cell in enumerate(header):
        word = re.sub(r"[\W_]", "", cell.lower())
        role = _ROLES.get(word) or _side(word)
        if role is not None and columns.setdefault(role, index) != index:
            raise FileFormatError(
                path, f"the header's {header[columns[role]]!r} and {cell!r} could both be the {role}.",
                "Keep one of them.",
            )  # fmt: skip
    return columns


def _side(word: str) -> str | None:
    """Left or right, of names such as ``left``, ``img1`` and ``path_b``; a number alone is none."""
    rest = _IMAGE_WORDS.sub("", word)
    return _SIDES.get(rest) if rest != word or rest in ("left", "right") else None


def _headed(path: Path, lines: list[int], rows: list[list[str]]) -> _Table | None:
    """By the names in the first line, if they tell left, right and label."""
    columns = _roles(path, rows[0])
    if not {"left", "right", "label"} <= columns.keys():
        return None
    title = rows[0][columns["label"]]
    if any(title in row[columns["label"] :][:1] for row in rows[1:]):  # `img1 img2 same` may be a pair
        return None
    if len(rows) == 1:
        raise FileFormatError(path, "no pair follows the header.")
    table = _Table(lines[1:], rows[1:], columns, len(rows[0]))
    _refuse_misfits(path, table)
    return table


def _headless(path: Path, lines: list[int], rows: list[list[str]]) -> _Table | None:
    """By the content: the one layout that fits all rows, with names or with numbers on both sides."""
    fitting = []
    for layout in _LAYOUTS:
        columns, width = _places(layout), len(layout)
        if len(rows[0]) != width or any(_misfit(row, columns, width) for row in rows):
            continue
        numbers = [all(is_number(row[columns[side]]) for row in rows) for side in ("left", "right")]
        if numbers[0] == numbers[1]:
            fitting.append(layout)
    if len(fitting) > 1:
        readings = " or ".join(f"`{' '.join(layout)}`" for layout in fitting)
        raise FileFormatError(
            path, f"its columns could be {readings}.", "Name them in a first line, say `left right label`."
        )
    return _Table(lines, rows, _places(fitting[0]), len(fitting[0])) if fitting else None


def _places(layout: Sequence[str]) -> dict[str, int]:
    return {role: place for place, role in enumerate(layout)}


def _misfit(row: Sequence[str], columns: Mapping[str, int], width: int) -> str:
    """Why the cells are no pair, empty if they are one."""
    if len(row) != width:
        return f"{len(row)} cells instead of {width}" if row else "quotes that do not close"
    if _flag(row[columns["label"]]) is None:
        return f"{row[columns['label']][:40]!r} is not 0 or 1"
    if "fold" in columns and not re.fullmatch(r"-?\d+", row[columns["fold"]]):
        return f"fold {row[columns['fold']][:40]!r} is not a whole number"
    return ""


def _refuse_misfits(path: Path, table: _Table) -> None:
    for number, row in zip(table.lines, table.rows):
        if reason := _misfit(row, table.columns, table.width):
            form = " ".join(sorted(table.columns, key=table.columns.__getitem__))
            raise FileFormatError(
                path, f"line {number}: expected `{form}`, got {' '.join(row)[:80]!r}: {reason}.", PAIR_LISTS
            )


def _flag(cell: str) -> bool | None:
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
            path, f"line {lines[0]}: label -1, and 0 on line {lines[1]}; one of them must mean that nothing "
            "is known.", "Remove those lines.",
        )  # fmt: skip
    return sides[0], sides[1], np.array([_flag(label) for label in labels], bool)


def _given_folds(path: Path, table: _Table) -> Int64[np.ndarray, " n"]:
    cells = [row[table.columns["fold"]] for row in table.rows]
    count = len(set(cells))
    for number, cell in zip(table.lines, cells):
        if not is_whole(cell) or not 1 <= int(cell) <= count:
            raise FileFormatError(
                path, f"line {number}: fold {cell[:40]}; there are {count} different folds, expected 1 to "
                f"{count}."
            )  # fmt: skip
    return np.array([int(cell) - 1 for cell in cells], np.int64)


def _made_folds(mated: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Ten in order if each then has both kinds of pairs; else each kind is cut by itself, in order."""
    folds = fold_numbers(len(mated))
    kinds = [np.flatnonzero(mated == kind) for kind in (True, False)]
    rarer = min(map(len, kinds))
    if rarer and any(len(np.unique(folds[rows])) < folds.max() + 1 for rows in kinds):
        for rows in kinds:
            folds[rows] = np.arange(len(rows)) * min(rarer, 10) // len(rows)
    return folds


def _people(
    left: Sequence[str], right: Sequence[str], mated: Bool[np.ndarray, " n"]
) -> tuple[list[str], list[str]] | None:
    """The first folder that differs, if mated pairs have the same on both sides and other pairs have not."""
    parts = [composed(name).split("/") for name in (*left, *right)]
    depth = 0
    while min(map(len, parts)) > depth + 1 and len({names[depth] for names in parts}) == 1:
        depth += 1
    if min(map(len, parts)) < depth + 2 or mated.all() or not mated.any():
        return None
    people = [names[depth] for names in parts]
    one, other = people[: len(left)], people[len(left) :]
    same = np.array([a == b for a, b in zip(one, other)])
    return (one, other) if np.array_equal(same, mated) else None
