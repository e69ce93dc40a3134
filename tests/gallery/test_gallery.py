"""Enrolling, finding, listing and removing, in an embedded gallery."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.gallery.conftest import DIM, MODEL, calibration, near

from spherecf.errors import FileFormatError, InputError, ModelError, StorageError
from spherecf.gallery import Gallery
from spherecf.scoring import pool_templates

Open = Callable[..., Gallery]


def enrol(gallery: Gallery, name: str, mu: np.ndarray, kappa: float = 400.0, **how: bool) -> object:
    names = [f"{name}-{mu[i, :3]}" for i in range(len(mu))]
    return gallery.enrol(name, mu, np.full(len(mu), kappa), media=names, sources=names, **how)


def stored_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_who_is_enrolled_is_found_and_others_are_not(opened: Open, people: np.ndarray) -> None:
    gallery = opened(calibration=calibration())
    for name, mu in zip(("Ann", "Bob", "Zoë 山田"), people):
        done = enrol(gallery, name, mu[None])
        assert (done.identity, done.images, done.media, done.kappa) == (name, 1, 1, 400.0)
    found = gallery.identify(near(people[2:3], 1)[0], 300.0, top=2)
    assert (found.answer, found.identity, found.gallery) == ("identified", "Zoë 山田", 3)
    assert found.candidates[0].identity == "Zoë 山田" and len(found.candidates) == 2
    assert found.fmr == pytest.approx(0.01 / 3) and found.fmr_used == 1e-4 and found.least_kappa == 50.0
    stranger = gallery.identify(people[10], 300.0)
    assert (stranger.answer, stranger.identity) == ("unknown", None)
    assert gallery.identify(near(people[2:3], 1)[0], 30.0).answer == "undecided"


def test_everything_is_there_after_reopening(opened: Open, people: np.ndarray) -> None:
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


def test_photos_added_later_pool_as_if_they_had_come_at_once(opened: Open, people: np.ndarray) -> None:
    mu = np.concatenate([near(people[:1], seed) for seed in range(5)])
    kappa, media = np.array([100.0, 200, 300, 400, 500]), ["a", "film", "film", "b", "c"]
    gallery = opened()
    gallery.enrol("Ann", mu[:1], kappa[:1], media=media[:1], sources=["1"])
    with pytest.raises(InputError, match="already enrolled"):
        gallery.enrol("Ann", mu[1:2], kappa[1:2], media=["x"], sources=["x"])
    gallery.enrol("Ann", mu[1:3], kappa[1:3], media=media[1:3], sources=["2", "3"], add=True)
    gallery.close()
    again = opened()
    done = again.enrol("Ann", mu[1:], kappa[1:], media=media[1:], sources=list("2345"), add=True)
    whole = pool_templates(mu, kappa, np.zeros(5, np.int64), [0, 1, 1, 2, 3])
    assert done.kappa == pytest.approx(float(whole.kappa[0]), rel=1e-6) and (done.images, done.media) == (
        5,
        4,
    )
    (candidate,) = again.search(whole.mu, [300.0], top=1)[0]
    assert candidate.cosine == pytest.approx(1, abs=1e-6)
    assert again.enrol("Ann", mu[:1], kappa[:1], media=["a"], sources=["1"], add=True) == done


def test_replacing_forgets_the_former_photos(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    enrol(gallery, "Ann", np.concatenate([people[:1], near(people[:1], 1)]))
    done = enrol(gallery, "Ann", people[1:4], replace=True)
    assert done.images == 3 and len(gallery) == 1
    enrol(gallery, "Ann", people[4:5], add=True)
    gallery.close()
    (one,) = opened().list()
    whole = pool_templates(people[1:5], np.full(4, 400.0), np.zeros(4, np.int64))
    assert one.images == 4 and one.kappa == pytest.approx(float(whole.kappa[0]), rel=1e-6)


def test_images_that_are_not_kept_leave_the_template(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    media, kappa = ["a", "b", "c"], np.full(3, 400.0)
    first = gallery.enrol("Ann", people[:3], kappa, media=media, sources=media)
    none = np.empty((0, DIM), np.float32)
    same = gallery.enrol("Ann", none, [], media=[], sources=[], add=True, keep=media)
    assert same == first and gallery.sources("Ann") == {"a": "a", "b": "b", "c": "c"}
    gallery.enrol("Ann", people[3:4], [400.0], media=["d"], sources=["d"], add=True, keep=["a", "c"])
    assert list(gallery.sources("Ann")) == ["a", "c", "d"]
    with pytest.raises(InputError, match="no image would be left"):
        gallery.enrol("Ann", none, [], media=[], sources=[], add=True, keep=["x"])
    done = gallery.enrol("Ann", none, [], media=[], sources=[], add=True, keep=["c"])
    assert (done.images, done.kappa, done.enrolled) == (1, 400.0, first.enrolled)
    gallery.enrol("Ann", people[4:5], [400.0], media=["e"], sources=["e"], add=True)
    gallery.close()
    again = opened()
    assert list(again.sources("Ann")) == ["c", "e"] and again.sources("Bob") == {}
    (candidate,) = again.search(people[2:3], [300.0], top=1)[0]
    assert candidate.identity == "Ann" and again.info()["images"] == 2
    with pytest.raises(InputError):
        again.enrol("Bob", none, [], media=[], sources=[], add=True)


def test_removal_leaves_neither_name_nor_direction_in_any_file(
    opened: Open, people: np.ndarray, tmp_path: Path
) -> None:
    import base64

    gallery = opened()
    enrol(gallery, "Quetzalcoatl", np.concatenate([people[:1], near(people[:1], 1)]))
    enrol(gallery, "Bob", people[1:2])
    packed = base64.b64encode(people[0].tobytes())
    (key,) = (one.template for one in gallery.list() if one.identity == "Quetzalcoatl")
    traces = (b"Quetzalcoatl", packed, key.encode())
    assert all(trace in stored_bytes(tmp_path) for trace in traces)
    assert gallery.remove("Nobody") == 0 and gallery.remove("Quetzalcoatl") == 1
    assert len(gallery) == 1 and [one.identity for one in gallery.list()] == ["Bob"]
    assert not any(trace in stored_bytes(tmp_path) for trace in traces)
    assert b"Bob" in stored_bytes(tmp_path)
    gallery.close()
    again = opened()
    assert [one.identity for one in again.list()] == ["Bob"] and "Quetzalcoatl" not in again
    assert not any(trace in stored_bytes(tmp_path) for trace in traces)


def test_removal_without_erasing_counts_at_once_and_for_good(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:2])
    enrol(gallery, "Bob", people[2:3])
    gallery.remove("Ann", erase=False)
    gallery.close()
    again = opened()
    assert [one.identity for one in again.list()] == ["Bob"]
    assert [one.identity for one in again.search(people[:1], [300.0])[0]] == ["Bob"]


def test_many_at_once_and_again_after_an_interruption(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    names = [f"person {i}" for i in range(40)]
    assert gallery.enrol_many(names[:25], people[:25], np.full(25, 300.0)) == 25
    assert gallery.enrol_many(names, people, np.full(40, 300.0)) == 15
    assert gallery.search(people[30:31], [300.0], top=1)[0][0].identity == "person 30"
    with pytest.raises(InputError, match="twice"):
        gallery.enrol_many(["x", "x"], people[:2], [1.0, 1.0])
    gallery.close()
    assert len(opened()) == 40


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


def test_a_second_process_is_told_who_has_the_gallery(opened: Open, tmp_path: Path) -> None:
    script = (
        "import sys; from spherecf.gallery.store import Lock; from pathlib import Path\n"
        "lock = Lock(Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    )
    opened().close()
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "people" / "spherecf.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "mine\n"
        with pytest.raises(StorageError, match=f"in use by process {holder.pid}"):
            opened()
    finally:
        holder.kill()
        holder.communicate()
    opened()


def test_damage_is_noticed(opened: Open, people: np.ndarray, tmp_path: Path) -> None:
    gallery = opened()
    enrol(gallery, "Ann", people[:1])
    gallery.close()
    (data,) = (tmp_path / "people").rglob("data_*.parquet")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((StorageError, FileFormatError), match="people"):
        opened()
    data.unlink()
    with pytest.raises(FileFormatError, match="damaged"):
        opened()
    data.write_bytes(whole)
    assert len(opened()) == 1


def test_what_is_no_gallery(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileFormatError, match="folder"):
        opened(tmp_path / "file")
    with pytest.raises(InputError, match="no gallery"):
        opened(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "x" * 257])
def test_names_that_are_refused(opened: Open, people: np.ndarray, name: str) -> None:
    with pytest.raises(InputError, match="identity"):
        enrol(opened(), name, people[:1])


def test_long_and_strange_names_and_one_spelling_of_each(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    names = ["山" * 256, 'O"Neill \\ %', "Zoë"]
    for name, mu in zip(names, people):
        enrol(gallery, name, mu[None])
    assert sorted(names) == [one.identity for one in gallery.list()]
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
def test_arrays_that_are_refused(opened: Open, mu: np.ndarray, kappa: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        opened().enrol("Ann", mu, kappa, media=["a"] * len(mu), sources=["a"] * len(mu))


def test_a_model_without_calibration_decides_nothing(opened: Open, people: np.ndarray) -> None:
    gallery = opened()
    assert gallery.identify(people[0], 300.0).why == "the gallery is empty"
    enrol(gallery, "Ann", people[:1])
    found = gallery.identify(people[0], 300.0)
    assert found.answer == "undecided" and "not calibrated" in found.why
    assert gallery.identify(people[0], 300.0, threshold=0.0).identity == "Ann"
    with pytest.raises(InputError, match="max_fpir"):
        gallery.identify(people[0], 300.0, max_fpir=0.0)


def test_enrolments_are_reviewed(opened: Open, people: np.ndarray) -> None:
    gallery = opened(calibration=calibration())
    assert enrol(gallery, "Ann", people[:1]).warnings == ()
    assert enrol(gallery, "Ann again", near(people[:1], 1)).warnings[0].startswith("resembles Ann ")
    assert enrol(gallery, "Poor", people[1:2], 20.0).warnings[0].startswith("low quality: kappa 20.0")
    assert enrol(gallery, "Two", people[2:4]).warnings == ("the two photos look like different people",)
    mixed = np.concatenate([near(people[5:6], seed) for seed in range(3)] + [people[6:7]])
    (warning,) = enrol(gallery, "Mixed", mixed).warnings
    assert warning == f"photos that do not look like the others: Mixed-{mixed[3, :3]}"
    assert [one.warnings[0] for one in gallery.list() if one.identity == "Mixed"] == [warning]
