"""The files of IJB-B and IJB-C, read and written."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import write_atomically
from spherecf.data._ijb import GALLERIES, Contradiction, Enrolled, IjbMeta, TemplatePairs
from spherecf.data._table import line_number, read_table
from spherecf.errors import FileFormatError, InputError

_POINTS = {f"{axis}{place}": "f4" for place in range(1, 6) for axis in "xy"}
_ENTRIES, _PAIRS, _SCORES = "face_tid_mid.txt", "template_pair_label.txt", "name_5pts_score.txt"


def read_ijb(folder: str | Path, set: str = "ijbc") -> IjbMeta:
    """Read the meta files of IJB-B or IJB-C from ``folder`` or ``folder/meta``.

    | file (IJB-C; IJB-B has ``ijbb_``, S1 and S2) | lines |
    |---|---|
    | ``ijbc_face_tid_mid.txt`` | ``file template medium``; the only one that must be there |
    | ``ijbc_template_pair_label.txt`` | ``template template label`` |
    | ``ijbc_name_5pts_score.txt`` | ``file``, ten coordinates, ``score`` |
    | ``ijbc_1N_gallery_G1.csv``, ``_G2.csv``, ``ijbc_1N_probe_mixed.csv`` | header; ``template,subject`` |

    What is not there is listed in ``absent`` with the reason, and the protocols that need it say so.

    Args:
        folder: where the files are.
        set: "ijbb" or "ijbc": how the files' names start.

    Raises:
        FileFormatError: no list of entries, or a file that is malformed or contradicts another: file and line
            are named.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "ijbc_face_tid_mid.txt").write_text("1.jpg 1 1\\n2.jpg 2 2\\n3.jpg 3 3\\n")
        >>> _ = (folder / "ijbc_template_pair_label.txt").write_text("1 2 1\\n1 3 0\\n")
        >>> meta = read_ijb(folder)
        >>> meta.pairs.mated.tolist(), meta.absent["ijbc_1N_gallery_G1.csv"]
        ([True, False], 'no such file')
    """
    _check_set(set)
    return _Reader(Path(folder), set).read()


class _Reader:
    """Remembers which table came from which file, so that every problem has a line number."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.paths: dict[str, Path] = {}
        self.absent: dict[str, str] = {}
        self._rows: dict[str, NDArray[np.intp]] = {}  # of tables that were sorted: where each row was first

    def read(self) -> IjbMeta:
        entries = self._table("entries", _ENTRIES, {"file": "O", "template": "i4", "medium": "i4"})
        if entries is None:
            raise FileFormatError(
                self.folder / f"{self.name}_{_ENTRIES}",
                "no such file, nor in the folder meta below; it says which image belongs to which template.",
                "Give the folder of the meta files, and the right --set.",
            )
        pairs = self._pairs()
        scores = self._scores(entries["file"])
        galleries = {g: self._enrolled(f"gallery {g}", f"1N_gallery_{g}.csv") for g in GALLERIES[self.name]}
        probes = self._enrolled("probes", "1N_probe_mixed.csv")
        try:
            return IjbMeta(
                self.name,
                entries["file"].tolist(),
                entries["template"].astype(np.int64),
                entries["medium"].astype(np.int64),
                pairs,
                None if scores is None else np.ascontiguousarray(scores[:, 10]),
                None if scores is None else np.ascontiguousarray(scores[:, :10]).reshape(-1, 5, 2),
                {g: enrolled for g, enrolled in galleries.items() if enrolled is not None},
                probes,
                self.absent,
            )
        except Contradiction as error:
            table, row, text = error.problem
            raise self._at(table, self._rows.get(table, np.arange(row + 1))[row], text) from error

    def _find(self, table: str, suffix: str) -> Path | None:
        name = f"{self.name}_{suffix}"
        for path in (self.folder / name, self.folder / "meta" / name):
            if path.is_file():
                self.paths[table] = path
                return path
        self.absent[name] = "no such file"
        return None

    def _table(self, table: str, suffix: str, columns: dict[str, str]) -> NDArray[Any] | None:
        path = self._find(table, suffix)
        return None if path is None else read_table(path, columns)

    def _pairs(self) -> TemplatePairs | None:
        rows = self._table("pairs", _PAIRS, {"template": "i4", "other": "i4", "label": "i4"})
        if rows is None:
            return None
        wrong = np.flatnonzero((rows["label"] != 0) & (rows["label"] != 1))
        if wrong.size:
            raise self._at("pairs", int(wrong[0]), f"expected label 0 or 1, got {rows['label'][wrong[0]]}")
        left, right = rows["template"].astype(np.int64), rows["other"].astype(np.int64)
        return TemplatePairs(left, right, rows["label"] == 1)

    def _scores(self, files: NDArray[Any]) -> NDArray[np.float32] | None:
        """(m, 11) of the entries' images: ten coordinates and the detector's score."""
        rows = self._table("scores", _SCORES, {"file": "O", **_POINTS, "score": "f4"})
        if rows is None:
            return None
        index: dict[str, int] = {}
        for row, name in enumerate(rows["file"].tolist()):
            if index.setdefault(name, row) != row:
                raise self._at("scores", row, f"{name!r} stands twice")
        places = np.array([index.get(name, -1) for name in files.tolist()], np.int64)
        missing = np.flatnonzero(places < 0)
        if missing.size:
            raise FileFormatError(
                self.paths["scores"],
                f"{missing.size} of {len(files)} images of {self.paths['entries'].name} are not listed, "
                f"first {files[missing[0]]!r}.",
            )
        values = np.stack([rows[name] for name in (*_POINTS, "score")], axis=1)
        return np.asarray(values[places], np.float32)

    def _enrolled(self, table: str, suffix: str) -> Enrolled | None:
        path = self._find(table, suffix)
        if path is None:
            return None
        rows = read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
        _, first = np.unique(rows, return_index=True)  # one line per image: each template comes many times
        self._rows[table], rows = first, rows[first]
        return Enrolled(rows["template"].astype(np.int64), rows["subject"].astype(np.int64))

    def _at(self, table: str, row: int | np.intp, text: str) -> FileFormatError:
        path = self.paths[table]
        number = line_number(path, int(row), header=path.suffix == ".csv")
        return FileFormatError(path, f"line {number}: {text}.")


