"""CSV, score and list files, and copies of photos."""

import csv
import os
from pathlib import Path

import pytest

from spherecf.common import files as files_module
from spherecf.errors import InputError, StorageError
from spherecf.photos import copy_photos, split_by_quality, write_csv, write_list, write_scores
from spherecf.photos.files import PhotoFile


def row(photo: str, face: int | None, quality: int, **fields: object) -> dict:
    common = {"rank": 1, "photo": photo, "face": face, "quality": quality, "failure": None, "reason": ""}
    kappa = None if face is None else quality * 10.0
    return {**common, "kappa": kappa, "percentile": None if face is None else quality + 0.4, **fields}


ROWS = [
    row("b c.jpg", 0, 80, reasons=["blurred", "dark"], facts={"eye_distance_px": 14.0}),
    row("a.jpg", 0, 20),
    row("a.jpg", 1, 90),
    row("wall, north.jpg", None, -1, failure="no_face", reason='no "face" found'),
]


def test_csv_has_a_row_for_every_face_and_failure(tmp_path: Path) -> None:
    with write_csv(tmp_path / "new" / "t.csv", ROWS).open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["photo"] for line in lines] == [row["photo"] for row in ROWS]
    assert (lines[0]["reasons"], lines[0]["eye_distance_px"], lines[0]["kappa"]) == (
        "blurred; dark",
        "14.0",
        "800.0",
    )
    assert (lines[3]["kappa"], lines[3]["quality"], lines[3]["reason"]) == ("", "-1", 'no "face" found')


@pytest.mark.parametrize(
    ("measure", "values"), [("kappa", "200.0 800.0"), ("percentile", "20.4 80.4"), ("quality", "20 80")]
)
def test_scores_have_a_line_for_every_photo(tmp_path: Path, measure: str, values: str) -> None:
    first, second = values.split()
    text = write_scores(tmp_path / "s.txt", ROWS, measure).read_text()  # type: ignore[arg-type]
    assert text == f"a.jpg {first}\nb c.jpg {second}\nwall, north.jpg -1\n"


def test_percentiles_need_a_calibration(tmp_path: Path) -> None:
    rows = [row("a.jpg", 0, -1, percentile=None)]
    assert write_scores(tmp_path / "s.txt", rows).read_text() == "a.jpg -10.0\n"
    with pytest.raises(InputError, match="not calibrated"):
        write_scores(tmp_path / "s.txt", rows, "percentile")
    with pytest.raises(InputError, match="expected kappa, percentile or quality, got 'beauty'"):
        write_scores(tmp_path / "s.txt", rows, "beauty")  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "t.csv", ROWS)
    before = (tmp_path / "t.csv").read_text()

    def raise_no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", raise_no_space)
    for write in (write_csv, write_scores):
        with pytest.raises(StorageError, match="No space left"):
            write(tmp_path / "t.csv", [])
    assert (tmp_path / "t.csv").read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_failed_photos_are_neither_kept_nor_rejected(tmp_path: Path) -> None:
    assert split_by_quality(ROWS, 50) == (["b c.jpg"], ["a.jpg"])
    assert split_by_quality(ROWS, 0) == (["b c.jpg", "a.jpg"], [])
    assert write_list(tmp_path / "l.txt", ["a", "b"]).read_text() == "a\nb\n"


def photo(root: Path, below: str, content: str) -> PhotoFile:
    path = root / below
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return PhotoFile(str(path), path, Path("in") / below)


def test_copies_are_complete_and_not_repeated(tmp_path: Path) -> None:
    photos = [photo(tmp_path / "in", name, name) for name in ("a.jpg", "deep/b.jpg")]
    out = tmp_path / "out"
    assert (
        copy_photos(photos[:1], out) == 1 and copy_photos(photos, out) == 1 and copy_photos(photos, out) == 0
    )
    assert (out / "in/deep/b.jpg").read_text() == "deep/b.jpg"
    assert (out / "in/a.jpg").stat().st_mtime_ns == photos[0].path.stat().st_mtime_ns
    (out / "in/a.jpg").write_text("another")
    with pytest.raises(InputError, match="already exists with different content"):
        copy_photos(photos, out)
    assert (out / "in/a.jpg").read_text() == "another"


def test_colliding_copies_are_refused_before_the_first_copy(tmp_path: Path) -> None:
    first, second = (photo(tmp_path / name, "a.jpg", name) for name in ("x", "y"))
    with pytest.raises(InputError, match="would both be copied"):
        copy_photos([first, second], tmp_path / "out")
    with pytest.raises(InputError, match="is already in"):
        copy_photos([first], tmp_path / "x")
    assert not (tmp_path / "out").exists()


def test_a_missing_photo_is_reported(tmp_path: Path) -> None:
    missing = photo(tmp_path / "in", "a.jpg", "a")
    missing.path.unlink()
    with pytest.raises(StorageError, match="could not be copied"):
        copy_photos([missing], tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file.*(Not a directory|is a file)"):
        copy_photos([photo(tmp_path / "in", "a.jpg", "a")], tmp_path / "file" / "out")


def test_names_in_csv_are_not_formulas(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).jpg", "@a.jpg", "-b.jpg", "+c.jpg", "d=.jpg"]
    text = write_csv(tmp_path / "t.csv", [row(name, 0, 5) for name in names]).read_text()
    photos = [line["photo"] for line in csv.DictReader(text.splitlines())]
    assert photos == [f"./{name}" for name in names[:4]] + names[4:]


def test_an_interrupted_copy_is_recognised_and_links_are_not_replaced(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"picture")
    photos = [PhotoFile("a.jpg", photo, Path("a.jpg"))]
    assert copy_photos(photos, tmp_path / "out") == 1
    os.utime(tmp_path / "out" / "a.jpg", (1, 1))  # as if killed before the modification time was set
    assert copy_photos(photos, tmp_path / "out") == 0
    (tmp_path / "out" / "a.jpg").unlink()
    (tmp_path / "out" / "a.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="already exists with different content"):
        copy_photos(photos, tmp_path / "out")
    assert (tmp_path / "out" / "a.jpg").is_symlink()
