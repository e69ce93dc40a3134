"""Ranking of photos by quality, and resumed assessment."""

import os
from pathlib import Path

import pytest
from tests.faces.pictures import jpeg, portrait

from spherecf.faces import FaceDetector
from spherecf.photos import FaceAssessor, assess_files, find_photos, rank_photos, ranked_faces
from spherecf.photos.files import PhotoFile


@pytest.fixture(scope="module")
def assessor() -> FaceAssessor:
    return FaceAssessor()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        (photos / f"{index}.jpg").write_bytes(jpeg(portrait(index * 11)))
    (photos / "bad.jpg").write_bytes(b"text")
    return photos


def record(name: str, *kappas: float | None) -> dict:
    faces = [{"kappa": kappa, "quality": -1 if kappa is None else 5} for kappa in kappas]
    return {"photo": name, "size_px": None, "notes": [], "failure": None, "reason": "why", "faces": faces}


def test_faces_are_ranked_by_kappa_with_failures_last() -> None:
    rows = ranked_faces([record("b", 5.0, 9.0), record("none"), record("a", 9.0), record("nan", None)])
    assert [(row["photo"], row["face"], row["rank"]) for row in rows] == [
        ("a", 0, 1), ("b", 1, 2), ("b", 0, 3), ("nan", 0, None), ("none", None, None),
    ]  # fmt: skip
    assert rows[-1]["quality"] == -1 and rows[-1]["reason"] == "why" and rows[0]["reason"] == ""


def test_ranking_uses_the_kappas_of_the_assessor(folder: Path, assessor: FaceAssessor) -> None:
    rows = rank_photos([folder], assessor)
    assert len(rows) == 6 and [row["rank"] for row in rows] == [1, 2, 3, 4, 5, None]
    for row in rows[:5]:
        face = assessor(row["photo"]).main
        assert face is not None and row["kappa"] == pytest.approx(face.kappa, rel=1e-3)
    assert rows[5]["failure"] == "not_an_image"


def test_an_interrupted_pass_continues(folder: Path, assessor: FaceAssessor, tmp_path: Path) -> None:
    expected = list(assess_files(find_photos([folder]).photos, assessor))
    calls: list[str] = []

    def counting_detector(pixels: object) -> object:
        calls.append("photo")
        return assessor.detector(pixels)  # type: ignore[arg-type]

    counted = FaceAssessor(assessor.model, counting_detector)  # type: ignore[arg-type]
    journal = tmp_path / "done.jsonl"
    photos = find_photos([folder]).photos
    first = list(assess_files(photos[1:3], counted, resume=journal))
    assert first == expected[1:3] and len(calls) == 2
    assert list(assess_files(photos, counted, resume=journal)) == expected and len(calls) == 5
    assert list(assess_files(photos, counted, resume=journal)) == expected and len(calls) == 5
    assert list(assess_files(photos[::-1], counted, resume=journal)) == expected[::-1] and len(calls) == 5


def test_changed_photos_and_other_detectors_are_assessed_again(
    folder: Path, assessor: FaceAssessor, tmp_path: Path
) -> None:
    journal, photos = tmp_path / "done.jsonl", find_photos([folder]).photos[:2]
    before = list(assess_files(photos, assessor, resume=journal))
    photos[0].path.write_bytes(jpeg(portrait(200)))
    os.utime(photos[0].path, ns=(1, 1))
    after = list(assess_files(photos, assessor, resume=journal))
    assert after[0] != before[0] and after[1] == before[1]
    lines = len(journal.read_text().splitlines())
    strict = FaceAssessor(assessor.model, FaceDetector(min_score=0.99))
    assert all(photo["failure"] == "no_face" for photo in assess_files(photos, strict, resume=journal))
    assert len(journal.read_text().splitlines()) == lines + 2


def test_unreadable_photos_are_tried_again(assessor: FaceAssessor, tmp_path: Path) -> None:
    journal, photos = tmp_path / "done.jsonl", find_photos([tmp_path / "later.jpg"]).photos
    assert next(assess_files(photos, assessor, resume=journal))["failure"] == "unreadable"
    (tmp_path / "later.jpg").write_bytes(jpeg(portrait()))
    assert next(assess_files(photos, assessor, resume=journal))["failure"] is None


def test_photos_with_equal_names_are_not_confused(
    folder: Path, assessor: FaceAssessor, tmp_path: Path
) -> None:
    twins = [PhotoFile("same", folder / f"{index}.jpg", Path("same")) for index in (0, 1)]
    first = list(assess_files(twins, assessor, resume=tmp_path / "done.jsonl"))
    assert first[0]["faces"] != first[1]["faces"]
    assert list(assess_files(twins, assessor, resume=tmp_path / "done.jsonl")) == first
