"""Encrypted galleries: same answers, no readable data on disk, and refusal of every alteration."""

import errno
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gallery.conftest import BACKBONE, DIM, MODEL, RADIUS, calibration, near

import spherecf.gallery.index as index_module
import spherecf.gallery.sealed as sealed_module
from spherecf.common.sealing import KEY_FILE, Key, make_key, read_key
from spherecf.errors import FileFormatError, InputError, SpherecfError, StorageError
from spherecf.gallery import Gallery, reseal_gallery
from spherecf.gallery.rows import check_images
from spherecf.gallery.sealed import open_store
from spherecf.gallery.store import Store

Open = Callable[..., Gallery]
NAMES = ["Quetzalcoatl", "Rumpelstilzchen", "Schneewittchen"]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """An encryption key, configured through the environment."""
    (tmp_path / "keys").mkdir()
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys" / "key"))
    return make_key(tmp_path / "keys" / "key")


def fill(gallery: Gallery, people: np.ndarray) -> None:
    """Enrol three people: the first two have two images each, the third has one."""
    for i, name in enumerate(NAMES):
        mu = np.concatenate([near(people[i : i + 1], seed) for seed in range(1 + (i < 2))])
        media = [f"medium-{name}-{j}" for j in range(len(mu))]
        sources = [f"{name}-{j}.jpg" for j in range(len(mu))]
        gallery.enrol(name, mu, np.full(len(mu), 300.0), media=media, sources=sources)


def secrets_of(people: np.ndarray) -> list[bytes]:
    images = [near(people[i : i + 1], seed) for i in range(3) for seed in range(1 + (i < 2))]
    directions = [check_images(mu, [1.0], DIM).mu.tobytes() for mu in images]
    return [*(name.encode() for name in NAMES), *directions, MODEL.encode(), b".jpg"]


def count_visible(folder: Path, secrets: list[bytes]) -> int:
    """Number of these secrets that occur in the files of a folder."""
    content = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    return sum(secret in content for secret in secrets)


