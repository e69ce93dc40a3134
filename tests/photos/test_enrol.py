"""Galleries that follow folders; each photo is a text file with the seed of its face direction."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo

from spherecf.errors import InputError, ModelError
from spherecf.gallery import Gallery
from spherecf.photos import FaceAssessor, PhotoEnrolment, enrol_folders, enrol_photos, people_of


class SeededAssessor(FaceAssessor):
    """A file of digits is a face whose direction has this seed; any other file has no face."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stream(self, photos: Any, **_: Any) -> Any:
        for name, path in photos:
            self.seen.append(Path(name).name)
            text = path.read_text()
            mu = np.random.default_rng(int(text)).standard_normal(DIM) if text.isdigit() else None
            yield photo(name) if mu is None else photo(name, face(mu, 100.0))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Any]:
    """A gallery, an assessor, and ``people/`` with Ann (1, 2) and Bob (3)."""
    assessor = SeededAssessor()
    put(tmp_path, "Ann/1.jpg", "1")
    put(tmp_path, "Ann/2.jpg", "2")
    put(tmp_path, "Bob/1.jpg", "3")
    with Gallery.open(tmp_path / "gallery", model="m" * 64, dim=DIM, radius=RADIUS) as gallery:

        def follow(mode: Any = "follow") -> dict[str, PhotoEnrolment]:
            assessor.seen.clear()
            people = people_of(tmp_path / "people")
            results = list(enrol_folders(gallery, assessor, people, mode))
            assert len({result.identity for result in results}) == len(results)
            return {result.identity: result for result in results}

        yield SimpleNamespace(
            gallery=gallery, follow=follow, root=tmp_path / "people", seen=assessor.seen, assessor=assessor
        )


def test_photos_of_another_model_are_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(photos: Any, **_: Any) -> Any:
        return (replace(photo(name, face(np.eye(DIM)[0], 100.0)), model="f" * 64) for name, _ in photos)

    monkeypatch.setattr(world.assessor, "stream", stream)
    with pytest.raises(ModelError, match="the current model is ffff"):
        enrol_photos(world.gallery, world.assessor, "Ann", [world.root / "Ann"])
    assert len(world.gallery) == 0


def put(root: Path, name: str, content: str) -> Path:
    path = root / "people" / name if root.name != "people" else root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def statuses(results: dict[str, PhotoEnrolment]) -> dict[str, str]:
    return {name: result.status for name, result in results.items()}


def holds(gallery: Gallery, name: str, *contents: str) -> bool:
    """True if the template consists of exactly these faces."""
    mu = [np.random.default_rng(int(content)).standard_normal(DIM) for content in contents]
    total = sum(100.0 * direction / np.linalg.norm(direction) for direction in mu)
    (person,) = [entry for entry in gallery.list() if entry.identity == name]
    return person.images == len(contents) and bool(np.isclose(person.kappa, np.linalg.norm(total), rtol=1e-5))


def test_unchanged_folders_are_reported_and_not_assessed(world: Any) -> None:
    assert statuses(world.follow()) == {"Ann": "enrolled", "Bob": "enrolled"}
    before = world.gallery.list()
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "unchanged"}
    assert not world.seen and world.gallery.list() == before


def test_only_new_photos_are_assessed(world: Any) -> None:
    world.follow()
    put(world.root, "Ann/3.jpg", "4")
    put(world.root, "Eve/1.jpg", "5")
    results = world.follow()
    assert statuses(results) == {"Ann": "added", "Bob": "unchanged", "Eve": "enrolled"}
    assert world.seen == ["3.jpg", "1.jpg"]
    assert [Path(name).name for name in results["Ann"].added] == ["3.jpg"]
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_a_file_with_new_content_renews_the_template(world: Any) -> None:
    world.follow()
    (enrolled,) = [entry.enrolled for entry in world.gallery.list() if entry.identity == "Bob"]
    path = put(world.root, "Bob/1.jpg", "6")
    os.utime(path, (0, 0))  # the content decides, not the modification time
    result = world.follow()["Bob"]
    assert result.status == "renewed" and (len(result.added), len(result.removed)) == (1, 1)
    assert holds(world.gallery, "Bob", "6")
    assert result.enrolled is not None and result.enrolled.enrolled == enrolled
    assert world.follow()["Bob"].status == "unchanged"


def test_deleted_photos_leave_the_template_and_its_rows(world: Any) -> None:
    put(world.root, "Ann/3.jpg", "4")
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    result = world.follow()["Ann"]
    assert result.status == "renewed" and [Path(name).name for name in result.removed] == ["1.jpg"]
    assert holds(world.gallery, "Ann", "2", "4") and len(world.gallery.sources("Ann")) == 2
    put(world.root, "Ann/5.jpg", "5")
    assert world.follow()["Ann"].status == "added" and holds(world.gallery, "Ann", "2", "4", "5")


