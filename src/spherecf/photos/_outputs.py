"""Ranked faces as files: CSV, the field's score lines, lists, and copies of the photos to keep."""

import csv
import filecmp
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from spherecf.common.files import write_atomically
from spherecf.errors import InputError, StorageError
from spherecf.photos._files import PhotoFile

Record = dict[str, Any]
ScoreOf = Literal["kappa", "percentile", "quality"]

_FACTS = (
    "eye_distance_px", "yaw_degrees", "pitch_degrees", "roll_degrees", "sharpness", "brightness", "contrast",
    "inside",
)  # fmt: skip
_COLUMNS = ("rank", "photo", "face", "quality", "percentile", "kappa", "expected_cosine", "detector_score")


def write_csv(path: str | Path, rows: Iterable[Record]) -> Path:
    """One line per face, and per photo without one, with a heading; reasons joined by "; ".

    A name that a spreadsheet would take for a formula gets "./" in front, which names the same file.

    Args:
        path: the file, whole or not written.
        rows: from `spherecf.photos.rank_photos`.

    Raises:
        StorageError: not writable; an older file is intact.

    Example:
        >>> import tempfile
        >>> row = {"rank": 1, "photo": "a.jpg", "face": 0, "quality": 70, "failure": None, "reason": ""}
        >>> write_csv(Path(tempfile.mkdtemp()) / "faces.csv", [row]).read_text().splitlines()[1][:14]
        '1,a.jpg,0,70,,'
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*_COLUMNS, *_FACTS, "reasons", "failure", "reason"])
    for row in rows:
        facts = row.get("facts", {})
        shown = {**row, "photo": _no_formula(row["photo"])}
        values = [*(shown.get(name) for name in _COLUMNS), *(facts.get(name) for name in _FACTS)]
        out.writerow([*values, "; ".join(row.get("reasons", ())), row["failure"], row["reason"]])
    return _write(path, text.getvalue())


def write_scores(path: str | Path, rows: Iterable[Record], of: ScoreOf = "kappa") -> Path:
    """The field's lines ``image_path score``, one per photo: its main face's number, -1 for a failure.

    Args:
        path: the file, whole or not written.
        rows: from `spherecf.photos.rank_photos`; photos are written by name.
        of: "kappa", "percentile" or "quality" (the ISO integer).

    Raises:
        InputError: another word, or a percentile that the model, uncalibrated, does not have.
        StorageError: not writable; an older file is intact.

    Example:
        >>> import tempfile
        >>> rows = [
        ...     {"photo": "b.jpg", "face": 0, "kappa": 200.0},
        ...     {"photo": "a.jpg", "face": None, "kappa": None},
        ... ]
        >>> write_scores(Path(tempfile.mkdtemp()) / "scores.txt", rows).read_text().splitlines()
        ['a.jpg -1', 'b.jpg 200.0']
    """
    if of not in ("kappa", "percentile", "quality"):
        raise InputError(f"scores of: expected kappa, percentile or quality, got {of!r}")
    mains = sorted(main_faces(rows), key=lambda row: row["photo"])
    if of != "kappa" and any(row["kappa"] is not None and row.get("percentile") is None for row in mains):
        raise InputError(f"the model is not calibrated: it has no {of}; use kappa")
    scores = [-1 if row["kappa"] is None else row[of] for row in mains]
    return _write(path, "".join(f"{row['photo']} {score}\n" for row, score in zip(mains, scores)))


def write_list(path: str | Path, names: Iterable[str]) -> Path:
    r"""One name per line.

    Raises:
        StorageError: not writable; an older file is intact.

    Example:
        >>> import tempfile
        >>> write_list(Path(tempfile.mkdtemp()) / "names.txt", ["a.jpg"]).read_text()
        'a.jpg\n'
    """
    return _write(path, "".join(f"{name}\n" for name in names))


def main_faces(rows: Iterable[Record]) -> list[Record]:
    """The rows of each photo's main face, or of its failure."""
    return [row for row in rows if not row["face"]]


def split_by_quality(rows: Iterable[Record], least: int) -> tuple[list[str], list[str]]:
    """(kept, rejected) photos by the ISO quality of their main face; failures are in neither.

    Example:
        >>> rows = [{"photo": name, "face": 0, "quality": q} for name, q in (("a", 70), ("b", 20), ("c", -1))]
        >>> split_by_quality(rows, 50)
        (['a'], ['b'])
    """
    mains = [row for row in main_faces(rows) if row["quality"] >= 0]
    kept = [row["photo"] for row in mains if row["quality"] >= least]
    return kept, [row["photo"] for row in mains if row["quality"] < least]


def copy_photos(photos: Sequence[PhotoFile], folder: str | Path) -> int:
    """Copy photos below ``folder``, as they lay below the folders that were named; how many were copied.

    A copy with the size and time of the original, or with its bytes, is left alone, so the same call goes on
    where it stopped.

    Raises:
        InputError: two photos would become the same file, or a photo lies in ``folder`` already.
        StorageError: a photo cannot be read, or the disk is full; the copies made are whole.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import find_photos
        >>> photos = find_photos([orl_faces().root / "s1"]).photos
        >>> folder = tempfile.mkdtemp()
        >>> copy_photos(photos, folder), copy_photos(photos, folder)
        (10, 0)
    """
    targets: dict[Path, PhotoFile] = {}
    inside = Path(folder).resolve()
    for photo in photos:
        other = targets.setdefault(Path(folder) / photo.below, photo)
        if other is not photo:
            raise InputError(f"{other.name} and {photo.name} would both be copied to {folder}/{photo.below}")
        if inside in photo.path.resolve().parents:
            raise InputError(f"{photo.name} lies in {folder} already; copy to another folder")
    copied = 0
    for target, photo in targets.items():
        try:
            copied += _copy(photo.path, target)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{photo.name}: could not be copied ({error.strerror or error})") from error
    return copied


def _no_formula(name: str) -> str:
    return f"./{name}" if name.startswith(("=", "+", "-", "@")) else name


def _copy(source: Path, target: Path) -> bool:
    facts = source.stat()
    if os.path.lexists(target):  # also a link to nowhere
        if target.is_file() and filecmp.cmp(source, target):
            return False
        raise InputError(f"{target} is another file already; it is not replaced")
    with source.open("rb") as stream:
        write_atomically(target, lambda out: shutil.copyfileobj(stream, out))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return True


def _write(path: str | Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode()))
