"""Enrolment, identification, listing and removal in an embedded gallery."""

import math
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gallery.conftest import BACKBONE, DIM, MODEL, RADIUS, calibration, near, unit

from spherecf.calibration import LogisticCalibrator
from spherecf.errors import FileFormatError, InputError, ModelError, StorageError
from spherecf.gallery import Gallery
from spherecf.gallery.rows import Template
from spherecf.gallery.store import Store
from spherecf.scoring import pool_templates

Open = Callable[..., Gallery]


def enrol(gallery: Gallery, name: str, mu: np.ndarray, kappa: float = 400.0, **options: bool) -> object:
    names = [f"{name}-{mu[i, :3]}" for i in range(len(mu))]
    return gallery.enrol(name, mu, np.full(len(mu), kappa), media=names, sources=names, **options)


def stored_bytes(folder: Path) -> bytes:
    """Contents of all files in the folder: the gallery, its log and its search file."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_enrolled_people_are_identified_and_others_are_unknown(opened: Open, people: np.ndarray) -> None:
    gallery = opened(calibration=calibration())
    for name, mu in zip(("Ann", "Bob", "Zoë 山田"), people):
        enrolment = enrol(gallery, name, mu[None])
        assert (enrolment.identity, enrolment.images, enrolment.media, enrolment.kappa) == (name, 1, 1, 400.0)
    result = gallery.identify(near(people[2:3], 1)[0], 300.0, top=2)
    assert (result.answer, result.identity, result.gallery) == ("identified", "Zoë 山田", 3)
    assert result.candidates[0].identity == "Zoë 山田" and len(result.candidates) == 2
    assert result.fmr == pytest.approx(0.01 / 3) and result.fmr_used == 1e-4 and result.min_kappa == 50.0
    unknown = gallery.identify(people[10], 300.0)
    assert (unknown.answer, unknown.identity) == ("unknown", None)
    assert gallery.identify(near(people[2:3], 1)[0], 30.0).answer == "undecided"


def test_a_reopened_gallery_is_unchanged(opened: Open, people: np.ndarray) -> None:
    first = opened(calibration=calibration())
    several = np.concatenate([people[:1], near(people[:1], 1), near(people[:1], 2)])
    enrol(first, "Ann", several)
    enrol(first, "Bob", people[1:2])
    before, facts = first.list(), first.info()
    answer = first.identify(near(people[1:2], 3)[0], 300.0).to_dict()
    first.close()
    second = opened(calibration=calibration(), create=False)
    assert second.list() == before and second.info() == facts and len(second) == 2 and "Ann" in second
    assert second.identify(near(people[1:2], 3)[0], 300.0).to_dict() == answer
    assert facts["model"] == MODEL and facts["identities"] == 2 and facts["images"] == 4


def test_photos_added_later_are_pooled_like_photos_added_at_once(opened: Open, people: np.ndarray) -> None:
    mu = np.concatenate([near(people[:1], seed) for seed in range(5)])
    kappa, media = np.array([100.0, 200, 300, 400, 500]), ["a", "film", "film", "b", "c"]
    gallery = opened()
    gallery.enrol("Ann", mu[:1], kappa[:1], media=media[:1], sources=["1"])
    with pytest.raises(InputError, match="already enrolled"):
        gallery.enrol("Ann", mu[1:2], kappa[1:2], media=["x"], sources=["x"])
    gallery.enrol("Ann", mu[1:3], kappa[1:3], media=media[1:3], sources=["2", "3"], add=True)
    gallery.close()
    reopened = opened()
    enrolment = reopened.enrol("Ann", mu[1:], kappa[1:], media=media[1:], sources=list("2345"), add=True)
    expected = pool_templates(mu, kappa, np.zeros(5, np.int64), [0, 1, 1, 2, 3])
    assert enrolment.kappa == pytest.approx(float(expected.kappa[0]), rel=1e-6)
    assert (enrolment.images, enrolment.media) == (5, 4)
    (candidate,) = reopened.search(expected.mu, [300.0], top=1)[0]
    assert candidate.cosine == pytest.approx(1, abs=1e-6)
    assert reopened.enrol("Ann", mu[:1], kappa[:1], media=["a"], sources=["1"], add=True) == enrolment


def test_replacing_discards_the_old_photos(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    enrol(gallery, "Ann", np.concatenate([people[:1], near(people[:1], 1)]))
    enrolment = enrol(gallery, "Ann", people[1:4], replace=True)
    assert enrolment.images == 3 and len(gallery) == 1
    enrol(gallery, "Ann", people[4:5], add=True)
    gallery.close()
    (person,) = opened().list()
    expected = pool_templates(people[1:5], np.full(4, 400.0), np.zeros(4, np.int64))
    assert person.images == 4 and person.kappa == pytest.approx(float(expected.kappa[0]), rel=1e-6)


def test_images_missing_from_keep_leave_the_template(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    media, kappa = ["a", "b", "c"], np.full(3, 400.0)
    first = gallery.enrol("Ann", people[:3], kappa, media=media, sources=media)
    no_images = np.empty((0, DIM), np.float32)
    unchanged = gallery.enrol("Ann", no_images, [], media=[], sources=[], add=True, keep=media)
    assert unchanged == first and gallery.sources("Ann") == {"a": "a", "b": "b", "c": "c"}
    gallery.enrol("Ann", people[3:4], [400.0], media=["d"], sources=["d"], add=True, keep=["a", "c"])
    assert list(gallery.sources("Ann")) == ["a", "c", "d"]
    with pytest.raises(InputError, match="no image would be left"):
        gallery.enrol("Ann", no_images, [], media=[], sources=[], add=True, keep=["x"])
    enrolment = gallery.enrol("Ann", no_images, [], media=[], sources=[], add=True, keep=["c"])
    assert (enrolment.images, enrolment.kappa, enrolment.enrolled) == (1, 400.0, first.enrolled)
    gallery.enrol("Ann", people[4:5], [400.0], media=["e"], sources=["e"], add=True)
    gallery.close()
    reopened = opened()
    assert list(reopened.sources("Ann")) == ["c", "e"] and reopened.sources("Bob") == {}
    (candidate,) = reopened.search(people[2:3], [300.0], top=1)[0]
    assert candidate.identity == "Ann" and reopened.info()["images"] == 2
    with pytest.raises(InputError):
        reopened.enrol("Bob", no_images, [], media=[], sources=[], add=True)


@pytest.mark.parametrize("log_emptied", [True, False])
def test_removal_leaves_neither_name_nor_direction_in_any_file(
    opened: Open, people: np.ndarray, tmp_path: Path, log_emptied: bool
) -> None:
    gallery = opened()
    enrol(gallery, "Quetzalcoatl", np.concatenate([people[:1], near(people[:1], 1)]))
    enrol(gallery, "Bob", people[1:2])
    stored = gallery._store.find("Quetzalcoatl")
    directions = (stored.mu, *gallery._store.images(stored).mu)
    traces = (b"Quetzalcoatl", stored.id.encode(), *(mu.tobytes() for mu in directions))
    if log_emptied:
        gallery.close()
        gallery = opened()
    assert all(trace in stored_bytes(tmp_path) for trace in traces)
    assert gallery.remove("Nobody") == 0 and gallery.remove("Quetzalcoatl") == 1
    assert len(gallery) == 1 and [person.identity for person in gallery.list()] == ["Bob"]
    assert not any(trace in stored_bytes(tmp_path) for trace in traces)
    gallery.close()
    reopened = opened()
    assert [person.identity for person in reopened.list()] == ["Bob"] and "Quetzalcoatl" not in reopened
    assert not any(trace in stored_bytes(tmp_path) for trace in traces)
    assert b"Bob" in stored_bytes(tmp_path)


def test_compaction_erases_all_removed_people(opened: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gallery, names = opened(), [f"person {i:04d}" for i in range(600)]
    gallery.enrol_many(names, unit(rng, 600), np.full(600, 300.0))
    mu = [entry.mu for page in gallery._store.templates() for entry in page]
    removed = [i for i in range(600) if rng.random() < 0.5]
    for i in removed:
        gallery.remove(names[i], erase=False)
    gallery.compact()
    content = stored_bytes(tmp_path)
    assert not any(names[i].encode() in content or mu[i].tobytes() in content for i in removed)
    remaining = sorted(set(range(600)) - set(removed))
    assert all(mu[i].tobytes() in content for i in remaining)
    assert [entry.identity for entry in gallery.list()] == [names[i] for i in remaining]


def test_removal_without_erasure_is_immediate_and_lasting(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:2])
    enrol(gallery, "Bob", people[2:3])
    gallery.remove("Ann", erase=False)
    gallery.close()
    reopened = opened()
    assert [entry.identity for entry in reopened.list()] == ["Bob"]
    assert [entry.identity for entry in reopened.search(people[:1], [300.0])[0]] == ["Bob"]


def test_enrol_many_skips_enrolled_people(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    names = [f"person {i}" for i in range(40)]
    assert gallery.enrol_many(names[:25], people[:25], np.full(25, 300.0)) == 25
    assert gallery.enrol_many(names, people, np.full(40, 300.0)) == 15
    assert gallery.search(people[30:31], [300.0], top=1)[0][0].identity == "person 30"
    with pytest.raises(InputError, match="twice"):
        gallery.enrol_many(["x", "x"], people[:2], [1.0, 1.0])
    gallery.close()
    assert len(opened()) == 40


@pytest.mark.parametrize(("dim", "radius"), [(-1, 1.0), (1, 1.0), (64, 0.0), (64, math.nan)])
def test_an_impossible_model_creates_no_gallery(tmp_path: Path, dim: int, radius: float) -> None:
    with pytest.raises(InputError, match="dimension of at least 2 and a positive radius, got"):
        Gallery.open(tmp_path / "people", model=MODEL, dim=dim, radius=radius)
    assert not list(tmp_path.iterdir())


def test_a_gallery_of_another_model_is_refused_with_both_hashes(opened: Open) -> None:
    opened().close()
    with pytest.raises(ModelError, match=f"{MODEL}.*{'c' * 64}"):
        opened(model="c" * 64)
    with pytest.raises(ModelError, match=f"{'b' * 64}.*{'e' * 64}"):
        opened(backbone="e" * 64)
    with pytest.raises(ModelError, match="radius"):
        opened(radius=2.0)
    with pytest.raises(ModelError, match="calibration"):
        opened(model="c" * 64, calibration=calibration())


WRITER = f"""
import sys, numpy as np
from spherecf.gallery import Gallery
gallery = Gallery.open(sys.argv[1], model="{MODEL}", backbone="{BACKBONE}", dim={DIM}, radius={RADIUS})
for line in sys.stdin:
    name, axis = line.split()
    gallery.enrol(name, np.eye({DIM})[int(axis)][None], [300.0], media=["a"], sources=["a"])
    print(name, flush=True)