def write_ijb(folder: str | Path, meta: IjbMeta, set: str = "ijbc") -> Path:
    """Write the meta files of a template set, in the formats that `read_ijb` reads; returns the folder.

    For template experiments on other images (LFW, CFP): tools made for IJB then work on them.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        meta: the set; galleries must be those of ``set`` (S1 and S2, or G1 and G2).
        set: how the files' names start.

    Raises:
        InputError: a gallery of another name, or a file name with blanks.
        StorageError: the disk is full or not writable.

    Example:
        >>> import tempfile
        >>> meta = IjbMeta("ijbc", ["a.jpg", "b.jpg"], np.array([1, 2]), np.array([1, 2]))
        >>> read_ijb(write_ijb(tempfile.mkdtemp(), meta)).fingerprint() == meta.fingerprint()
        True
    """
    _check_set(set)
    folder = Path(folder)
    if strange := [name for name in meta.galleries if name not in GALLERIES[set]]:
        raise InputError(f"galleries: {set} has {GALLERIES[set]}, got {strange}")
    if spaced := [name for name in meta.files if len(name.split()) != 1]:
        raise InputError(f"files: {len(spaced)} names hold blanks or are empty, first {spaced[0]!r}")
    tables: dict[str, Iterator[str]] = {
        _ENTRIES: (f"{f} {t} {m}" for f, t, m in zip(meta.files, meta.templates, meta.media))
    }
    if meta.pairs is not None:
        tables[_PAIRS] = (f"{a} {b} {int(mated)}" for a, b, mated in zip(*meta.pairs))
    if meta.detector_score is not None and meta.points is not None:
        tables[_SCORES] = _score_lines(meta, meta.points, meta.detector_score)
    elif meta.detector_score is not None or meta.points is not None:
        raise InputError(f"{meta.name}: {_SCORES} holds landmarks and detector scores, only one is known")
    for name, enrolled in meta.galleries.items():
        tables[f"1N_gallery_{name}.csv"] = _enrolled_lines(enrolled)
    if meta.probes is not None:
        tables["1N_probe_mixed.csv"] = _enrolled_lines(meta.probes)
    for name, lines in tables.items():
        encoded = (f"{line}\n".encode() for line in lines)
        write_atomically(folder / f"{set}_{name}", partial(_write_lines, encoded))
    return folder


def _check_set(name: str) -> None:
    if name not in GALLERIES:
        raise InputError(f"set: expected one of {', '.join(GALLERIES)}, got {name!r}")


def _write_lines(lines: Iterator[bytes], stream: IO[bytes]) -> None:
    stream.writelines(lines)


def _score_lines(meta: IjbMeta, points: NDArray[Any], scores: NDArray[Any]) -> Iterator[str]:
    """One line per image, though an image may stand in several entries."""
    first = {name: row for row, name in reversed(list(enumerate(meta.files)))}
    for name in dict.fromkeys(meta.files):
        row = first[name]
        numbers = [*points[row].reshape(-1).tolist(), float(scores[row])]
        yield " ".join([name, *(f"{number:.9g}" for number in numbers)])


def _enrolled_lines(enrolled: Enrolled) -> Iterator[str]:
    yield "TEMPLATE_ID,SUBJECT_ID"
    for template, subject in zip(*enrolled):
        yield f"{template},{subject}"
