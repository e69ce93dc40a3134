"""IJB-B and IJB-C meta files: the template and medium of each image, and the templates to compare.

The benchmarks: C. Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPR Workshops 2017, and B. Maze
et al., "IARPA Janus Benchmark - C", ICB 2018. The files are those used by insightface and many papers.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from spherecf.common.files import write_atomically
from spherecf.data.text import line_number, read_table
from spherecf.errors import FileFormatError, InputError

GALLERIES: dict[str, tuple[str, str]] = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


class TemplatePairs(NamedTuple):
    """The template pairs compared in 1:1 verification."""

    left: Int64[np.ndarray, " p"]
    """(p,) template ids."""
    right: Int64[np.ndarray, " p"]
    mated: Bool[np.ndarray, " p"]
    """(p,) True if both templates are of the same subject."""


class TemplateList(NamedTuple):
    """Templates and their subjects, in any order: a gallery or the probes."""

    templates: Int64[np.ndarray, " k"]
    """(k,) template ids."""
    subjects: Int64[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class IjbMeta:
    """A template benchmark: entries (file, template, medium), and optionally pairs, galleries and probes.

    Args:
        name: a short name for reports, e.g. "ijbc".
        files: (m,) image of each entry; an image may belong to several templates.
        templates: (m,) template of each entry.
        media: (m,) medium of each entry (one photo, or one video).
        pairs: the pairs of 1:1 verification.
        detector_score: (m,) detector score of each entry's image.
        points: (m, 5, 2) landmarks of each entry's image, as (x, y) in pixels.
        galleries: the galleries of 1:N identification, by name.
        probes: the probes of 1:N identification.
        absent: reason for each file that was not read, by file name.

    Raises:
        InputError: columns of different length, an entry listed twice, pairs or galleries with unknown
            templates, only mated or only non-mated pairs, a pair listed as both, a template of two subjects,
            or a subject with two templates in one gallery.

    Example:
        >>> meta = IjbMeta("toy", ["a.jpg", "b.jpg", "c.jpg"], np.array([1, 1, 2]), np.array([7, 8, 9]))
        >>> len(meta), meta.template_ids().tolist(), meta.subjects()
        (3, [1, 2], {})
    """

    name: str
    files: Sequence[str]
    templates: Int64[np.ndarray, " m"]
    media: Int64[np.ndarray, " m"]
    pairs: TemplatePairs | None = None
    detector_score: Float32[np.ndarray, " m"] | None = None
    points: Float32[np.ndarray, "m 5 2"] | None = None
    galleries: Mapping[str, TemplateList] = field(default_factory=dict)
    probes: TemplateList | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in _find_problems(self):
            raise Contradiction(self.name, problem)

    def __len__(self) -> int:
        return len(self.files)

    def template_ids(self) -> Int64[np.ndarray, " t"]:
        """All templates that have entries, in ascending order."""
        return np.unique(self.templates)

    def subjects(self) -> dict[int, int]:
        """Subject by template, for the templates in the galleries and probes."""
        subjects: dict[int, int] = {}
        for enrolled in (*self.galleries.values(), *filter(None, [self.probes])):
            subjects.update(zip(enrolled.templates.tolist(), enrolled.subjects.tolist()))
        return subjects

    def repeated_pairs(self) -> int:
        """Number of pairs listed again, in either order; evaluation counts each as often as it is listed."""
        if self.pairs is None:
            return 0
        codes = np.sort(pair_codes(self.pairs))
        return int((codes[1:] == codes[:-1]).sum())

    def fingerprint(self) -> str:
        """Hex SHA-256 over entries, pairs, detector scores, galleries and probes."""
        digest = hashlib.sha256(b"spherecf.ijb/1\0" + "\0".join(self.files).encode())
        columns: list[NDArray[Any]] = [self.templates, self.media]
        if self.pairs is not None:
            columns += [self.pairs.left, self.pairs.right, self.pairs.mated]
        if self.detector_score is not None:
            columns.append(self.detector_score)
        for name in sorted(self.galleries):
            columns += [np.frombuffer(name.encode(), np.uint8), *self.galleries[name]]
        if self.probes is not None:
            columns += [*self.probes]
        for column in columns:
            digest.update(f"{column.dtype.str}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Problem(NamedTuple):
    """A contradiction, with its table ("entries", "pairs", "probes", "gallery G1", ...) and row."""

    table: str
    row: int
    text: str


class Contradiction(InputError):
    """The tables contradict each other; `read_ijb` turns the row into a line number."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{name}: {problem.table}, row {problem.row}: {problem.text}")


