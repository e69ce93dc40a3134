"""A gallery that follows folders: made-up faces, whose direction is in the file."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo

from spherecf.errors import InputError
from spherecf.gallery import Gallery
from spherecf.photos import FaceAssessor, PhotoEnrolment, enrol_folders, enrol_photos, people_of


class Assessor(FaceAssessor):
    """A file of digits is a face in a direction of their own, any other has none."""

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
    assessor = Assessor()
    put(tmp_path, "Ann/1.jpg", "1")
    put(tmp_path, "Ann/2.jpg", "2")
    put(tmp_path, "Bob/1.jpg", "3")
    with Gallery.open(tmp_path / "gallery", model="m" * 64, dim=DIM, radius=RADIUS) as gallery:

        def follow(how: Any = "follow") -> dict[str, PhotoEnrolment]:
            assessor.seen.clear()
            people = people_of(tmp_path / "people")
            done = list(enrol_folders(gallery, assessor, people, how))
            assert len({one.identity for one in done}) == len(done)
            return {one.identity: one for one in done}

        yield SimpleNamespace(
            gallery=gallery, follow=follow, root=tmp_path / "people", seen=assessor.seen, assessor=assessor
        )


def put(root: Path, name: str, content: str) -> Path:
    path = root / "people" / name if root.name != "people" else root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def statuses(done: dict[str, PhotoEnrolment]) -> dict[str, str]:
    return {name: one.status for name, one in done.items()}


def holds(gallery: Gallery, name: str, *contents: str) -> bool:
    """Whether the template is made of exactly these faces."""
    mu = [np.random.default_rng(int(content)).standard_normal(DIM) for content in contents]
    total = sum(100.0 * one / np.linalg.norm(one) for one in mu)
    (found,) = [one for one in gallery.list() if one.identity == name]
    return found.images == len(contents) and bool(np.isclose(found.kappa, np.linalg.norm(total), rtol=1e-5))


def test_what_did_not_change_is_said_so_and_costs_nothing(world: Any) -> None:
    assert statuses(world.follow()) == {"Ann": "enrolled", "Bob": "enrolled"}
    before = world.gallery.list()
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "unchanged"}
    assert not world.seen and world.gallery.list() == before


def test_new_photos_come_in_and_only_they_are_assessed(world: Any) -> None:
    world.follow()
    put(world.root, "Ann/3.jpg", "4")
    put(world.root, "Eve/1.jpg", "5")
    done = world.follow()
    assert statuses(done) == {"Ann": "added", "Bob": "unchanged", "Eve": "enrolled"}
    assert world.seen == ["3.jpg", "1.jpg"] and [Path(name).name for name in done["Ann"].added] == ["3.jpg"]
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_a_file_with_other_content_renews_the_template(world: Any) -> None:
    world.follow()
    (enrolled,) = [one.enrolled for one in world.gallery.list() if one.identity == "Bob"]
    path = put(world.root, "Bob/1.jpg", "6")
    os.utime(path, (0, 0))  # the content counts, not the time
    done = world.follow()["Bob"]
    assert done.status == "renewed" and (len(done.added), len(done.removed)) == (1, 1)
    assert holds(world.gallery, "Bob", "6")
    assert done.enrolled is not None and done.enrolled.enrolled == enrolled
    assert world.follow()["Bob"].status == "unchanged"


def test_photos_that_are_gone_leave_the_template_and_its_rows(world: Any) -> None:
    put(world.root, "Ann/3.jpg", "4")
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    done = world.follow()["Ann"]
    assert done.status == "renewed" and [Path(name).name for name in done.removed] == ["1.jpg"]
    assert holds(world.gallery, "Ann", "2", "4") and len(world.gallery.sources("Ann")) == 2
    put(world.root, "Ann/5.jpg", "5")
    assert world.follow()["Ann"].status == "added" and holds(world.gallery, "Ann", "2", "4", "5")


def test_with_add_nothing_leaves(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    put(world.root, "Ann/3.jpg", "4")
    done = world.follow("add")
    assert statuses(done) == {"Ann": "added", "Bob": "unchanged"} and not done["Ann"].removed
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_other_names_for_the_same_files_change_nothing(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").rename(world.root / "Ann" / "first.jpg")
    put(world.root, "Ann/copy.jpg", "2")
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "unchanged"}


def test_who_has_no_folder_any_more_stays_and_is_named(world: Any) -> None:
    world.follow()
    (world.root / "Bob").rename(world.root / "Robert")
    done = world.follow()
    assert statuses(done) == {"Ann": "unchanged", "Robert": "enrolled", "Bob": "no folder"}
    assert "Robert" in done["Bob"].reason and "Bob" in world.gallery
    assert world.follow()["Bob"].status == "no folder"


def test_a_template_is_never_left_without_a_photo(world: Any) -> None:
    world.follow()
    (world.root / "Bob" / "1.jpg").unlink()
    assert world.follow()["Bob"].status == "kept" and holds(world.gallery, "Bob", "3")
    put(world.root, "Bob/wall.jpg", "no face")
    done = world.follow()["Bob"]
    assert done.status == "kept" and done.reason and len(done.left_out) == 1
    assert holds(world.gallery, "Bob", "3")
    assert world.follow("replace")["Bob"].status == "kept" and holds(world.gallery, "Bob", "3")


def test_nothing_leaves_while_a_file_cannot_be_read(world: Any) -> None:
    world.follow()
    (world.root / "Ann" / "1.jpg").unlink()
    (world.root / "Ann" / "gone.jpg").symlink_to(world.root / "nowhere")
    put(world.root, "Ann/3.jpg", "4")
    done = world.follow()["Ann"]
    assert done.status == "added" and done.reason and not done.removed
    assert holds(world.gallery, "Ann", "1", "2", "4")


def test_people_enrolled_without_hashes_are_left_alone_until_replaced(world: Any) -> None:
    mu = np.eye(DIM, dtype=np.float32)[:2]
    world.gallery.enrol("Ann", mu, [100.0, 100.0], media=["film", "photo"], sources=["a", "b"])
    done = world.follow()["Ann"]
    assert done.status == "kept" and "hashes" in done.reason and not world.seen.count("2.jpg")
    assert world.follow("replace")["Ann"].status == "renewed" and holds(world.gallery, "Ann", "1", "2")
    assert world.follow()["Ann"].status == "unchanged"


def test_one_name_in_two_spellings_is_one_person(world: Any) -> None:
    for form, content in (("NFC", "7"), ("NFD", "8")):
        put(world.root, f"{unicodedata.normalize(form, 'Zoë')}/{content}.jpg", content)
    assert len(list(world.root.iterdir())) == 4
    assert world.follow()["Zoë"].status == "enrolled" and holds(world.gallery, "Zoë", "7", "8")
    assert world.follow()["Zoë"].status == "unchanged"


def test_a_folder_that_nobody_can_be_called_after_stops_nobody_else(world: Any) -> None:
    put(world.root, "A\nnn/1.jpg", "7")
    put(world.root, os.fsdecode(b"caf\xe9") + "/1.jpg", "8")
    (world.root / "Nil").mkdir()
    done = world.follow()
    assert statuses(done) == {
        "A\\nnn": "bad name", "Ann": "enrolled", "Bob": "enrolled", "Nil": "no face", "caf\\xe9": "bad name",
    }  # fmt: skip
    assert done["A\\nnn"].to_dict()["reason"]


def test_an_interrupted_run_goes_on(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    people = people_of(world.root)
    steps = enrol_folders(world.gallery, world.assessor, people)
    assert next(steps).identity == "Ann"
    steps.close()  # type: ignore[attr-defined]
    assert statuses(world.follow()) == {"Ann": "unchanged", "Bob": "enrolled"}


def test_photos_of_one_person(world: Any) -> None:
    first = put(world.root, "Ann/1.jpg", "1")
    done = enrol_photos(world.gallery, world.assessor, "Ann", [first])
    assert done.status == "enrolled" and done.enrolled is not None
    medium = hashlib.sha256(first.read_bytes()).hexdigest()[:16]
    assert world.gallery.sources("Ann") == {medium: str(first)} and world.gallery.sources("Bob") == {}
    with pytest.raises(InputError, match="already enrolled"):
        enrol_photos(world.gallery, world.assessor, "Ann", [first])
    second = world.root / "Ann" / "2.jpg"
    assert enrol_photos(world.gallery, world.assessor, "Ann", [first, second], "add").added == (str(second),)
    assert enrol_photos(world.gallery, world.assessor, "Ann", [second], "replace").status == "renewed"
    assert holds(world.gallery, "Ann", "2")


def test_no_folders(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError):
            people_of(path)
