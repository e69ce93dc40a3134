"""Write ranked faces: CSV, score lines, lists of names, copies of photos, and a contact sheet."""

import csv
import filecmp
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import write_atomically
from spherecf.data import encode_image
from spherecf.errors import InputError, StorageError
from spherecf.faces import PhotoError, align, read_photo
from spherecf.photos.files import PhotoFile

Record = dict[str, Any]
ScoreOf = Literal["kappa", "percentile", "quality"]

_FACT_COLUMNS = (
    "eye_distance_px", "yaw_degrees", "pitch_degrees", "roll_degrees", "sharpness", "brightness", "contrast",
    "inside",
)  # fmt: skip
_COLUMNS = ("rank", "photo", "face", "quality", "percentile", "kappa", "expected_cosine", "detector_score")


def write_csv(path: str | Path, rows: Iterable[Record]) -> Path:
    """Write a CSV file: a header, one line per face, and one line per photo without a face.

    Reasons are joined by "; ". A file name that a spreadsheet would interpret as a formula gets the prefix
    "./", which names the same file.

    Args:
        path: file to write, atomically.
        rows: rows from `spherecf.photos.rank_photos`.

    Raises:
        StorageError: the file cannot be written; an existing file is unchanged.

    Example:
        >>> import tempfile
        >>> row = {"rank": 1, "photo": "a.jpg", "face": 0, "quality": 70, "failure": None, "reason": ""}
        >>> write_csv(Path(tempfile.mkdtemp()) / "faces.csv", [row]).read_text().splitlines()[1][:14]
        '1,a.jpg,0,70,,'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *_FACT_COLUMNS, "reasons", "failure", "reason"])
    for row in rows:
        facts = row.get("facts", {})
        safe_row = {**row, "photo": _escape_formula(row["photo"])}
        values = [*(safe_row.get(name) for name in _COLUMNS), *(facts.get(name) for name in _FACT_COLUMNS)]
        writer.writerow([*values, "; ".join(row.get("reasons", ())), row["failure"], row["reason"]])
    return _write_text(path, text.getvalue())


def write_scores(path: str | Path, rows: Iterable[Record], of: ScoreOf = "kappa") -> Path:
    """Write one line ``image_path score`` per photo: the score of its main face, or -1 for a failure.

    Args:
        path: file to write, atomically.
        rows: rows from `spherecf.photos.rank_photos`; the lines are sorted by the name of the photo.
        of: score to write: "kappa", "percentile" or "quality" (the ISO integer).

    Raises:
        InputError: ``of`` is not one of these, or is not available because the model is not calibrated.
        StorageError: the file cannot be written; an existing file is unchanged.

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
        raise InputError(f"the model is not calibrated, so {of} is not available; use kappa")
    scores = [-1 if row["kappa"] is None else row[of] for row in mains]
    return _write_text(path, "".join(f"{row['photo']} {score}\n" for row, score in zip(mains, scores)))


def write_list(path: str | Path, names: Iterable[str]) -> Path:
    r"""Write one name per line.

    Raises:
        StorageError: the file cannot be written; an existing file is unchanged.

    Example:
        >>> import tempfile
        >>> write_list(Path(tempfile.mkdtemp()) / "names.txt", ["a.jpg"]).read_text()
        'a.jpg\n'
    """
    return _write_text(path, "".join(f"{name}\n" for name in names))


def main_faces(rows: Iterable[Record]) -> list[Record]:
    """Rows of the main faces, and of the photos without a face."""
    return [row for row in rows if not row["face"]]


def split_by_quality(rows: Iterable[Record], min_quality: int) -> tuple[list[str], list[str]]:
    """Split photos into (kept, rejected) by the ISO quality of the main face. Failures are in neither list.

    Example:
        >>> rows = [{"photo": name, "face": 0, "quality": q} for name, q in (("a", 70), ("b", 20), ("c", -1))]
        >>> split_by_quality(rows, 50)
        (['a'], ['b'])
    """
    mains = [row for row in main_faces(rows) if row["quality"] >= 0]
    kept = [row["photo"] for row in mains if row["quality"] >= min_quality]
    return kept, [row["photo"] for row in mains if row["quality"] < min_quality]


