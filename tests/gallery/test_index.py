"""The file that a search reads: it goes by the gallery, and is made anew whenever it does not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gallery.conftest import DIM, near, unit
from tests.reference.gallery import brute_force

import spherecf.gallery.index as index_module
from spherecf.gallery import Gallery

Open = Callable[..., Gallery]
PEOPLE = 300


@pytest.fixture
def mu() -> np.ndarray:
    return unit(np.random.default_rng(5), PEOPLE)


@pytest.fixture
def place(opened: Open, mu: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery with a file for searches, closed."""
    monkeypatch.setattr(index_module, "_TAIL", 50)
    gallery = opened()
    names = [f"{i:03d}" for i in range(PEOPLE)]
    gallery.enrol_many(names, mu, np.random.default_rng(6).uniform(50, 500, PEOPLE))
    gallery.close()
    assert (tmp_path / "people-search").stat().st_mode & 0o777 == 0o600
    return tmp_path / "people"


def check(gallery: Gallery, mu: np.ndarray) -> None:
    found = gallery.search(near(mu[:8], 1), np.full(8, 300.0), top=6)
    for probe, candidates in zip(near(mu[:8], 1), found):
        probe = probe / np.linalg.norm(probe.astype(np.float64))
        ids, _ = brute_force(gallery._store, probe.astype(np.float32), 300.0, 6, 1.0)
        assert [one.template for one in candidates] == ids


def mapped(gallery: Gallery) -> bool:
    return isinstance(gallery._index._main.codes, np.memmap)


def test_it_is_read_again_and_followed(
    opened: Open, place: Path, mu: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    written = Path(f"{place}-search").read_bytes()
    reader, writer = opened(), opened()
    assert mapped(reader) and len(reader) == PEOPLE
    check(reader, mu)
    writer.enrol("new", near(mu[:1], 1), [300.0], media=["a"], sources=["a"])
    writer.remove("005")
    for gallery in (reader, writer):
        check(gallery, mu)
        assert len(gallery) == PEOPLE and mapped(gallery)
    assert Path(f"{place}-search").read_bytes() != written
    writer.enrol_many([f"more {i}" for i in range(60)], unit(np.random.default_rng(9), 60), np.ones(60))
    check(writer, mu)
    check(reader, mu)
    assert writer._index._tail.used == 0 and len(reader) == len(writer) == PEOPLE + 60
    writer.close()
    assert len(opened()) == PEOPLE + 60 and not caplog.records


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flip(0), "does not belong"), (flip(20), "does not belong"), (flip(70), "damaged"),
        (flip(64 + 32 * 512 + 5 * DIM), "damaged"), (lambda whole: whole[:-1], "truncated"),
        (lambda whole: whole[:30], "does not belong"), (lambda whole: b"", "does not belong"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_made_anew_with_a_word(
    opened: Open, place: Path, mu: np.ndarray, caplog: pytest.LogCaptureFixture, damage: Any, word: str
) -> None:
    file = Path(f"{place}-search")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    gallery = opened()
    check(gallery, mu)
    (record,) = caplog.records
    assert word in record.message and "rebuilding it" in record.message
    gallery.close()
    assert file.read_bytes() == whole
    check(opened(), mu)
    assert len(caplog.records) == 1


def test_that_of_another_time_is_made_anew(opened: Open, place: Path, mu: np.ndarray) -> None:
    file = Path(f"{place}-search")
    for part in (place, file):
        shutil.copy(part, f"{part}.old")
    gallery = opened()
    gallery.enrol_many([f"x{i}" for i in range(200)], unit(np.random.default_rng(8), 200), np.full(200, 99.0))
    gallery.close()
    shutil.copy(f"{place}.old", place)  # a backup of the gallery with the newer file, and the other way round
    gallery = opened()
    assert len(gallery) == PEOPLE
    check(gallery, mu)
    gallery.close()
    file.unlink()
    gallery = opened()
    check(gallery, mu)
    gallery.close()
    assert file.read_bytes() == Path(f"{file}.old").read_bytes()


def test_a_removal_that_did_not_reach_it_does_so_later(opened: Open, place: Path, mu: np.ndarray) -> None:
    file = Path(f"{place}-search")
    before = file.read_bytes()
    gallery = opened()
    gallery.remove("001")
    gallery.close()
    assert file.read_bytes().count(bytes(DIM)) > before.count(bytes(DIM))
    file.write_bytes(before)  # as if the process had been killed between the two writes
    gallery = opened()
    assert len(gallery) == PEOPLE - 1
    check(gallery, mu)
    gallery.enrol("new", mu[:1], [300.0], media=["a"], sources=["a"])
    gallery.close()
    assert file.read_bytes().count(bytes(DIM)) > before.count(bytes(DIM))
    gallery = opened()
    gallery.compact()
    check(gallery, mu)
    gallery.close()
    assert len(file.read_bytes()) <= len(before)
    check(opened(), mu)


def test_of_people_removed_at_the_end_of_it_the_codes_go_too(
    opened: Open, place: Path, mu: np.ndarray
) -> None:
    gallery = opened()
    people = gallery._store.people(gallery._store.rows())
    for i in np.argsort(people.kappa)[::-1][:60].tolist():  # more than fit into one group of rows
        gallery.remove(people.names[i])
        gallery.close()
        gallery = opened()
    check(gallery, mu)
    (left,) = gallery._index.parts
    whole = np.fromfile(f"{place}-search", np.int8)[-len(left.rows) * DIM :].reshape(-1, DIM)
    assert int(whole.any(1).sum()) == PEOPLE - 60 == len(gallery)


def test_readers_that_cannot_write_it_search_all_the_same(opened: Open, place: Path, mu: np.ndarray) -> None:
    file = Path(f"{place}-search")
    file.unlink()
    writer, reader = opened(), opened()
    writer._store.claim()
    check(reader, mu)
    assert not file.exists() and not mapped(reader)
