"""Photos ranked by how sure the recogniser is of them, best first."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from spherecf.faces import Failure
from spherecf.photos.assessment import FaceAssessor
from spherecf.photos.files import Journal, Key, PhotoFile, find_photos

Record = dict[str, Any]

_MAY_PASS = (
    Failure.UNREADABLE,
    Failure.UNSUPPORTED,
)  # another right or another package cures them: ask again


def rank_photos(
    paths: Sequence[str | Path], assessor: FaceAssessor | None = None, *, resume: str | Path | None = None
) -> list[Record]:
    """Assess all photos that paths and folders name; one row per face, the surest first, failures last.

    Args:
        paths: files and folders, folders with all below them.
        assessor: by default `FaceAssessor` as it comes.
        resume: a file that keeps what is assessed, so that an interrupted call goes on where it stopped.

    Returns:
        Rows as `ranked_faces` makes them.

    Raises:
        StorageError: ``resume`` cannot be written; what is in it is kept.

    Example:
        >>> from spherecf.data import orl_faces
        >>> rows = rank_photos([orl_faces().root / "s1"])
        >>> len(rows), rows[0]["rank"], rows[0]["kappa"] >= rows[-1]["kappa"]
        (10, 1, True)
    """
    assessor = assessor or FaceAssessor()
    return ranked_faces(assess_files(find_photos(paths).photos, assessor, resume=resume))


def assess_files(
    photos: Iterable[PhotoFile], assessor: FaceAssessor, *, resume: str | Path | None = None
) -> Iterator[Record]:
    """`AssessedPhoto.to_dict` of every file, in order, those that ``resume`` holds from there.

    Photos that could not be read, or need another package, are not kept there: asked again, they may do.

    Raises:
        FileFormatError: ``resume`` is some other file.
        StorageError: it cannot be written; what is in it is kept.

    Example:
        >>> from spherecf.data import orl_faces
        >>> photos = find_photos([orl_faces().root / "s1" / "1.pgm"]).photos
        >>> [len(photo["faces"]) for photo in assess_files(photos, FaceAssessor())]
        [1]
    """
    with nullcontext() if resume is None else Journal(resume, maker(assessor)) as journal:
        waiting: list[tuple[PhotoFile, Key]] = []  # in order: an answer from the journal waits its turn

        def fresh() -> Iterator[tuple[str, Path]]:
            for photo in photos:
                key = _key(photo.path)
                waiting.append((photo, key))
                if journal is None or journal.find(key) is None:
                    yield photo.name, photo.path

        def known() -> Iterator[Record]:
            while journal is not None and waiting:
                found = journal.find(waiting[0][1])
                if found is None:
                    return
                yield {**found, "photo": waiting.pop(0)[0].name}

        with closing(assessor.stream(fresh())) as stream:
            for assessed in stream:
                yield from known()
                (photo, key), record = waiting.pop(0), assessed.to_dict()
                if journal is not None and assessed.failure not in _MAY_PASS:
                    journal.add(photo, record, key)
                yield record
        yield from known()


def maker(assessor: FaceAssessor) -> str:
    """Names everything an assessment depends on: model, calibration, detector and settings."""
    calibration = assessor.model.calibration
    detector = getattr(assessor.detector, "sha256", repr(assessor.detector))
    facts = [
        assessor.model.fingerprint(),
        assessor.model.backbone.engine,
        None if calibration is None else calibration.to_dict(),
        [detector, getattr(assessor.detector, "min_score", None)],
        [assessor.which, assessor.max_pixels, "spherecf.photos/2"],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def ranked_faces(photos: Iterable[Record]) -> list[Record]:
    """One row per face, by descending kappa, and after them one per photo without a face.

    ``rank`` counts from 1, equal kappas by name; it is None where there is no kappa, and ``quality`` -1.

    Args:
        photos: of `AssessedPhoto.to_dict`.

    Example:
        >>> facts = {"size_px": None, "notes": [], "failure": None, "reason": ""}
        >>> faces = [{"kappa": 90.0, "quality": 10}, {"kappa": 300.0, "quality": 80}]
        >>> rows = ranked_faces([{"photo": "a.jpg", "faces": faces, **facts}])
        >>> [(row["rank"], row["face"], row["kappa"]) for row in rows]
        [(1, 1, 300.0), (2, 0, 90.0)]
    """
    rows = [row for photo in photos for row in _rows(photo)]
    rows.sort(key=lambda row: (row["kappa"] is None, -(row["kappa"] or 0.0), row["photo"], row["face"] or 0))
    for rank, row in enumerate(rows, 1):
        row["rank"] = None if row["kappa"] is None else rank
    return rows


def _rows(photo: Record) -> Iterator[Record]:
    start = {"rank": None, "photo": photo["photo"]}
    end = {"size_px": photo["size_px"], "notes": photo["notes"], "failure": photo["failure"]}
    for place, face in enumerate(photo["faces"]):
        yield {**start, "face": place, **face, **end, "reason": ""}
    if not photo["faces"]:
        yield {**start, "face": None, "quality": -1, "kappa": None, **end, "reason": photo["reason"]}


def _key(path: Path) -> Key:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return os.path.abspath(path), found.st_size, found.st_mtime_ns  # noqa: PTH100