def copy_photos(photos: Sequence[PhotoFile], folder: str | Path) -> int:
    """Copy photos to ``folder``, keeping their relative paths, and return the number of copied photos.

    Existing copies with the same content are skipped, so an interrupted call can be repeated.

    Raises:
        InputError: two photos would be copied to the same path, a photo is already in ``folder``, or a
            different file exists at the target path.
        StorageError: a photo cannot be read, or the disk is full; finished copies are complete.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import find_photos
        >>> photos = find_photos([orl_faces().root / "s1"]).photos
        >>> folder = tempfile.mkdtemp()
        >>> copy_photos(photos, folder), copy_photos(photos, folder)
        (10, 0)
    """
    check_outside(photos, folder)
    targets: dict[Path, PhotoFile] = {}
    for photo in photos:
        other = targets.setdefault(Path(folder) / photo.below, photo)
        if other is not photo:
            raise InputError(f"{other.name} and {photo.name} would both be copied to {folder}/{photo.below}")
    n_copied = 0
    for target, photo in targets.items():
        try:
            n_copied += _copy(photo.path, target)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{photo.name}: could not be copied ({error.strerror or error})") from error
    return n_copied


def check_outside(photos: Iterable[PhotoFile], folder: str | Path) -> None:
    """Refuse a folder to copy to that contains some of the photos.

    Raises:
        InputError: it does; the message names the first photo.
    """
    resolved_folder = Path(folder).resolve()
    for photo in photos:
        if resolved_folder in photo.path.resolve().parents:
            raise InputError(f"{photo.name} is already in {folder}; copy to another folder")


def _escape_formula(name: str) -> str:
    return f"./{name}" if name.startswith(("=", "+", "-", "@")) else name


def _copy(source: Path, target: Path) -> bool:
    facts = source.stat()
    if os.path.lexists(target):  # also true for a broken link
        if target.is_file() and filecmp.cmp(source, target):
            return False
        raise InputError(f"{target} already exists with different content; it is not overwritten")
    with source.open("rb") as stream:
        write_atomically(target, lambda out: shutil.copyfileobj(stream, out))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return True


def _write_text(path: str | Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode()))


MAX_FACES = 1000
"""Maximum number of faces on a contact sheet. If there are more, the first and the last half are shown."""