"""


def test_readers_follow_a_writer_and_other_writers_learn_its_process_id(
    opened: Open, people: np.ndarray, tmp_path: Path
) -> None:
    reader = opened()
    enrol(reader, "Ann", people[:1])
    reader.close()
    reader = opened()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "people")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdin is not None and writer.stdout is not None
        for name, axis in (("Bob", 0), ("Zoe", 1)):
            writer.stdin.write(f"{name} {axis}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == f"{name}\n"
            result = reader.identify(np.eye(DIM)[axis], 300.0, threshold=0.0)
            assert (result.identity, result.gallery) == (name, 2 + axis)
        with pytest.raises(StorageError, match=f"in use by process {writer.pid}"):
            enrol(reader, "Eve", people[1:2])
        with pytest.raises(StorageError, match=f"in use by process {writer.pid}"):
            reader.remove("Ann")
    finally:
        writer.kill()
        writer.communicate()
    enrol(reader, "Eve", people[1:2])
    reader.close()
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(("-lock", "-wal"))] == []
    assert [entry.identity for entry in opened().list()] == ["Ann", "Bob", "Eve", "Zoe"]


def test_a_damaged_file_is_refused(opened: Open, people: np.ndarray, tmp_path: Path) -> None:
    gallery, file = opened(), tmp_path / "people"
    enrol(gallery, "Ann", np.concatenate([people[:1], people[1:2]]))
    gallery.close()
    content = file.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"X" * 100 + content[100:],
        content.replace(b'"warnings"', b"x" * 10),
    ):
        file.write_bytes(damaged)
        with pytest.raises((StorageError, FileFormatError), match="people"):
            opened().list()
    file.write_bytes(content)
    assert len(opened()) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json_set(value, '$.version', 3)", r"of version 1, got spherecf.gallery 3\. Update spherecf"),
        ("json_set(value, '$.dim', '8')", r"header of the gallery: dim: .*valid integer.* Restore it"),
        ("json_remove(value, '$.radius')", r"header of the gallery: radius: Field required.* Restore it"),
    ],
)
def test_headers_of_newer_versions_and_damaged_ones_are_refused(
    opened: Open, tmp_path: Path, value: str, message: str
) -> None:
    opened().close()
    with sqlite3.connect(tmp_path / "people") as connection:
        connection.execute(f"UPDATE facts SET value = {value} WHERE name = 'header'")
    connection.close()
    with pytest.raises(FileFormatError, match=message):
        opened()


def test_files_that_are_not_galleries_are_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 200)
    with pytest.raises(FileFormatError, match="expected the file of a gallery"):
        opened(tmp_path / "file")
    with pytest.raises(FileFormatError, match="got a folder"):
        opened(tmp_path)
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE facts (x)")
    connection.close()
    with pytest.raises(FileFormatError, match="another SQLite database"):
        opened(tmp_path / "other")
    with pytest.raises(InputError, match="no gallery"):
        opened(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="there is no gallery here; enrol a person first"):
        opened(tmp_path / "empty", create=False)
    with pytest.raises(TypeError, match=r"Gallery\.open\(\) got an unexpected keyword argument 'tokens'"):
        opened(tokens="x")


def test_places_that_cannot_be_opened_are_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "none" / "gallery")
    for place, message in (
        ("file/people", r"cannot be written \(.*file is not a folder\)"),
        ("x" * 300, r"cannot be opened \(File name too long\)"),
        ("link", r"cannot be opened \(No such file or directory\)"),
        ("socket", r"the gallery cannot be read or written \(unable to open database file\)"),
    ):
        with pytest.raises(StorageError, match=message):
            opened(tmp_path / place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mu = x'00'", "a direction has (the wrong size|1 bytes instead of 128)"),
        ("kappa = -1.0", "a row holds a value of the wrong type or out of range"),
        ("images = 'x'", "a row holds a value of the wrong type or out of range"),
        ("facts = '{}'", "lacks facts of a template"),
        ("facts = '[]'", "is not a JSON object"),
    ],
)
def test_rows_with_invalid_values_are_refused(
    opened: Open, people: np.ndarray, tmp_path: Path, change: str, message: str
) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:1])
    gallery.close()
    with sqlite3.connect(tmp_path / "people") as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"UPDATE templates SET {change}")
    connection.close()
    with pytest.raises(FileFormatError, match=message):
        opened().list()
    if not change.startswith("facts"):  # which a search does not read
        with pytest.raises(FileFormatError, match=message):
            opened().search(people[:1], [300.0])
        with pytest.raises(FileFormatError, match="damaged"):
            opened().compact()


def test_damage_that_only_single_templates_or_the_index_show_is_found(
    tmp_path: Path, people: np.ndarray
) -> None:
    path = tmp_path / "people"
    facts = {"enrolled": "", "changed": "", "warnings": [], "sources": [], "medium": "", "source": ""}
    with closing(Store(str(path), DIM)) as store:
        store.create({"dim": DIM})
        store.insert([Template("1", "Ann", people[0], 300.0, 1, 1, facts)])
        assert store.find("Ann") is not None
        store.compact()
    for value, size in (("x'00'", 1), ("'text'", 0)):
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE templates SET mu = {value}")
        connection.close()
        with (
            closing(Store(str(path), DIM)) as store,
            pytest.raises(FileFormatError, match=f"a direction has {size} bytes instead of {4 * DIM}"),
        ):
            store.find("Ann")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, '(images)', '(kappa)')")
    connection.close()
    with (
        closing(Store(str(path), DIM)) as store,
        pytest.raises(FileFormatError, match="damaged: row 1 missing from index by_images"),
    ):
        store.compact()


def test_a_person_is_stored_only_once(tmp_path: Path, people: np.ndarray) -> None:
    template = Template("1", "Ann", people[0], 300.0, 1, 1, {})
    with closing(Store(str(tmp_path / "people"), DIM)) as store:
        store.create({"dim": DIM})
        store.insert([template])
        with pytest.raises(StorageError, match="UNIQUE constraint failed"):
            store.insert([replace(template, id="2")])
        assert store.counts() == (1, 1)


def test_removal_while_another_process_reads_is_not_erasure(
    opened: Open, people: np.ndarray, tmp_path: Path
) -> None:
    gallery = opened(timeout=0.1)
    for name, mu in zip(("Ann", "Bob"), people):
        enrol(gallery, name, mu[None])
    reader = sqlite3.connect(tmp_path / "people", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM templates").fetchone()
    with pytest.raises(StorageError, match="removed, but not erased, because another process is reading"):
        gallery.remove("Ann")
    reader.close()
    gallery.compact()
    assert [entry.identity for entry in gallery.list()] == ["Bob"]


def test_equal_input_gives_an_equal_gallery_except_for_times(
    opened: Open, people: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherecf.gallery.rows.datetime", FixedClock)
    for name in "ab":
        gallery = opened(tmp_path / name)
        enrol(gallery, "Ann", people[:2])
        enrol(gallery, "Bob", people[2:3])
        enrol(gallery, "Ann", people[3:4], add=True)
        gallery.search(people[:1], [300.0])
        gallery.close()
    first, second = (opened(tmp_path / name).list() for name in "ab")
    assert first == second and len({entry.template for entry in first}) == 2
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    third = opened(tmp_path / "c")
    enrol(third, "Bob", people[3:4])
    assert third.list()[0].template not in {entry.template for entry in first}


class FixedClock(datetime):
    @classmethod
    def now(cls, zone: tzinfo | None = None) -> datetime:
        return datetime(2026, 1, 1, tzinfo=zone)


def test_an_interrupted_change_is_kept_once_it_is_written(
    opened: Open, people: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    actions = (lambda: enrol(gallery, "Bob", people[1:2]), lambda: gallery.remove("Ann"))
    for action, remaining in zip(actions, (["Ann", "Bob"], ["Bob"])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(gallery._index, "add", interrupt)
            patch.setattr(gallery._index, "drop", interrupt)
            action()
        identities = sorted(entry.identity for entry in gallery.search(people[:1], [300.0])[0])
        assert identities == [entry.identity for entry in gallery.list()] == remaining
        assert len(gallery) == len(remaining)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "x" * 257, 17, None])
def test_invalid_names_are_refused(opened: Open, people: np.ndarray, name: Any) -> None:
    gallery = opened()
    with pytest.raises(InputError, match="identity"):
        enrol(gallery, name, people[:1])
    with pytest.raises(InputError, match="identity"):
        gallery.enrol_many(["Ann", name], people[:2], [300.0, 300.0])


def test_names_may_be_long_and_are_unicode_normalised(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    names = ["山" * 256, 'O"Neill \\ %', "Zoë"]
    for name, mu in zip(names, people):
        enrol(gallery, name, mu[None])
    assert sorted(names) == [entry.identity for entry in gallery.list()]
    assert "Zoe\u0308" in gallery and gallery.remove('O"Neill \\ %', erase=False) == 1


@pytest.mark.parametrize(
    ("mu", "kappa", "match"),
    [
        (np.zeros((1, DIM)), [1.0], "1 of 1 .* 1 zero"),
        (np.full((1, DIM), np.nan), [1.0], "NaN"),
        (np.eye(DIM)[:1, :5], [1.0], "expected"),
        (np.eye(DIM)[:0], [], "expected"),
        (np.eye(DIM)[:1], [-1.0], "negative"),
        (np.eye(DIM)[:1], [np.inf], "infinite"),
        (np.eye(DIM)[:1], [1.0, 2.0], "kappa, medium and source"),
    ],
)
def test_invalid_arrays_are_refused(opened: Open, mu: np.ndarray, kappa: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        opened().enrol("Ann", mu, kappa, media=["a"] * len(mu), sources=["a"] * len(mu))


def test_invalid_searches_are_refused(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:1])
    with pytest.raises(InputError, match="top: expected 1 or more, got 0"):
        gallery.search(people[:1], [300.0], top=0)
    with pytest.raises(InputError, match=r"mu: expected one direction of shape \(32,\), got \(2, 32\)"):
        gallery.identify(people[:2], 300.0)


def test_without_calibration_identification_is_undecided(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    assert gallery.identify(people[0], 300.0).reason == "the gallery is empty"
    enrol(gallery, "Ann", people[:1])
    result = gallery.identify(people[0], 300.0)
    assert result.answer == "undecided" and "not calibrated" in result.reason
    assert gallery.identify(people[0], 300.0, threshold=0.0).identity == "Ann"
    with pytest.raises(InputError, match="max_fpir"):
        gallery.identify(people[0], 300.0, max_fpir=0.0)
    with pytest.raises(InputError, match="threshold"):
        gallery.identify(people[0], 300.0, threshold=float("nan"))


def test_enrolments_have_quality_warnings(opened: Open, people: np.ndarray) -> None:
    scores, mated = [-30.0, -20.0, -10.0, 5.0, -5.0, 10.0, 20.0, 30.0], [0, 0, 0, 0, 1, 1, 1, 1]
    ratio = LogisticCalibrator.fit(scores, mated, score="mls", radius=RADIUS)
    gallery = opened(calibration=calibration(likelihood={"mls": ratio}))
    assert enrol(gallery, "Ann", people[:1]).warnings == ()
    assert enrol(gallery, "Ann again", near(people[:1], 1)).warnings[0].startswith("resembles Ann ")
    assert enrol(gallery, "Poor", people[1:2], 20.0).warnings[0].startswith("low quality: kappa 20.0")
    assert enrol(gallery, "Two", people[2:4]).warnings == ("the two photos look like different people",)
    mixed = np.concatenate([near(people[5:6], seed) for seed in range(3)] + [people[6:7]])
    (warning,) = enrol(gallery, "Mixed", mixed).warnings
    assert warning == f"photos that do not look like the others: Mixed-{mixed[3, :3]}"
    assert [entry.warnings[0] for entry in gallery.list() if entry.identity == "Mixed"] == [warning]