def test_with_add_deleted_photos_stay_in_the_template(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    put(world.root, "Ann/3.jpg", "4")
    results = world.follow("add")
    assert statuses(results) == {"Ann": "added", "Bob": "unchanged"} and not results["Ann"].removed
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_renamed_and_copied_files_change_nothing(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").rename(world.root / "Ann" / "first.jpg")
    put(world.root, "Ann/copy.jpg", "2")
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "unchanged"}


def test_people_without_a_folder_stay_and_are_reported(world: Any) -> None:
    world.follow()
    (world.root / "Bob").rename(world.root / "Robert")
    results = world.follow()
    assert statuses(results) == {"Ann": "unchanged", "Robert": "enrolled", "Bob": "no folder"}
    assert "Robert" in results["Bob"].reason and "Bob" in world.gallery
    assert world.follow()["Bob"].status == "no folder"


def test_a_template_is_never_left_without_a_photo(world: Any) -> None:
    world.follow()
    (world.root / "Bob" / "1.jpg").unlink()
    assert world.follow()["Bob"].status == "kept" and holds(world.gallery, "Bob", "3")
    put(world.root, "Bob/wall.jpg", "no face")
    result = world.follow()["Bob"]
    assert result.status == "kept" and result.reason and len(result.left_out) == 1
    assert holds(world.gallery, "Bob", "3")
    assert world.follow("replace")["Bob"].status == "kept" and holds(world.gallery, "Bob", "3")


def test_no_photo_is_removed_while_a_file_cannot_be_read(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    (world.root / "Ann" / "gone.jpg").symlink_to(world.root / "nowhere")
    put(world.root, "Ann/3.jpg", "4")
    result = world.follow()["Ann"]
    assert result.status == "added" and result.reason and not result.removed
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_people_enrolled_without_hashes_are_unchanged_until_replaced(world: Any) -> None:
    mu = np.eye(DIM, dtype=np.float32)[:2]
    world.gallery.enrol("Ann", mu, [100.0, 100.0], media=["film", "photo"], sources=["a", "b"])
    result = world.follow()["Ann"]
    assert result.status == "kept" and "hashes" in result.reason and not world.seen.count("2.jpg")
    assert world.follow("replace")["Ann"].status == "renewed" and holds(world.gallery, "Ann", "1", "2")
    assert world.follow()["Ann"].status == "unchanged"


def test_one_name_in_two_spellings_is_one_person(world: Any) -> None:
    for form, content in (("NFC", "7"), ("NFD", "8")):
        put(world.root, f"{unicodedata.normalize(form, 'Zoë')}/{content}.jpg", content)
    assert len(list(world.root.iterdir())) == 4
    assert world.follow()["Zoë"].status == "enrolled" and holds(world.gallery, "Zoë", "7", "8")
    assert world.follow()["Zoë"].status == "unchanged"


def test_a_folder_with_an_invalid_name_does_not_stop_others(world: Any) -> None:
    put(world.root, "A\nnn/1.jpg", "7")
    put(world.root, os.fsdecode(b"caf\xe9") + "/1.jpg", "8")
    (world.root / "Nil").mkdir()
    results = world.follow()
    assert statuses(results) == {
        "A\\nnn": "bad name", "Ann": "enrolled", "Bob": "enrolled", "Nil": "no face", "caf\\xe9": "bad name",
    }  # fmt: skip
    assert results["A\\nnn"].to_dict()["reason"]


def test_an_interrupted_run_continues(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    people = people_of(world.root)
    steps = enrol_folders(world.gallery, world.assessor, people)
    assert next(steps).identity == "Ann"
    steps.close()  # type: ignore[attr-defined]
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "enrolled"}


def test_enrol_photos_of_one_person(world: Any) -> None:
    first = put(world.root, "Ann/1.jpg", "1")
    result = enrol_photos(world.gallery, world.assessor, "Ann", [first])
    assert result.status == "enrolled" and result.enrolled is not None
    medium = hashlib.sha256(first.read_bytes()).hexdigest()[:16]
    assert world.gallery.sources("Ann") == {medium: str(first)} and world.gallery.sources("Bob") == {}
    with pytest.raises(InputError, match="already enrolled"):
        enrol_photos(world.gallery, world.assessor, "Ann", [first])
    second = world.root / "Ann" / "2.jpg"
    assert enrol_photos(world.gallery, world.assessor, "Ann", [first, second], "add").added == (str(second),)
    assert enrol_photos(world.gallery, world.assessor, "Ann", [second], "replace").status == "renewed"
    assert holds(world.gallery, "Ann", "2")


def test_a_root_without_folders_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError):
            people_of(path)