def _find_problems(meta: IjbMeta) -> Iterator[Problem]:
    """Yield what `IjbMeta` rejects, in the order of the checks; valid up to the first problem."""
    lengths = {len(meta.files), len(meta.templates), len(meta.media)}
    lengths |= {len(c) for c in (meta.detector_score, meta.points) if c is not None}
    if len(lengths) != 1 or not len(meta.files):
        yield Problem("entries", 0, f"expected columns of equal length, at least 1, got {sorted(lengths)}")
    seen: dict[tuple[str, int], int] = {}
    for row, entry in enumerate(zip(meta.files, meta.templates.tolist())):
        if seen.setdefault(entry, row) != row:
            yield Problem("entries", row, f"{entry[0]!r} is listed twice in template {entry[1]}")
    template_ids = meta.template_ids()
    if meta.pairs is not None:
        yield from _pair_problems(meta.pairs, template_ids)
    subjects: dict[int, int] = {}
    for name, enrolled in [
        *((f"gallery {g}", e) for g, e in meta.galleries.items()),
        ("probes", meta.probes),
    ]:
        if enrolled is not None:
            yield from _enrolment_problems(name, enrolled, template_ids, subjects)


def _pair_problems(pairs: TemplatePairs, template_ids: Int64[np.ndarray, " t"]) -> Iterator[Problem]:
    if not len(pairs.left) == len(pairs.right) == len(pairs.mated) or not len(pairs.mated):
        sizes = [len(column) for column in pairs]
        yield Problem("pairs", 0, f"expected three columns of equal length, at least 1, got {sizes}")
    for side in (pairs.left, pairs.right):
        unknown = np.flatnonzero(~np.isin(side, template_ids))
        if unknown.size:
            text = f"template {side[unknown[0]]} has no image in the list of entries"
            yield Problem("pairs", int(unknown[0]), f"{text} ({unknown.size} pairs have such templates)")
    mated = int(pairs.mated.sum())
    if mated in (0, len(pairs.mated)):
        counts = f"{mated} mated and {len(pairs.mated) - mated} non-mated pairs"
        yield Problem("pairs", 0, f"{counts}; error rates need both kinds")
    codes = pair_codes(pairs)
    same = np.sort(codes[pairs.mated])  # the mated pairs are few, so search for all pairs among them
    nearest = np.minimum(np.searchsorted(same, codes), same.size - 1)
    for row in np.flatnonzero((same[nearest] == codes) & ~pairs.mated)[:1].tolist():
        a, b = pairs.left[row], pairs.right[row]
        yield Problem("pairs", row, f"templates {a} and {b} are non-mated here and mated on another line")


def _enrolment_problems(
    name: str, enrolled: TemplateList, template_ids: Int64[np.ndarray, " t"], subjects: dict[int, int]
) -> Iterator[Problem]:
    """Yield problems of one list; ``subjects`` collects the subject of each template over all lists."""
    unknown = np.flatnonzero(~np.isin(enrolled.templates, template_ids))
    if unknown.size:
        template = enrolled.templates[unknown[0]]
        text = f"template {template} has no image in the list of entries ({unknown.size} such templates)"
        yield Problem(name, int(unknown[0]), text)
    enrolments: dict[int, int] = {}
    for row, (template, subject) in enumerate(zip(*(column.tolist() for column in enrolled))):
        if subjects.setdefault(template, subject) != subject:
            text = f"template {template} is of subject {subject} here and of {subjects[template]} elsewhere"
            yield Problem(name, row, text)
        if name != "probes" and enrolments.setdefault(subject, template) != template:
            text = (
                f"expected one template per subject, but subject {subject} has two, {enrolments[subject]} "
                f"and {template}"
            )
            yield Problem(name, row, text)