@pytest.fixture
def watched(tmp_path: Path, people: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Number of readable secrets in the folder after each SQL statement."""
    counts: list[int] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Store, *arguments: Any) -> Any:
            result = original(self, *arguments)
            counts.append(count_visible(tmp_path, secrets_of(people)))
            return result

        return counted

    for name in ("_ask", "_many"):
        monkeypatch.setattr(Store, name, wrap(getattr(Store, name)))
    yield counts


def use_gallery(opened: Open, people: np.ndarray) -> None:
    gallery = opened(calibration=calibration())
    fill(gallery, people)
    gallery.enrol(NAMES[2], people[2:3], [200.0], media=["new"], sources=["x.jpg"], add=True)
    gallery.enrol_many(["a", "b"], people[5:7], [100.0, 200.0])
    gallery.remove(NAMES[1], erase=False)
    gallery.compact()
    gallery.close()


def test_no_secret_is_readable_at_any_time(
    opened: Open, people: np.ndarray, key: Key, watched: list[int]
) -> None:
    use_gallery(opened, people)
    assert len(watched) > 50 and max(watched) == 0


def test_without_a_key_all_secrets_are_readable(opened: Open, people: np.ndarray, watched: list[int]) -> None:
    use_gallery(opened, people)
    assert max(watched) == len(secrets_of(people)) == 10


def test_answers_equal_those_of_a_plain_gallery(
    opened: Open, people: np.ndarray, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_TAIL", 20)
    sealed = opened()
    monkeypatch.delenv(KEY_FILE)
    plain = opened(tmp_path / "plain")
    probes, kappa = near(people, 1), np.full(len(people), 250.0)
    for gallery in (sealed, plain):
        fill(gallery, people)
        gallery.enrol_many([f"person {i}" for i in range(30)], people[:30], np.linspace(50, 400, 30))
        gallery.remove("person 7")
        gallery.enrol("person 8", people[8:9], [10.0], media=["m"], sources=["s"], replace=True)
    assert [entry.identity for entry in sealed.list()] == [entry.identity for entry in plain.list()]
    for sealed_entry, plain_entry in zip(sealed.list(), plain.list()):
        assert replace(sealed_entry, enrolled="", changed="") == replace(plain_entry, enrolled="", changed="")
    assert sealed.search(probes, kappa, top=4) == plain.search(probes, kappa, top=4)
    assert sealed.identify(people[0], 100.0, threshold=0.0) == plain.identify(people[0], 100.0, threshold=0.0)
    assert sealed.sources(NAMES[0]) == plain.sources(NAMES[0]) and len(sealed.sources(NAMES[0])) == 2
    assert sealed._store.counts() == plain._store.counts() and "person 7" not in sealed
    for gallery in (sealed, plain):
        gallery.close()
    assert {file.name for file in tmp_path.iterdir()} == {"keys", "people", "plain", "plain-search"}
    with pytest.raises(InputError, match="is not encrypted, but"):
        monkeypatch.setenv(KEY_FILE, key.origin)
        opened(tmp_path / "plain")


def test_readers_follow_a_writer(opened: Open, people: np.ndarray, key: Key) -> None:
    writer, reader = opened(), opened()
    fill(writer, people)
    assert [entry.identity for entry in reader.list()] == NAMES and len(reader) == 3
    writer.remove(NAMES[0])
    assert reader.search(people[:1], [300.0])[0][0].identity != NAMES[0] and len(reader) == 2


@pytest.fixture
def closed(opened: Open, people: np.ndarray, key: Key, tmp_path: Path) -> Path:
    """An encrypted gallery of three people."""
    with opened() as gallery:
        fill(gallery, people)
    return tmp_path / "people"


def use(path: Path, **options: Any) -> list[Any]:
    """Read everything in a gallery."""
    with Gallery.open(path, model=MODEL, backbone=BACKBONE, dim=DIM, radius=RADIUS, **options) as gallery:
        sources = [gallery.sources(name) for name in NAMES if name in gallery]
        return [gallery.list(), sources, gallery.search(np.eye(DIM)[:2], [100.0, 200.0])]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sealed SET content = zeroblob(length(content)) WHERE row = 2",
        "UPDATE sealed SET content = substr(content, 1, length(content) - 1)",
        "UPDATE sealed SET content = substr(content, 1, 10) WHERE row = 1",
        "UPDATE sealed SET nonce = zeroblob(12) WHERE row = 1",
        "UPDATE sealed SET nonce = x'00' WHERE row = 1",
        "UPDATE sealed SET nonce = 'text' WHERE row = 1",
        "UPDATE sealed SET content = (SELECT content FROM sealed WHERE row = 2) WHERE row = 1",
        "UPDATE sealed SET row = 9 WHERE row = 3",
        "UPDATE sealed SET row = 4 - row WHERE row <> 2",
        "UPDATE sealed SET identity = 'x' WHERE row = 1",
        "DELETE FROM sealed WHERE row = 3",
        "INSERT INTO sealed SELECT 9, 'x', randomblob(12), content FROM sealed WHERE row = 1",
        "DELETE FROM sealed_images WHERE row = 1 AND place = 1",
        "UPDATE sealed_images SET content = zeroblob(200) WHERE row = 1 AND place = 0",
        "UPDATE sealed_images SET place = 1 - place WHERE row = 1",
        "UPDATE sealed_images SET row = 3 - row",
        "INSERT INTO sealed_images SELECT row, 2, nonce, content FROM sealed_images WHERE row = 1 LIMIT 1",
        "UPDATE facts SET value = 'x' WHERE name = 'state'",
        "DELETE FROM facts WHERE name = 'state'",
        "UPDATE facts SET value = substr(value, 1, length(value) - 2) WHERE name = 'state'",
        "UPDATE facts SET value = json_set(value, '$.salt', '00') WHERE name = 'header'",
        "UPDATE facts SET value = json_set(value, '$.salt', 'x') WHERE name = 'header'",
        "UPDATE facts SET value = json_remove(value, '$.header') WHERE name = 'header'",
        "UPDATE facts SET value = json_set(value, '$.header', 5) WHERE name = 'header'",
    ],
)  # fmt: skip
def test_altered_galleries_are_refused(closed: Path, statement: str) -> None:
    with sqlite3.connect(closed) as connection:
        connection.execute("PRAGMA writable_schema = ON")  # an attacker is not bound by our constraints
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            changed = connection.execute(statement).rowcount
        except sqlite3.IntegrityError:  # do it in two steps, as an attacker could
            connection.execute("UPDATE sealed SET row = row + 100")
            changed = connection.execute("UPDATE sealed SET row = 103 - row + 1 WHERE row > 100").rowcount
    connection.close()
    assert changed > 0
    with pytest.raises(FileFormatError, match="damaged"):
        use(closed)


def test_a_person_missing_from_the_table_or_the_order_of_the_index_is_damage(closed: Path, key: Key) -> None:
    """The index still lists the row: a damaged page, or an attack on the file's structure."""
    content = closed.read_bytes()
    for statement, message in (
        ("DELETE FROM sealed WHERE row = 1", "a template is listed but missing"),
        ("", "its index is not in order"),
    ):
        closed.write_bytes(content)
        connection = sqlite3.connect(closed, isolation_level=None)
        connection.execute("PRAGMA writable_schema = ON")
        kept = connection.execute("SELECT * FROM sqlite_master WHERE name = 'by_identity'").fetchone()
        if statement:
            connection.execute("DELETE FROM sqlite_master WHERE name = 'by_identity'")
            connection.close()
            connection = sqlite3.connect(closed, isolation_level=None)
            connection.execute(statement)
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", kept)
        else:
            connection.execute("DROP INDEX by_identity")
            connection.execute("CREATE UNIQUE INDEX by_identity ON sealed (identity DESC, nonce)")
        connection.close()
        with pytest.raises(FileFormatError, match=message):
            use(closed)


def test_templates_of_another_dimension_are_damage(closed: Path, key: Key) -> None:
    with closing(open_store(str(closed), 2 * DIM, key)) as store:
        store.header()
        with pytest.raises(FileFormatError, match="a template does not have 64 dimensions"):
            store.find(NAMES[0])


def test_removed_rows_are_left_out_and_a_person_is_stored_only_once(closed: Path, key: Key) -> None:
    with closing(open_store(str(closed), DIM, key)) as store:
        store.header()
        assert store.people(np.array([1, 2, 99])).rows.tolist() == [1, 2]
        with pytest.raises(StorageError, match="1 of these people are already enrolled"):
            store.insert([store.find(NAMES[2])])
        assert store.counts()[0] == 3


def test_a_newer_format_is_not_taken_for_an_unencrypted_gallery(closed: Path) -> None:
    with sqlite3.connect(closed) as connection:
        connection.execute("UPDATE facts SET value = json_set(value, '$.version', 3) WHERE name = 'header'")
    connection.close()
    with pytest.raises(FileFormatError, match=r"encrypted gallery of version 2, got 3\. Update spherecf"):
        use(closed)


def test_removed_rows_cannot_be_restored(closed: Path, tmp_path: Path, opened: Open) -> None:
    """Neither the rows alone nor the rows together with the old checksum are accepted."""
    shutil.copy(closed, tmp_path / "before")
    with opened() as gallery:
        gallery.remove(NAMES[1])
        gallery.enrol("later", np.eye(DIM)[:1], [100.0], media=["a"], sources=["b"])
    later = closed.read_bytes()
    for statement in ("", "REPLACE INTO facts SELECT * FROM old.facts WHERE name = 'state';"):
        closed.write_bytes(later)
        connection = sqlite3.connect(closed)
        connection.executescript(
            f"ATTACH '{tmp_path}/before' AS old;"
            f"INSERT OR IGNORE INTO sealed SELECT * FROM old.sealed; {statement}"
        )
        connection.close()
        with pytest.raises(FileFormatError, match="deleted or restored"):
            use(closed)
    closed.write_bytes(later)
    assert [entry.identity for entry in use(closed)[0]] == [NAMES[0], NAMES[2], "later"]


def test_flipped_bytes_and_truncation_are_refused(closed: Path) -> None:
    content, expected = closed.read_bytes(), use(closed)
    n_refused = 0
    for position in range(0, len(content), 631):
        closed.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            assert use(closed) == expected  # the byte is unused
        except SpherecfError:
            n_refused += 1
    assert n_refused > 5
    for size in range(100, len(content), 8192):
        closed.write_bytes(content[:size])
        with pytest.raises(SpherecfError):
            use(closed)


def test_compaction_verifies_every_image(closed: Path, opened: Open) -> None:
    connection = sqlite3.connect(closed)
    connection.execute("UPDATE sealed_images SET content = randomblob(length(content)) WHERE row = 2")
    connection.commit()
    connection.close()
    gallery = opened()
    with pytest.raises(FileFormatError, match="altered"):
        gallery.compact()


def test_missing_and_wrong_keys_and_servers_are_refused(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Key, opened: Open
) -> None:
    with pytest.raises(InputError, match="is not encrypted"):
        opened("http://127.0.0.1:1")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys" / "other"))
    make_key(tmp_path / "keys" / "other")
    with pytest.raises(InputError, match=f"encrypted with the key {key.id}, but .*other is"):
        use(closed)
    monkeypatch.delenv(KEY_FILE)
    with pytest.raises(InputError, match=f"encrypted with the key {key.id}, but no key is set"):
        use(closed)
    Path(key.origin).unlink()  # without its key, the gallery is lost
    monkeypatch.setenv(KEY_FILE, key.origin)
    with pytest.raises(InputError, match="cannot be read"):
        use(closed)


def test_nonces_never_repeat_and_are_counted(
    opened: Open, people: np.ndarray, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = opened()
    nonces: list[bytes] = []
    seal = sealed_module.SealedStore._seal

    def count(self: Any, plain: bytes, bound: bytes) -> tuple[bytes, bytes]:
        sealed = seal(self, plain, bound)
        nonces.append(sealed[0])
        return sealed

    monkeypatch.setattr(sealed_module.SealedStore, "_seal", count)
    fill(gallery, people)
    assert len(set(nonces)) == len(nonces) == 3 + 4 + 3  # templates, images, checksums
    gallery._store.rows()
    assert gallery._store._seals == len(nonces) + 2  # type: ignore[attr-defined]  # header and first checksum
    monkeypatch.setattr(sealed_module, "_MAX_ENCRYPTIONS", 14)
    gallery.remove(NAMES[0])
    with pytest.raises(StorageError, match="needs another key"):
        gallery.enrol("x", people[9:10], [10.0], media=["a"], sources=["b"])
    assert [entry.identity for entry in gallery.list()] == NAMES[1:]


def schema_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql <> ''"))


def test_resealing_encrypts_changes_the_key_and_decrypts(
    opened: Open, people: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_TAIL", 2)
    (tmp_path / "keys").mkdir()
    first_key, second_key = (make_key(tmp_path / "keys" / name) for name in ("1", "2"))
    path, secrets = tmp_path / "people", secrets_of(people)
    with opened() as gallery:
        fill(gallery, people)
        gallery.remove(NAMES[0], erase=False)
    assert (tmp_path / "people-search").exists()
    expected, schema = use(path), schema_of(path)
    with pytest.raises(InputError, match="no gallery"):
        reseal_gallery(tmp_path / "none", None, first_key)
    with opened(), pytest.raises(StorageError, match="another process has the gallery open"):
        reseal_gallery(path, None, first_key)
    for key, new_key in ((None, first_key), (first_key, second_key), (second_key, None)):
        assert reseal_gallery(path, key, new_key) and not reseal_gallery(path, key, new_key)
        assert {file.name for file in tmp_path.iterdir()} == {"keys", "people"}
        assert count_visible(tmp_path, secrets) == 0 if new_key else count_visible(tmp_path, secrets) > 4
        if new_key:
            monkeypatch.setenv(KEY_FILE, new_key.origin)
        else:
            monkeypatch.delenv(KEY_FILE)
        assert use(path) == expected
        if new_key:
            (tmp_path / "people-search").unlink(missing_ok=True)
            with pytest.raises(InputError, match="encrypted with the key"):
                wrong_key = second_key if new_key is first_key else first_key
                reseal_gallery(path, None if key else second_key, wrong_key)
    assert schema_of(path) == schema and not (tmp_path / "none").exists()


def test_encryption_stops_if_the_plain_search_file_cannot_be_deleted(
    opened: Open, people: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_TAIL", 2)
    (tmp_path / "keys").mkdir()
    key, path = make_key(tmp_path / "keys" / "key"), tmp_path / "people"
    with opened() as gallery:
        fill(gallery, people)
    expected, search_file = use(path), tmp_path / "people-search"
    plain, unlink = search_file.read_bytes(), Path.unlink

    def fail(file: Path, *arguments: Any, **options: Any) -> None:
        if file == search_file:
            raise OSError(errno.EIO, "Input/output error")
        unlink(file, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail)
        with pytest.raises(StorageError, match=r"people-search: .* could not be deleted \(Input"):
            reseal_gallery(path, None, key)
    assert use(path) == expected and reseal_gallery(path, None, key)
    search_file.write_bytes(plain)  # the deletion did not survive a power cut
    assert not reseal_gallery(path, None, key) and count_visible(tmp_path, secrets_of(people)) == 0
    assert not search_file.exists()


@pytest.mark.slow
def test_interrupted_resealing_can_be_repeated(
    opened: Open, people: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    key, path = make_key(tmp_path / "keys" / "key"), tmp_path / "people"
    with opened() as gallery:
        fill(gallery, people)
    content, expected, ask = path.read_bytes(), use(path), Store._ask
    n_interruptions = 0
    for limit in range(1, 200):
        path.write_bytes(content)
        count = 0

        def interrupt(self: Store, *arguments: Any, limit: int = limit) -> list[Any]:
            nonlocal count
            count += 1
            if count == limit:
                raise KeyboardInterrupt
            return ask(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "_ask", interrupt)
            try:
                reseal_gallery(path, None, key)
                break
            except KeyboardInterrupt:
                n_interruptions += 1
        reseal_gallery(path, None, key)
        assert count_visible(tmp_path, secrets_of(people)) == 0
        with monkeypatch.context() as patched:
            patched.setenv(KEY_FILE, key.origin)
            assert use(path) == expected
    assert n_interruptions > 20 and limit < 199


START = """
import os, sys
import numpy as np
from spherecf.common.sealing import read_key
from spherecf.gallery import Gallery, reseal_gallery
from spherecf.gallery.store import Store
from tests.gallery.conftest import near, unit
from tests.gallery.test_sealed import fill
people = unit(np.random.default_rng(7), 40)
ask, count, limit = Store._ask, 0, int(sys.argv[2])
def stop(self, *what):
    global count
    count += 1
    if count == limit:
        os.kill(os.getpid(), 9)
    return ask(self, *what)
Store._ask = stop
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [15, 25, 35, 45, 55, 70])
def test_kill_9_during_enrolment(people: np.ndarray, key: Key, tmp_path: Path, limit: int) -> None:
    script = f"""
with Gallery.open(sys.argv[1], model="{MODEL}", backbone="{BACKBONE}", dim={DIM}, radius={RADIUS}) as gallery:
    fill(gallery, people)
    gallery.remove("{NAMES[0]}", erase=False)
    gallery.compact()
"""
    path = tmp_path / "people"
    completed = subprocess.run([sys.executable, "-c", START + script, str(path), str(limit)])
    assert completed.returncode == -9
    assert count_visible(tmp_path, secrets_of(people)) == 0
    names = [entry.identity for entry in use(path)[0]]
    assert names in (NAMES[:0], NAMES[:1], NAMES[:2], NAMES, NAMES[1:])


@pytest.mark.slow
@pytest.mark.parametrize("limit", [25, 30, 35, 40, 45, 50])
def test_kill_9_during_encryption(
    opened: Open, people: np.ndarray, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    key, path = make_key(tmp_path / "keys" / "key"), tmp_path / "people"
    with opened() as gallery:
        fill(gallery, people)
    expected = use(path)
    script = f"reseal_gallery(sys.argv[1], None, read_key('{key.origin}'))"
    completed = subprocess.run([sys.executable, "-c", START + script, str(path), str(limit)])
    assert completed.returncode == -9
    reseal_gallery(path, None, read_key(key.origin))
    assert count_visible(tmp_path, secrets_of(people)) == 0
    monkeypatch.setenv(KEY_FILE, key.origin)
    assert use(path) == expected
