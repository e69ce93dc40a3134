"""Storage of a gallery in a SQLite file."""

import json
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import Lock, check_destination, is_on_read_only_disk, make_folder
from spherecf.errors import FileFormatError, StorageError
from spherecf.gallery.rows import Images, Template

APPLICATION = 0x53434647  # "SCFG": application id that distinguishes galleries from other SQLite files
_PAGE_BYTES = 8192  # holds three templates of 512 dimensions
_PAGE = 10_000  # templates per read
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE templates (
    row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, identity TEXT NOT NULL UNIQUE,
    images INTEGER NOT NULL, media INTEGER NOT NULL, kappa REAL NOT NULL, facts TEXT NOT NULL,
    mu BLOB NOT NULL
);
CREATE INDEX by_images ON templates (images);
CREATE TABLE images (
    row INTEGER NOT NULL REFERENCES templates ON DELETE CASCADE, place INTEGER NOT NULL,
    medium TEXT NOT NULL, source TEXT NOT NULL, kappa REAL NOT NULL, mu BLOB NOT NULL,
    PRIMARY KEY (row, place)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, eq=False)
class People:
    """Templates without their facts."""

    rows: NDArray[np.int64]
    """(n,) row numbers, increasing."""
    ids: Sequence[str]
    """(n,) ids of the templates."""
    names: Sequence[str]
    """(n,) names of the people."""
    mu: NDArray[np.float32]
    """(n, dim) directions."""
    kappa: NDArray[np.float64]
    """(n,) concentrations."""
    images: Sequence[int]
    """(n,) number of images."""


