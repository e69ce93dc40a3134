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

_FACTS = (
    "eye_distance_px", "yaw_degrees", "pitch_degrees", "roll_degrees", "sharpness", "brightness", "contrast",
    "inside",
)  # fmt: skip
_COLUMNS = ("rank", "photo", "face", "quality", "percentile", "kappa", "expected_cosine", "detector_score")


def write_csv(path: str | Path, rows: Iterable[Record]) -> Path:
    """Write a header, one line per face and one per photo without a face; reasons are joined by "; ".

    A name that a spreadsheet would read as a formula gets the prefix "./", which names the same file.

    Args:
        path: the file; written completely or not at all.
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
    """Write lines ``image_path score``, one per photo: the score of its main face, -1 for a failure.

    Args:
        path: the file; written completely or not at all.
        rows: from `spherecf.photos.rank_photos`; photos are written by name.
        of: "kappa", "percentile" or "quality" (the ISO integer).

    Raises:
        InputError: ``of`` is none of these, or is not available because the model is not calibrated.
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
        raise InputError(f"the model is not calibrated, so it gives no {of}; use kappa")
    scores = [-1 if row["kappa"] is None else row[of] for row in mains]
    return _write(path, "".join(f"{row['photo']} {score}\n" for row, score in zip(mains, scores)))


def write_list(path: str | Path, names: Iterable[str]) -> Path:
    r"""Write one name per line.

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


def split_by_quality(rows: Iterable[Record], min_quality: int) -> tuple[list[str], list[str]]:
    """(kept, rejected) photos by the ISO quality of the main face; failures are in neither list.

    Example:
        >>> rows = [{"photo": name, "face": 0, "quality": q} for name, q in (("a", 70), ("b", 20), ("c", -1))]
        >>> split_by_quality(rows, 50)
        (['a'], ['b'])
    """
    mains = [row for row in main_faces(rows) if row["quality"] >= 0]
    kept = [row["photo"] for row in mains if row["quality"] >= min_quality]
    return kept, [row["photo"] for row in mains if row["quality"] < min_quality]


def copy_photos(photos: Sequence[PhotoFile], folder: str | Path) -> int:
    """Copy photos into ``folder``, keeping their relative paths; return how many were copied.

    A copy that has the content of its original is left unchanged, so an interrupted call can be repeated.

    Raises:
        InputError: two photos would get the same path, or a photo is already in ``folder``.
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
    targets: dict[Path, PhotoFile] = {}
    inside = Path(folder).resolve()
    for photo in photos:
        other = targets.setdefault(Path(folder) / photo.below, photo)
        if other is not photo:
            raise InputError(f"{other.name} and {photo.name} would both be copied to {folder}/{photo.below}")
        if inside in photo.path.resolve().parents:
            raise InputError(f"{photo.name} is already in {folder}; copy to another folder")
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
    if os.path.lexists(target):  # true for a broken link, too
        if target.is_file() and filecmp.cmp(source, target):
            return False
        raise InputError(f"{target} already exists with other content; it is not overwritten")
    with source.open("rb") as stream:
        write_atomically(target, lambda out: shutil.copyfileobj(stream, out))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return True


def _write(path: str | Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode()))


MOST_FACES = 1000
"""A sheet shows at most so many: of more, the best half and the worst half."""

_SIDE = 112
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
<p class="dim">{{ counts }}. Percent: share of the reference faces that are less sure.</p>
<ol>
{% for row, sure, why, picture in faces %}
<li><figure>
<img src="{{ picture | data_uri }}" alt="Face in {{ row.photo }}" width="112" height="112" loading="lazy">
<figcaption><b>{{ row.rank or "" }} · {{ sure }}</b><br>{% if why %}{{ why }}<br>{% endif %}
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
    """Write the contact sheet: ``.html``, one page with everything in it, or a picture, ``.png`` or ``.jpg``.

    The faces are cut out of the photos again, by their landmarks.

    Args:
        path: its ending says what to write.
        rows: from `spherecf.photos.rank_photos`, in the order to show.
        files: the file of each photo's name.

    Raises:
        InputError: another ending.
        StorageError: not writable; an older file is intact.

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
        raise InputError(f"{path}: expected a contact sheet .html, .png or .jpg")
    found = [row for row in rows if row["face"] is not None]
    shown = found
    if len(found) > MOST_FACES:
        shown = found[: MOST_FACES // 2] + found[-(MOST_FACES // 2) :]
    crops = [_crop(row, files) for row in shown]
    failures = [row for row in rows if row["face"] is None]
    counts = f"{len(found)} faces, {len(failures)} photos without one"
    if len(shown) < len(found):
        counts += f"; the first and the last {len(shown) // 2} are shown"
    if suffix == ".html":
        from spherecf.report import render_html  # brings the evaluation along, which nothing else here needs

        pictures = [encode_image(crop, ".jpg", 88) for crop in crops]
        faces = [(row, *caption(row), picture) for row, picture in zip(shown, pictures)]
        content = render_html(_SHEET, faces=faces, failures=failures, counts=counts).encode()
    else:
        content = encode_image(_picture(shown, crops, failures), suffix)
    return write_atomically(path, lambda stream: stream.write(content))


def caption(row: Record) -> tuple[str, str]:
    """Of one face: how sure, and why in a few words.

    Example:
        >>> caption({"quality": 12, "kappa": 80.0, "reasons": ["blurred", "dark"]})
        ('12 %', 'blurred, dark')
    """
    sure = f"{row['quality']} %" if row["quality"] >= 0 else f"kappa {row['kappa'] or 0:.0f}"
    return sure, ", ".join(row["reasons"])


def _crop(row: Record, files: Mapping[str, Path]) -> NDArray[np.uint8]:
    """The face again; grey where the photo has gone since."""
    try:
        photo = read_photo(files[row["photo"]], max_pixels=2**30)
        landmarks = (np.array(row["landmarks"]) + 0.5) * photo.scale - 0.5
        return align(photo.pixels, landmarks, _SIDE)
    except (PhotoError, KeyError, InputError):
        return np.full((_SIDE, _SIDE, 3), 128, np.uint8)


def _picture(
    shown: Sequence[Record], crops: Sequence[NDArray[np.uint8]], failures: Sequence[Record]
) -> NDArray[np.uint8]:
    across, cell, high = 8, _SIDE + 40, _SIDE + 66
    lines = [f"{row['photo']}: {row['reason']}" for row in failures[:50]]
    down = -(-len(shown) // across)
    sheet = np.full((max(down * high + 18 * len(lines) + 20, 40), across * cell, 3), 255, np.uint8)
    for place, (row, crop) in enumerate(zip(shown, crops)):
        x, y = place % across * cell + 8, place // across * high + 8
        sheet[y : y + _SIDE, x : x + _SIDE] = crop
        sure, why = caption(row)
        name = Path(row["photo"]).name
        for line, text in enumerate((f"{row['rank'] or ''}  {sure}", *_wrapped(why, 24, 2), name[-24:])):
            _write_text(sheet, text, (x, y + _SIDE + 13 + 13 * line))
    for line, text in enumerate(lines):
        _write_text(sheet, text, (8, down * high + 18 * (line + 1)))
    return sheet


def _wrapped(text: str, width: int, most: int) -> Iterator[str]:
    words, line = text.split(), ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            yield line
            most, line = most - 1, ""
            if not most:
                return
        line = f"{line} {word}".strip()
    if line:
        yield line


def _write_text(sheet: NDArray[np.uint8], text: str, where: tuple[int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    cv2.putText(sheet, plain, where, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