_CROP_SIZE = 112
_SHEET = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Faces by confidence</title><style>
body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}
ol{list-style:none;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1rem}
li figure{margin:0} img{width:100%;height:auto;max-width:9rem;border-radius:4px;display:block}
figcaption{font-size:.85rem;overflow-wrap:anywhere} b{font-size:1rem} .dim{color:#666}
@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}.dim{color:#999}}
</style></head>
<body><h1>Faces by confidence</h1>
<p class="dim">{{ counts }}. The percentage is the share of reference faces with a lower confidence.</p>
<ol>
{% for row, confidence, reasons, image in faces %}
<li><figure>
<img src="{{ image | data_uri }}" alt="Face in {{ row.photo }}" width="112" height="112" loading="lazy">
<figcaption><b>{{ row.rank or "" }} · {{ confidence }}</b><br>{% if reasons %}{{ reasons }}<br>{% endif %}
<span class="dim">{{ row.photo }}</span></figcaption></figure></li>
{% endfor %}
</ol>
{% if failures %}
<h2>No face</h2>
<ul>{% for row in failures %}<li>{{ row.photo }}: {{ row.reason }}</li>{% endfor %}</ul>
{% endif %}
</body></html>
"""


def write_sheet(path: str | Path, rows: Sequence[Record], files: Mapping[str, Path]) -> Path:
    """Write a contact sheet: a self-contained HTML page, or an image (PNG or JPEG).

    The faces are cropped from the photos again, by their landmarks.

    Args:
        path: file to write, ending in ``.html``, ``.png`` or ``.jpg``.
        rows: rows from `spherecf.photos.rank_photos`, in the order to show.
        files: file of each photo, by its name.

    Raises:
        InputError: the path has another extension.
        StorageError: the file cannot be written; an existing file is unchanged.

    Example:
        >>> import tempfile
        >>> rows = [{"photo": "wall.jpg", "face": None, "reason": "no face found in 90x60 px."}]
        >>> "wall.jpg: no face found" in write_sheet(
        ...     Path(tempfile.mkdtemp()) / "s.html", rows, {}
        ... ).read_text()
        True
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".html", ".png", ".jpg"):
        raise InputError(f"{path}: expected a contact sheet with the extension .html, .png or .jpg")
    face_rows = [row for row in rows if row["face"] is not None]
    shown_rows = face_rows
    if len(face_rows) > MAX_FACES:
        shown_rows = face_rows[: MAX_FACES // 2] + face_rows[-(MAX_FACES // 2) :]
    crops = [_crop(row, files) for row in shown_rows]
    failures = [row for row in rows if row["face"] is None]
    counts = f"{len(face_rows)} faces, {len(failures)} photos without a face"
    if len(shown_rows) < len(face_rows):
        counts += f"; the first and the last {len(shown_rows) // 2} faces are shown"
    if suffix == ".html":
        from spherecf.report import render_html  # imports the evaluation, which is not needed otherwise

        images = [encode_image(crop, ".jpg", 88) for crop in crops]
        faces = [(row, *caption(row), image) for row, image in zip(shown_rows, images)]
        content = render_html(_SHEET, faces=faces, failures=failures, counts=counts).encode()
    else:
        content = encode_image(_draw_sheet(shown_rows, crops, failures), suffix)
    return write_atomically(path, lambda stream: stream.write(content))


def caption(row: Record) -> tuple[str, str]:
    """Caption of a face: its confidence, and its capture problems.

    Example:
        >>> caption({"quality": 12, "kappa": 80.0, "reasons": ["blurred", "dark"]})
        ('12 %', 'blurred, dark')
    """
    confidence = f"{row['quality']} %" if row["quality"] >= 0 else f"kappa {row['kappa'] or 0:.0f}"
    return confidence, ", ".join(row["reasons"])


def _crop(row: Record, files: Mapping[str, Path]) -> NDArray[np.uint8]:
    """Crop the face from its photo; a grey square if the photo cannot be read any more."""
    try:
        photo = read_photo(files[row["photo"]], max_pixels=2**30)
        landmarks = (np.array(row["landmarks"]) + 0.5) * photo.scale - 0.5
        return align(photo.pixels, landmarks, _CROP_SIZE)
    except (PhotoError, KeyError, InputError):
        return np.full((_CROP_SIZE, _CROP_SIZE, 3), 128, np.uint8)


def _draw_sheet(
    rows: Sequence[Record], crops: Sequence[NDArray[np.uint8]], failures: Sequence[Record]
) -> NDArray[np.uint8]:
    """Draw the contact sheet as an image (height, width, 3): a grid of faces, then the failures."""
    n_columns, cell_width, cell_height = 8, _CROP_SIZE + 40, _CROP_SIZE + 66
    lines = [f"{row['photo']}: {row['reason']}" for row in failures[:50]]
    n_rows = -(-len(rows) // n_columns)
    height = max(n_rows * cell_height + 18 * len(lines) + 20, 40)
    sheet = np.full((height, n_columns * cell_width, 3), 255, np.uint8)
    for cell, (row, crop) in enumerate(zip(rows, crops)):
        x, y = cell % n_columns * cell_width + 8, cell // n_columns * cell_height + 8
        sheet[y : y + _CROP_SIZE, x : x + _CROP_SIZE] = crop
        confidence, reasons = caption(row)
        name = Path(row["photo"]).name
        caption_lines = (f"{row['rank'] or ''}  {confidence}", *_wrap(reasons, 24, 2), name[-24:])
        for line, text in enumerate(caption_lines):
            _draw_text(sheet, text, (x, y + _CROP_SIZE + 13 + 13 * line))
    for line, text in enumerate(lines):
        _draw_text(sheet, text, (8, n_rows * cell_height + 18 * (line + 1)))
    return sheet


def _wrap(text: str, width: int, max_lines: int) -> Iterator[str]:
    words, line = text.split(), ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            yield line
            max_lines, line = max_lines - 1, ""
            if not max_lines:
                return
        line = f"{line} {word}".strip()
    if line:
        yield line


def _draw_text(sheet: NDArray[np.uint8], text: str, position: tuple[int, int]) -> None:
    ascii_text = text.encode("ascii", "replace").decode()  # OpenCV's font has only ASCII letters
    cv2.putText(sheet, ascii_text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