class Store:
    """Templates and their images in a SQLite file.

    Every change is one transaction, which is durable when the method returns. Readers see only complete
    changes. The first change acquires a lock, which is held until `close`. Freed parts of the file are
    overwritten with zeros (SQLite's secure_delete).

    Args:
        uri: path of the file, created if missing; ":memory:" for a store in memory.
        dim: dimension of the directions.
        timeout: seconds to wait for a change by another process to end.

    Raises:
        StorageError: the file cannot be opened.
        FileFormatError: the file is not a gallery.

    Example:
        >>> store = Store(":memory:", 2)
        >>> store.header() is None
        True
        >>> store.create({"dim": 2})
        >>> mu = np.eye(2, dtype=np.float32)
        >>> facts = {"medium": "a", "source": "a.jpg", "sources": ["a.jpg"], "warnings": []}
        >>> facts |= dict.fromkeys(("enrolled", "changed"), "2026-01-01")
        >>> _ = store.insert([Template("1", "Ann", mu[0], 3.0, 1, 1, facts)])
        >>> store.find("Ann").kappa, store.counts()
        (3.0, (1, 1))
    """

    embedded = True
    """Whether the store is a local file."""

    encrypted_with: str | None = None
    """Id of the key, if the store is encrypted."""

    _schema, _table = _SCHEMA, "templates"
    _columns = "id, identity, mu, kappa, images, media, facts, row"

    def __init__(self, uri: str, dim: int, timeout: float = 10.0) -> None:
        self.uri, self._dim, self._lockable = uri, dim, uri != ":memory:"
        self._held: Lock | None = None
        try:
            if self._lockable:
                _check_file(Path(uri))
            path = self._path = Path(uri).resolve()  # one lock and search file, whatever links lead here
            read_only = self._lockable and _is_read_only(path)
            location = f"{path.as_uri()}?immutable=1" if read_only else uri
            self._db = sqlite3.connect(
                location, timeout, isolation_level=None, check_same_thread=False, uri=read_only
            )
        except sqlite3.Error as error:
            raise self._failure(error) from error
        except StorageError:  # a StorageError is also an OSError
            raise
        except OSError as error:
            raise StorageError(f"{uri}: cannot be opened ({error.strerror})") from error
        try:
            for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "fullfsync = ON"):
                self._ask(f"PRAGMA {pragma}")
            self._version = self._ask("PRAGMA data_version")
        except BaseException:
            self.close()
            raise

    @property
    def search_file(self) -> Path | None:
        """File of the search index, next to the gallery; None if the index is held in memory only."""
        return Path(f"{self._path}-search") if self._lockable else None

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        if not self._ask("SELECT 1 FROM sqlite_master"):
            return None  # the file is new, or the process that created it was killed
        if self._ask("PRAGMA application_id") != [(APPLICATION,)]:
            raise FileFormatError(self.uri, "expected a gallery, got another SQLite database.")
        return self._json(self.fact("header"))

    def create(self, facts: dict[str, Any]) -> None:
        """Create the gallery."""
        self.claim()
        self._ask(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._ask("PRAGMA journal_mode = WAL")
        with self._change():
            self._create_tables(facts)

    def fact(self, name: str) -> str:
        """A fact about the gallery; "" if unknown."""
        found = self._ask("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0][0]) if found else ""

    def set_fact(self, name: str, value: str) -> None:
        """Store a fact."""
        with self._change():
            self._ask("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def claim(self) -> None:
        """Lock the gallery against writes by other processes until `close`.

        Raises:
            StorageError: another process holds the lock.
        """
        if self._held is None and self._lockable:
            self._held = Lock(
                f"{self._path}-lock", f"{self.uri}: the gallery",
                "only one process at a time can write to it. Wait for that process, or use a Milvus server "
                "for several writers",
            )  # fmt: skip

    def claim_alone(self) -> None:
        """Lock the gallery as `claim` does, and check that no other process has it open.

        Raises:
            StorageError: another process holds the lock, or has the gallery open.
        """
        self.claim()
        try:
            self._ask("PRAGMA journal_mode = DELETE")
            self._ask("PRAGMA journal_mode = WAL")
        except StorageError as error:
            raise StorageError(
                f"{self.uri}: another process has the gallery open; end that process first"
            ) from error

    @property
    def claimed(self) -> bool:
        """Whether this process holds the lock."""
        return self._held is not None

    def release(self) -> None:
        """Release the lock. May be called twice."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def refresh(self) -> bool:
        """Whether other processes have changed the gallery since the last call."""
        before, self._version = self._version, self._ask("PRAGMA data_version")
        return before != self._version

    def counts(self) -> tuple[int, int]:
        """(number of templates, number of their images)."""
        ((people, images),) = self._ask("SELECT count(*), total(images) FROM templates")
        return people, int(images)

    def find(self, identity: str) -> Template | None:
        """The template of a person; None if the person is not enrolled."""
        result = self._ask(
            f"SELECT {self._columns} FROM {self._table} WHERE identity = ?", (self._handle(identity),)
        )
        return self._template(*result[0]) if result else None

    def enrolled(self, identities: Sequence[str]) -> set[str]:
        """The subset of these people who are enrolled."""
        identity_of = {self._handle(identity): identity for identity in identities}
        result = self._ask(
            f"SELECT identity FROM {self._table} WHERE identity IN (SELECT value FROM json_each(?))",
            (json.dumps(list(identity_of)),),
        )
        return {identity_of[handle] for (handle,) in result}

    def rows(self) -> NDArray[np.int64]:
        """(n,) row numbers of all templates, increasing."""
        result = self._ask("SELECT row FROM templates INDEXED BY by_images")
        return np.sort(np.fromiter((row for (row,) in result), np.int64, len(result)))

    def first_rows(self, count: int) -> NDArray[np.int64]:
        """(count,) row numbers of the first templates by id, increasing; fewer if there are not so many."""
        result = self._ask("SELECT row FROM templates ORDER BY id LIMIT ?", (count,))
        return np.sort(np.array([row for (row,) in result], np.int64))

    def people(self, rows: NDArray[np.int64]) -> "People":
        """Templates by row number, in order, without their facts. Removed templates are left out."""
        result = self._people_rows(json.dumps(rows.tolist()))
        numbers, ids, names, kappa, images, mu = zip(*result) if result else ((),) * 6
        self._check_columns((*ids, *names), kappa, (*images, *numbers))
        if any(not isinstance(direction, bytes) or len(direction) != 4 * self._dim for direction in mu):
            raise self.damaged("a direction has the wrong size")
        directions = np.frombuffer(bytearray().join(mu), "<f4").reshape(len(mu), self._dim)
        columns = np.array(numbers, np.int64), ids, names, directions, np.array(kappa, np.float64), images
        return People(*columns)

    def templates(self) -> Iterator[list[Template]]:
        """Yield all templates in the order of their rows, in pages."""
        last = 0
        while page := self._ask(
            f"SELECT {self._columns} FROM {self._table} WHERE row > ? ORDER BY row LIMIT {_PAGE}", (last,)
        ):
            yield [self._template(*columns) for columns in page]
            last = page[-1][-1]

    def images(self, template: Template) -> Images:
        """The images of a template.

        Raises:
            FileFormatError: one is missing.
        """
        if template.images == 1:
            return template.only
        result = self._image_rows(template.row)
        if len(result) != template.images:
            raise self.damaged(
                f"expected {template.images} images of {template.identity}, found {len(result)}"
            )
        mu, kappa, media, sources = zip(*result)
        self._check_columns((*media, *sources), kappa)
        directions = np.stack([self._direction(direction) for direction in mu])
        return Images(directions, np.array(kappa, np.float32), media, sources)

    def put(self, template: Template, images: Images) -> int:
        """Store a template and its images, replacing those of the same person; returns the row number."""
        with self._change():
            self._delete(template.identity)
            (row,) = self._insert_templates([template])
            if len(images) > 1:
                self._add_images(row, images)
        return row

    def insert(self, templates: Sequence[Template]) -> list[int]:
        """Store templates of new people, with one image each; returns their row numbers."""
        with self._change():
            return self._insert_templates(templates)

    def remove(self, identity: str) -> None:
        """Remove a person's template and images."""
        with self._change():
            self._delete(identity)

    def replace(self, facts: dict[str, Any], old: "Store") -> None:
        """Replace all content with that of another store on the same file, in one transaction.

        Raises:
            StorageError: the file could not be written; it is unchanged.
        """
        self._ask("PRAGMA foreign_keys = OFF")
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'sqlite_sequence'"
        with self._change():
            for (table,) in self._ask(tables):
                self._ask(f'DROP TABLE "{table}"')
            self._create_tables(facts)
            for page in old.templates():
                for row, template in zip(self._insert_templates(page), page):
                    if template.images > 1:
                        self._add_images(row, old.images(template))

    def erase(self) -> None:
        """Truncate SQLite's write-ahead log, which still contains removed data.

        Raises:
            StorageError: another process is reading from the log.
        """
        ((busy, *_),) = self._ask("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise StorageError(
                f"{self.uri}: removed, but not erased, because another process is reading the gallery; run "
                "`gallery compact` later"
            )

    def compact(self) -> None:
        """Check the file, and rewrite it without removed data."""
        self.claim()
        (result,), *_ = self._ask("PRAGMA integrity_check(1)")
        if result != "ok":
            raise self.damaged(result)
        folder = str(self._path.parent).replace("'", "''")
        self._ask(f"PRAGMA temp_store_directory = '{folder}'")  # keeps templates on the disk of the gallery
        try:
            self._ask("VACUUM")
        finally:
            self._ask("PRAGMA temp_store_directory = ''")
        self.erase()

    def close(self) -> None:
        """Close the file and release the lock. May be called twice."""
        try:
            self._db.close()
        finally:
            self.release()

    def damaged(self, what: str) -> FileFormatError:
        """Return the error to raise if the gallery is damaged."""
        return FileFormatError(self.uri, f"the gallery is damaged: {what}.", "Restore it from a backup.")

    def _create_tables(self, facts: dict[str, Any]) -> None:
        for statement in filter(str.strip, self._schema.split(";")):
            self._ask(statement)
        self._ask("INSERT INTO facts VALUES ('header', ?)", (json.dumps(facts),))

    def _handle(self, identity: str) -> str:
        """The text that identifies a person in the file: here the name, a keyed hash if encrypted."""
        return identity

    def _delete(self, identity: str) -> None:
        self._ask(f"DELETE FROM {self._table} WHERE identity = ?", (self._handle(identity),))

    def _insert_templates(self, templates: Sequence[Template]) -> list[int]:
        ((last,),) = self._ask(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (self._table,)
        )
        rows = list(range(last + 1, last + 1 + len(templates)))
        values = [self._pack(row, template) for row, template in zip(rows, templates)]
        placeholders = ", ".join("?" * len(self._columns.split(",")))
        self._many(f"INSERT INTO {self._table} ({self._columns}) VALUES ({placeholders})", values)
        return rows

    def _pack(self, row: int, template: Template) -> tuple[Any, ...]:
        """Columns of a template, in the order of ``_columns``."""
        facts = json.dumps(template.facts)
        return (
            template.id, template.identity, blob(template.mu), template.kappa, template.images,
            template.media, facts, row,
        )  # fmt: skip

    def _add_images(self, row: int, images: Images) -> None:
        columns = zip(images.mu, images.kappa.tolist(), images.media, images.sources)
        self._many(
            "INSERT INTO images (row, place, mu, kappa, medium, source) VALUES (?, ?, ?, ?, ?, ?)",
            [(row, place, blob(mu), *rest) for place, (mu, *rest) in enumerate(columns)],
        )

    def _people_rows(self, rows: str) -> list[Any]:
        """Read row, id, identity, kappa, images and mu of the templates in a JSON list of row numbers."""
        return self._ask(
            "SELECT row, id, identity, kappa, images, mu FROM templates"
            " WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
            (rows,),
        )

    def _image_rows(self, row: int) -> list[Any]:
        """Read mu, kappa, medium and source of the images of a template, in order."""
        return self._ask("SELECT mu, kappa, medium, source FROM images WHERE row = ? ORDER BY place", (row,))

    def _template(self, *columns: Any) -> Template:
        id, identity, mu, kappa, images, media, facts, row = columns
        self._check_columns((id, identity), (kappa,), (images, media, row))
        parsed_facts = self._parse_facts(facts, single=images == 1)
        return Template(id, identity, self._direction(mu), kappa, images, media, parsed_facts, row)

    def _check_columns(self, texts: Sequence[Any], kappas: Sequence[Any], counts: Sequence[Any] = ()) -> None:
        """Check types and ranges. A damaged page may hold NULL or other types despite the schema."""
        columns = (texts, str), (kappas, float), (counts, int)
        if not (
            all(set(map(type, values)) <= {expected} for values, expected in columns)
            and min(kappas, default=0) >= 0
            and max(kappas, default=0) < math.inf
            and min(counts, default=1) > 0
        ):
            raise self.damaged("a row holds a value of the wrong type or out of range")

    def _direction(self, mu: object) -> NDArray[np.float32]:
        if not isinstance(mu, bytes) or len(mu) != 4 * self._dim:
            size = len(mu) if isinstance(mu, bytes) else 0
            raise self.damaged(f"a direction has {size} bytes instead of {4 * self._dim}")
        return np.frombuffer(mu, "<f4").astype(np.float32)

    def _json(self, text: object) -> dict[str, Any]:
        try:
            facts = json.loads(text) if isinstance(text, str) else None
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise self.damaged(f"{str(text)[:40]!r} is not a JSON object")
        return facts

    def _parse_facts(self, text: object, *, single: bool) -> dict[str, Any]:
        facts = self._json(text)
        lists, texts = (
            ("warnings", "sources"),
            ("enrolled", "changed", *(("medium", "source") if single else ())),
        )
        if not all(_is_list_of_str(facts.get(name)) for name in lists) or not all(
            isinstance(facts.get(name), str) for name in texts
        ):
            raise self.damaged(f"{str(text)[:40]!r} lacks facts of a template")
        return facts

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Transaction around the block: all of its changes are committed, or none."""
        self.claim()
        self._ask("BEGIN IMMEDIATE")
        try:
            yield
            self._ask("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _ask(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeError) as error:
            raise self._failure(error) from error

    def _many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self._db.executemany(statement, rows)
        except (sqlite3.Error, UnicodeError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_NOTADB:
            return FileFormatError(self.uri, "expected the file of a gallery, got another kind of file.")
        if isinstance(error, UnicodeError) or (code or 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
            return self.damaged(str(error))
        return StorageError(
            f"{self.uri}: the gallery cannot be read or written ({error}); completed changes are kept. Check "
            "the free space and the permissions of its folder, then run the same command again"
        )


def _check_file(path: Path) -> None:
    """Check that the path is not a folder, and create the file for its owner only if it is missing."""
    if path.is_dir():
        if (path / "collections").is_dir():
            raise FileFormatError(
                path, "this gallery is a Milvus Lite folder, from an earlier version.",
                f"Copy it to a file with: spherecf gallery migrate {path} NEW",
            )  # fmt: skip
        raise FileFormatError(path, "expected the file of a gallery, got a folder.")
    if not path.exists():
        check_destination(path)
        make_folder(path.parent)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _is_read_only(path: Path) -> bool:
    """Whether a gallery is on a read-only disk. SQLite must then be told that no process writes to it."""
    if not is_on_read_only_disk(path.parent):
        return False
    log = Path(f"{path}-wal")
    return not (log.exists() and log.stat().st_size)


def _is_list_of_str(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def blob(mu: NDArray[np.float32]) -> bytes:
    """Bytes of a direction, as they are stored."""
    return mu.astype("<f4").tobytes()