def pair_codes(pairs: TemplatePairs) -> Int64[np.ndarray, " p"]:
    """One number per pair, the same in either order of its templates."""
    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    lowest = int(low.min(initial=0))
    span = int(high.max(initial=0)) - lowest + 1
    codes: Int64[np.ndarray, " p"] = (low - lowest) * span + (high - lowest)
    return codes


_LANDMARK_COLUMNS = {f"{axis}{point}": "f4" for point in range(1, 6) for axis in "xy"}
_ENTRIES, _PAIRS, _SCORES = "face_tid_mid.txt", "template_pair_label.txt", "name_5pts_score.txt"


def read_ijb(folder: str | Path, set: str = "ijbc") -> IjbMeta:
    """Read the meta files of IJB-B or IJB-C from ``folder`` or ``folder/meta``.

    | file (IJB-C; IJB-B has ``ijbb_``, S1 and S2) | lines |
    |---|---|
    | ``ijbc_face_tid_mid.txt`` | ``file template medium``; the only required file |
    | ``ijbc_template_pair_label.txt`` | ``template template label`` |
    | ``ijbc_name_5pts_score.txt`` | ``file``, ten coordinates, ``score`` |
    | ``ijbc_1N_gallery_G1.csv``, ``_G2.csv``, ``ijbc_1N_probe_mixed.csv`` | header; ``template,subject`` |

    Missing files are listed in ``absent`` with the reason; a protocol that needs one reports it.

    Args:
        folder: folder of the files.
        set: "ijbb" or "ijbc", with which the file names begin.

    Raises:
        FileFormatError: the list of entries is missing, or a file is malformed or contradicts another (with
            file and line number).

    Example:
        >>> from pathlib import Path
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
    """Reads the files and records the path of each table, so that every problem has a line number."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.paths: dict[str, Path] = {}
        self.absent: dict[str, str] = {}
        self._rows: dict[str, NDArray[np.intp]] = {}  # of deduplicated tables: first row in the file of each

    def read(self) -> IjbMeta:
        entries = self._table("entries", _ENTRIES, {"file": "O", "template": "i4", "medium": "i4"})
        if entries is None:
            raise FileFormatError(
                self.folder / f"{self.name}_{_ENTRIES}",
                "no such file, neither here nor in the sub-folder meta; this file lists the template of each "
                "image.",
                "Pass the folder of the meta files, and the right --set.",
            )
        pairs = self._pairs()
        scores = self._scores(entries["file"])
        galleries = {
            g: self._template_list(f"gallery {g}", f"1N_gallery_{g}.csv") for g in GALLERIES[self.name]
        }
        probes = self._template_list("probes", "1N_probe_mixed.csv")
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
            raise self._error_at(table, self._rows.get(table, np.arange(row + 1))[row], text) from error

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
        invalid = np.flatnonzero((rows["label"] != 0) & (rows["label"] != 1))
        if invalid.size:
            raise self._error_at(
                "pairs", int(invalid[0]), f"expected label 0 or 1, got {rows['label'][invalid[0]]}"
            )
        left, right = rows["template"].astype(np.int64), rows["other"].astype(np.int64)
        return TemplatePairs(left, right, rows["label"] == 1)

    def _scores(self, files: NDArray[Any]) -> NDArray[np.float32] | None:
        """(m, 11) for the image of each entry: ten coordinates and the detector score."""
        rows = self._table("scores", _SCORES, {"file": "O", **_LANDMARK_COLUMNS, "score": "f4"})
        if rows is None:
            return None
        index: dict[str, int] = {}
        for row, name in enumerate(rows["file"].tolist()):
            if index.setdefault(name, row) != row:
                raise self._error_at("scores", row, f"{name!r} is listed twice")
        entry_rows = np.array([index.get(name, -1) for name in files.tolist()], np.int64)
        missing = np.flatnonzero(entry_rows < 0)
        if missing.size:
            raise FileFormatError(
                self.paths["scores"],
                f"expected every image of {self.paths['entries'].name}, but {missing.size} of {len(files)} "
                f"are not listed, first {files[missing[0]]!r}.",
            )
        values = np.stack([rows[name] for name in (*_LANDMARK_COLUMNS, "score")], axis=1)
        return np.asarray(values[entry_rows], np.float32)

    def _template_list(self, table: str, suffix: str) -> TemplateList | None:
        path = self._find(table, suffix)
        if path is None:
            return None
        rows = read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
        _, first = np.unique(rows, return_index=True)  # one line per image, so templates repeat
        self._rows[table], rows = first, rows[first]
        return TemplateList(rows["template"].astype(np.int64), rows["subject"].astype(np.int64))

    def _error_at(self, table: str, row: int | np.intp, text: str) -> FileFormatError:
        path = self.paths[table]
        number = line_number(path, int(row), header=path.suffix == ".csv")
        return FileFormatError(path, f"line {number}: {text}.")


