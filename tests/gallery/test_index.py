"""The search file: it follows the gallery, and is rebuilt whenever it does not match."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gallery.conftest import DIM, near, unit
from tests.reference.gallery import brute_force

import spherecf.gallery.index as index_module
from spherecf.errors import StorageError
from spherecf.gallery import Gallery
from spherecf.gallery.index import quantise

Open = Callable[..., Gallery]
PEOPLE = 300


@pytest.fixture
def mu() -> np.ndarray:
    return unit(np.random.default_rng(5), PEOPLE)


@pytest.fixture
def path(opened: Open, mu: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a closed gallery with a search file."""
    monkeypatch.setattr(index_module, "_TAIL", 50)
    gallery = opened()
    names = [f"{i:03d}" for i in range(PEOPLE)]
    gallery.enrol_many(names, mu, np.random.default_rng(6).uniform(50, 500, PEOPLE))
    gallery.close()
    assert (tmp_path / "people-search").stat().st_mode & 0o777 == 0o600
    return tmp_path / "people"


def check(gallery: Gallery, mu: np.ndarray) -> None:
    results = gallery.search(near(mu[:8], 1), np.full(8, 300.0), top=6)
    for probe, candidates in zip(near(mu[:8], 1), results):
        probe = probe / np.linalg.norm(probe.astype(np.float64))
        ids, _ = brute_force(gallery._store, probe.astype(np.float32), 300.0, 6, 1.0)
        assert [candidate.template for candidate in candidates] == ids


def is_mapped(gallery: Gallery) -> bool:
    return isinstance(gallery._index._main.codes, np.memmap)


def test_the_search_file_is_reused_and_follows_changes(
    opened: Open, path: Path, mu: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    written = Path(f"{path}-search").read_bytes()
    reader, writer = opened(), opened()
    assert is_mapped(reader) and len(reader) == PEOPLE
    check(reader, mu)
    writer.enrol("new", near(mu[:1], 1), [300.0], media=["a"], sources=["a"])
    writer.remove("005")
    for gallery in (reader, writer):
        check(gallery, mu)
        assert len(gallery) == PEOPLE and is_mapped(gallery)
    assert Path(f"{path}-search").read_bytes() != written
    writer.enrol_many([f"more {i}" for i in range(60)], unit(np.random.default_rng(9), 60), np.ones(60))
    check(writer, mu)
    check(reader, mu)
    assert writer._index._tail.used == 0 and len(reader) == len(writer) == PEOPLE + 60
    writer.close()
    assert len(opened()) == PEOPLE + 60 and not caplog.records


def flip_bit(position: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_bit(0), "does not belong"), (flip_bit(20), "does not belong"), (flip_bit(70), "damaged"),
        (flip_bit(64 + 32 * 512 + 5 * DIM), "damaged"), (lambda content: content[:-1], "truncated"),
        (lambda content: content[:30], "does not belong"), (lambda content: b"", "does not belong"),
    ],
)  # fmt: skip
def test_a_damaged_search_file_is_rebuilt_with_a_warning(
    opened: Open, path: Path, mu: np.ndarray, caplog: pytest.LogCaptureFixture, damage: Any, reason: str
) -> None:
    file = Path(f"{path}-search")
    content = file.read_bytes()
    file.write_bytes(damage(content))
    gallery = opened()
    check(gallery, mu)
    (record,) = caplog.records
    assert reason in record.message and "rebuilding it" in record.message
    gallery.close()
    assert file.read_bytes() == content
    check(opened(), mu)
    assert len(caplog.records) == 1


def test_a_search_file_of_another_state_is_rebuilt(opened: Open, path: Path, mu: np.ndarray) -> None:
    file = Path(f"{path}-search")
    for part in (path, file):
        shutil.copy(part, f"{part}.old")
    gallery = opened()
    gallery.enrol_many([f"x{i}" for i in range(200)], unit(np.random.default_rng(8), 200), np.full(200, 99.0))
    gallery.close()
    shutil.copy(f"{path}.old", path)  # an old gallery with a newer search file
    gallery = opened()
    assert len(gallery) == PEOPLE
    check(gallery, mu)
    gallery.close()
    file.unlink()
    gallery = opened()
    check(gallery, mu)
    gallery.close()
    assert file.read_bytes() == Path(f"{file}.old").read_bytes()


def test_an_interrupted_removal_is_applied_later(opened: Open, path: Path, mu: np.ndarray) -> None:
    file = Path(f"{path}-search")
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


def test_codes_of_people_removed_at_the_end_are_erased(opened: Open, path: Path, mu: np.ndarray) -> None:
    gallery = opened()
    people = gallery._store.people(gallery._store.rows())
    for i in np.argsort(people.kappa)[::-1][:60].tolist():  # more than one group of rows
        gallery.remove(people.names[i])
        gallery.close()
        gallery = opened()
    check(gallery, mu)
    (part,) = gallery._index.parts
    codes = np.fromfile(f"{path}-search", np.int8)[-len(part.rows) * DIM :].reshape(-1, DIM)
    assert int(codes.any(1).sum()) == PEOPLE - 60 == len(gallery)


def test_readers_search_without_writing_the_search_file(opened: Open, path: Path, mu: np.ndarray) -> None:
    file = Path(f"{path}-search")
    file.unlink()
    writer, reader = opened(), opened()
    writer._store.claim()
    check(reader, mu)
    assert not file.exists() and not is_mapped(reader)


def test_a_link_has_the_same_lock_and_search_file(
    opened: Open, path: Path, mu: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "gallery"
    link.symlink_to(path)
    codes = quantise(mu[:1])[0].tobytes()
    assert codes in Path(f"{path}-search").read_bytes()
    with opened(link) as gallery:
        assert is_mapped(gallery)
        gallery.remove("000")
        with opened() as other, pytest.raises(StorageError, match="in use by process"):
            other.remove("001")
    assert codes not in Path(f"{path}-search").read_bytes()
    assert [file.name for file in link.parent.iterdir()] == ["gallery"]


def test_people_are_removed_although_the_search_file_is_gone(
    opened: Open, path: Path, mu: np.ndarray
) -> None:
    gallery = opened()
    Path(f"{path}-search").unlink()
    assert gallery.remove("000") == 1 and "000" not in gallery
    check(gallery, mu)


def test_a_search_file_that_cannot_be_erased_is_reported(opened: Open, path: Path, mu: np.ndarray) -> None:
    gallery, file = opened(), Path(f"{path}-search")
    file.unlink()
    file.mkdir()
    with pytest.raises(StorageError, match=r"removed people could not be erased from it \(Is a directory\)"):
        gallery.remove("000")
    file.rmdir()
    assert "000" not in gallery
