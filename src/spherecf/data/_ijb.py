"""IJB-B and IJB-C: which image belongs to which template and medium, and who is compared with whom.

The benchmarks: C. Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPR Workshops 2017, and B. Maze
et al., "IARPA Janus Benchmark - C", ICB 2018. The files are the ones that insightface and many papers use.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from spherecf.errors import InputError

GALLERIES: dict[str, tuple[str, str]] = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


class TemplatePairs(NamedTuple):
    """The comparisons of 1:1 verification."""

    left: Int64[np.ndarray, " p"]
    """(p,) template ids."""
    right: Int64[np.ndarray, " p"]
    mated: Bool[np.ndarray, " p"]
    """(p,) true where both templates show one person."""


class Enrolled(NamedTuple):
    """Templates and whom they show: a gallery, or the probes; in any order."""

    templates: Int64[np.ndarray, " k"]
    """(k,) template ids."""
    subjects: Int64[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class IjbMeta:
    """A template benchmark: entries (file, template, medium), and what is known beside them.

    Args:
        name: a short name for reports, e.g. "ijbc".
        files: (m,) image of each entry; an image may belong to several templates.
        templates: (m,) template of each entry.
        media: (m,) medium of each entry (one photo, or one video).
        pairs: what 1:1 verification compares.
        detector_score: (m,) of each entry's image.
        points: (m, 5, 2) landmarks of each entry's image, as (x, y) in pixels.
        galleries: by name, what 1:N searches in.
        probes: what 1:N searches for.
        absent: name of a file that was not there to the reason.

    Raises:
        InputError: columns of different length, an entry that stands twice, pairs or galleries naming
            unknown templates, one kind of pair only, a pair both mated and not, a template of two subjects,
            a subject twice in one gallery.

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
    galleries: Mapping[str, Enrolled] = field(default_factory=dict)
    probes: Enrolled | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise Contradiction(self.name, problem)

    def __len__(self) -> int:
        return len(self.files)

    def template_ids(self) -> Int64[np.ndarray, " t"]:
        """All templates that have entries, ascending."""
        return np.unique(self.templates)

    def subjects(self) -> dict[int, int]:
        """Template to subject, as far as galleries and probes tell."""
        known: dict[int, int] = {}
        for enrolled in (*self.galleries.values(), *filter(None, [self.probes])):
            known.update(zip(enrolled.templates.tolist(), enrolled.subjects.tolist()))
        return known

    def repeated_pairs(self) -> int:
        """Pairs that stand a second time in the list, in either order; they are counted as they stand."""
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
    """What is wrong: in which table ("entries", "pairs", "probes", "gallery G1", ...), which row of it."""

    table: str
    row: int
    text: str


class Contradiction(InputError):
    """Tables that do not go together; a reader turns rows into lines."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{name}: {problem.table}, row {problem.row}: {problem.text}")


def _problems(meta: IjbMeta) -> Iterator[Problem]:
    """All that `IjbMeta` refuses, in the order it is looked for."""
    lengths = {len(meta.files), len(meta.templates), len(meta.media)}
    lengths |= {len(c) for c in (meta.detector_score, meta.points) if c is not None}
    if len(lengths) != 1 or not len(meta.files):
        yield Problem("entries", 0, f"expected columns of one length, at least 1, got {sorted(lengths)}")
        return
    seen: dict[tuple[str, int], int] = {}
    for row, entry in enumerate(zip(meta.files, meta.templates.tolist())):
        if seen.setdefault(entry, row) != row:
            yield Problem("entries", row, f"{entry[0]!r} stands twice in template {entry[1]}")
    known = meta.template_ids()
    if meta.pairs is not None:
        yield from _pair_problems(meta.pairs, known)
    subjects: dict[int, int] = {}
    for name, enrolled in [
        *((f"gallery {g}", e) for g, e in meta.galleries.items()),
        ("probes", meta.probes),
    ]:
        if enrolled is not None:
            yield from _enrolment_problems(name, enrolled, known, subjects)


def _pair_problems(pairs: TemplatePairs, known: Int64[np.ndarray, " t"]) -> Iterator[Problem]:
    if not len(pairs.left) == len(pairs.right) == len(pairs.mated) or not len(pairs.mated):
        sizes = [len(column) for column in pairs]
        yield Problem("pairs", 0, f"expected three columns of one length, at least 1, got {sizes}")
        return
    for side in (pairs.left, pairs.right):
        unknown = np.flatnonzero(~np.isin(side, known))
        if unknown.size:
            text = f"template {side[unknown[0]]} has no image in the list of entries"
            yield Problem("pairs", int(unknown[0]), f"{text} ({unknown.size} pairs name such templates)")
    mated = int(pairs.mated.sum())
    if mated in (0, len(pairs.mated)):
        counts = f"{mated} mated and {len(pairs.mated) - mated} non-mated pairs"
        yield Problem("pairs", 0, f"{counts}; error rates need both kinds")
        return
    codes = pair_codes(pairs)
    same = np.sort(codes[pairs.mated])  # few, so the many are looked up in them
    place = np.minimum(np.searchsorted(same, codes), same.size - 1)
    for row in np.flatnonzero((same[place] == codes) & ~pairs.mated)[:1].tolist():
        a, b = pairs.left[row], pairs.right[row]
        yield Problem("pairs", row, f"templates {a} and {b} are non-mated here and mated on another line")


def _enrolment_problems(
    name: str, enrolled: Enrolled, known: Int64[np.ndarray, " t"], subjects: dict[int, int]
) -> Iterator[Problem]:
    """``subjects`` gathers template to subject over all lists."""
    unknown = np.flatnonzero(~np.isin(enrolled.templates, known))
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
            text = f"subject {subject} has two templates, {enrolments[subject]} and {template}; expected one"
            yield Problem(name, row, text)


def pair_codes(pairs: TemplatePairs) -> Int64[np.ndarray, " p"]:
    """One number per pair, the same for both orders of its templates."""
    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    least = int(low.min(initial=0))
    codes: Int64[np.ndarray, " p"] = (low - least) * (int(high.max(initial=0)) - least + 1) + (high - least)
    return codes