def write_ijb(folder: str | Path, meta: IjbMeta, set: str = "ijbc") -> Path:
    """Write the meta files of a template set, in the formats that `read_ijb` reads; returns the folder.

    With these files, tools made for IJB work on template sets of other images (LFW, CFP).

    Args:
        folder: created if it does not exist; existing files of these names are replaced.
        meta: the set; its galleries must have the names that ``set`` has (S1 and S2, or G1 and G2).
        set: "ijbb" or "ijbc", with which the file names begin.

    Raises:
        InputError: a gallery has another name, a file name contains spaces, or only one of landmarks and
            detector scores is known.
        StorageError: the disk is full or not writable.

    Example:
        >>> import tempfile
        >>> meta = IjbMeta("ijbc", ["a.jpg", "b.jpg"], np.array([1, 2]), np.array([1, 2]))
        >>> read_ijb(write_ijb(tempfile.mkdtemp(), meta)).fingerprint() == meta.fingerprint()
        True
    """
    _check_set(set)
    folder = Path(folder)
    if unknown := [name for name in meta.galleries if name not in GALLERIES[set]]:
        raise InputError(f"galleries: {set} has the galleries {', '.join(GALLERIES[set])}, got {unknown}")
    if spaced := [name for name in meta.files if len(name.split()) != 1]:
        raise InputError(f"files: {len(spaced)} names contain spaces or are empty, first {spaced[0]!r}")
    tables: dict[str, Iterator[str]] = {
        _ENTRIES: (f"{f} {t} {m}" for f, t, m in zip(meta.files, meta.templates, meta.media))
    }
    if meta.pairs is not None:
        tables[_PAIRS] = (f"{a} {b} {int(mated)}" for a, b, mated in zip(*meta.pairs))
    if meta.detector_score is not None and meta.points is not None:
        tables[_SCORES] = _score_lines(meta, meta.points, meta.detector_score)
    elif meta.detector_score is not None or meta.points is not None:
        raise InputError(
            f"{meta.name}: {_SCORES} needs both landmarks and detector scores, but the set has only one of "
            "them"
        )
    for name, enrolled in meta.galleries.items():
        tables[f"1N_gallery_{name}.csv"] = _list_lines(enrolled)
    if meta.probes is not None:
        tables["1N_probe_mixed.csv"] = _list_lines(meta.probes)
    for name, lines in tables.items():
        encoded = (f"{line}\n".encode() for line in lines)
        write_atomically(folder / f"{set}_{name}", methodcaller("writelines", encoded))
    return folder


def _check_set(name: str) -> None:
    if name not in GALLERIES:
        raise InputError(f"set: expected one of {', '.join(GALLERIES)}, got {name!r}")


def _score_lines(meta: IjbMeta, points: NDArray[Any], scores: NDArray[Any]) -> Iterator[str]:
    """One line per image, even if it has several entries."""
    first = {name: row for row, name in reversed(list(enumerate(meta.files)))}
    for name in dict.fromkeys(meta.files):
        row = first[name]
        numbers = [*points[row].reshape(-1).tolist(), float(scores[row])]
        yield " ".join([name, *(f"{number:.9g}" for number in numbers)])


def _list_lines(enrolled: TemplateList) -> Iterator[str]:
    yield "TEMPLATE_ID,SUBJECT_ID"
    for template, subject in zip(*enrolled):
        yield f"{template},{subject}"
