"""The rows of a gallery in one SQLite file."""

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

from spherecf.common.files import Lock
from spherecf.errors import FileFormatError, StorageError
from spherecf.gallery.rows import Images, Template

APPLICATION = 0x53434647  # "SCFG": tells a gallery from other SQLite files
_PAGE_BYTES = 8192  # three templates of 512 dimensions
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
    """(n,) in order."""
    ids: Sequence[str]
    """(n,)"""
    names: Sequence[str]
    """(n,)"""
    mu: NDArray[np.float32]
    """(n, dim) directions."""
    kappa: NDArray[np.float64]
    """(n,) concentrations."""
    images: Sequence[int]
    """(n,) images of each."""


class Store:
    """Templates and their images; every change is one transaction, and on the disk on return.

    Readers see whole changes only. The first change takes a lock, which is held until `close`. Freed parts of
    the file are overwritten with zeros (SQLite's secure_delete).

    Args:
        uri: path of the file, made if missing; ":memory:" for none.
        dim: of the directions.
        timeout: seconds to wait for a change of another process to end.

    Raises:
        StorageError: the file cannot be opened.
        FileFormatError: it is no gallery.

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
    """Whether it is a local file."""

    encrypted_with: str | None = None
    """Id of its key, if it is encrypted."""

    _schema, _table = _SCHEMA, "templates"
    _columns = "id, identity, mu, kappa, images, media, facts, row"

    def __init__(self, uri: str, dim: int, timeout: float = 10.0) -> None:
        self.uri, self._dim, self._lockable = uri, dim, uri != ":memory:"
        self._held: Lock | None = None
        try:
            if self._lockable:
                _check_file(Path(uri))
            frozen = self._lockable and _is_frozen(Path(uri))
            where = f"{Path(uri).resolve().as_uri()}?immutable=1" if frozen else uri
            self._db = sqlite3.connect(
                where, timeout, isolation_level=None, check_same_thread=False, uri=frozen
            )
        except sqlite3.Error as error:
            raise self._failure(error) from error
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
        """The file beside it that a search reads; None if that is held in memory only."""
        return Path(f"{self.uri}-search") if self._lockable else None

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        if not self._ask("SELECT 1 FROM sqlite_master"):
            return None  # new, or its maker was killed
        if self._ask("PRAGMA application_id") != [(APPLICATION,)]:
            raise FileFormatError(self.uri, "expected a gallery, got another SQLite database.")
        return self._json(self.fact("header"))

    def create(self, facts: dict[str, Any]) -> None:
        """Create the gallery."""
        self.claim()
        self._ask(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._ask("PRAGMA journal_mode = WAL")
        with self._change():
            self._lay_out(facts)

    def fact(self, name: str) -> str:
        """A fact about the gallery; "" if unknown."""
        found = self._ask("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0][0]) if found else ""

    def set_fact(self, name: str, value: str) -> None:
        """Store a fact."""
        with self._change():
            self._ask("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def claim(self) -> None:
        """Keep other processes from writing until `close`.

        Raises:
            StorageError: another process holds the gallery.
        """
        if self._held is None and self._lockable:
            self._held = Lock(
                f"{self.uri}-lock", f"{self.uri}: the gallery",
                "one process at a time can write to it. Wait for it, or use a Milvus server for several",
            )  # fmt: skip

    def claim_alone(self) -> None:
        """`claim`, and make sure that no other process reads, either.

        Raises:
            StorageError: another process holds the gallery, or has it open.
        """
        self.claim()
        try:
            self._ask("PRAGMA journal_mode = DELETE")
            self._ask("PRAGMA journal_mode = WAL")
        except StorageError as error:
            raise StorageError(f"{self.uri}: another process has the gallery open; end it first") from error

    @property
    def claimed(self) -> bool:
        """Whether this process keeps others from writing."""
        return self._held is not None

    def release(self) -> None:
        """Let others write; may be called twice."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def refresh(self) -> bool:
        """Whether others have changed the gallery since the last call."""
        before, self._version = self._version, self._ask("PRAGMA data_version")
        return before != self._version

    def counts(self) -> tuple[int, int]:
        """Number of templates, and of their images."""
        ((people, images),) = self._ask("SELECT count(*), total(images) FROM templates")
        return people, int(images)

    def find(self, identity: str) -> Template | None:
        """The template of a person."""
        found = self._ask(
            f"SELECT {self._columns} FROM {self._table} WHERE identity = ?", (self._handle(identity),)
        )
        return self._template(*found[0]) if found else None

    def enrolled(self, identities: Sequence[str]) -> set[str]:
        """Those of these people who are enrolled."""
        names = {self._handle(identity): identity for identity in identities}
        found = self._ask(
            f"SELECT identity FROM {self._table} WHERE identity IN (SELECT value FROM json_each(?))",
            (json.dumps(list(names)),),
        )
        return {names[name] for (name,) in found}

    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of all templates, in order."""
        found = self._ask("SELECT row FROM templates INDEXED BY by_images")
        return np.sort(np.fromiter((row for (row,) in found), np.int64, len(found)))

    def people(self, rows: NDArray[np.int64]) -> "People":
        """What a search needs of some templates, in the order of the rows; removed ones are left out."""
        found = self._people_rows(json.dumps(rows.tolist()))
        numbers, ids, names, kappa, images, mu = zip(*found) if found else ((),) * 6
        self._check_columns((*ids, *names), kappa, (*images, *numbers))
        if any(not isinstance(one, bytes) or len(one) != 4 * self._dim for one in mu):
            raise self.damaged("directions of several sizes")
        directions = np.frombuffer(bytearray().join(mu), "<f4").reshape(len(mu), self._dim)
        columns = np.array(numbers, np.int64), ids, names, directions, np.array(kappa, np.float64), images
        return People(*columns)

    def templates(self) -> Iterator[list[Template]]:
        """All templates in the order of their rows, page by page."""
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
        found = self._image_rows(template.row)
        if len(found) != template.images:
            raise self.damaged(f"{len(found)} of {template.images} images of {template.identity} are there")
        mu, kappa, media, sources = zip(*found)
        self._check_columns((*media, *sources), kappa)
        return Images(
            np.stack([self._direction(one) for one in mu]), np.array(kappa, np.float32), media, sources
        )  # fmt: skip

    def put(self, template: Template, images: Images) -> int:
        """Store a template and its images in place of those of the same person; returns its row."""
        with self._change():
            self._delete(template.identity)
            (row,) = self._added([template])
            if len(images) > 1:
                self._add_images(row, images)
        return row

    def insert(self, templates: Sequence[Template]) -> list[int]:
        """Store templates of one image each, of new people; returns their rows."""
        with self._change():
            return self._added(templates)

    def remove(self, identity: str) -> None:
        """Remove a person's template and images."""
        with self._change():
            self._delete(identity)

    def replace(self, facts: dict[str, Any], old: "Store") -> None:
        """Put the content of another store on the same file in place of all that there is, in one change.

        Raises:
            StorageError: it could not be written; it is unchanged.
        """
        self._ask("PRAGMA foreign_keys = OFF")
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'sqlite_sequence'"
        with self._change():
            for (table,) in self._ask(tables):
                self._ask(f'DROP TABLE "{table}"')
            self._lay_out(facts)
            for page in old.templates():
                for row, one in zip(self._added(page), page):
                    if one.images > 1:
                        self._add_images(row, old.images(one))

    def erase(self) -> None:
        """Empty SQLite's log, which still holds what was removed.

        Raises:
            StorageError: another process is reading from the log.
        """
        ((busy, *_),) = self._ask("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise StorageError(
                f"{self.uri}: removed, but not erased: another process reads it; compact it later"
            )

    def compact(self) -> None:
        """Check the file, and write it anew without what was removed."""
        self.claim()
        (found,), *_ = self._ask("PRAGMA integrity_check(1)")
        if found != "ok":
            raise self.damaged(found)
        folder = str(Path(self.uri).resolve().parent).replace("'", "''")
        self._ask(f"PRAGMA temp_store_directory = '{folder}'")  # templates stay on their disk
        try:
            self._ask("VACUUM")
        finally:
            self._ask("PRAGMA temp_store_directory = ''")
        self.erase()

    def close(self) -> None:
        """Close the file and release the lock; may be called twice."""
        try:
            self._db.close()
        finally:
            self.release()

    def damaged(self, what: str) -> FileFormatError:
        """The error to raise for damage."""
        return FileFormatError(self.uri, f"the gallery is damaged: {what}.", "Restore it from a backup.")

    def _lay_out(self, facts: dict[str, Any]) -> None:
        for statement in filter(str.strip, self._schema.split(";")):
            self._ask(statement)
        self._ask("INSERT INTO facts VALUES ('header', ?)", (json.dumps(facts),))

    def _handle(self, identity: str) -> str:
        """What stands for a person in the file."""
        return identity

    def _delete(self, identity: str) -> None:
        self._ask(f"DELETE FROM {self._table} WHERE identity = ?", (self._handle(identity),))

    def _added(self, templates: Sequence[Template]) -> list[int]:
        ((last,),) = self._ask(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (self._table,)
        )
        rows = list(range(last + 1, last + 1 + len(templates)))
        values = [self._packed(row, one) for row, one in zip(rows, templates)]
        marks = ", ".join("?" * len(self._columns.split(",")))
        self._many(f"INSERT INTO {self._table} ({self._columns}) VALUES ({marks})", values)
        return rows

    def _packed(self, row: int, one: Template) -> tuple[Any, ...]:
        """The columns of a template."""
        facts = json.dumps(one.facts)
        return one.id, one.identity, blob(one.mu), one.kappa, one.images, one.media, facts, row

    def _add_images(self, row: int, images: Images) -> None:
        columns = zip(images.mu, images.kappa.tolist(), images.media, images.sources)
        self._many(
            "INSERT INTO images (row, place, mu, kappa, medium, source) VALUES (?, ?, ?, ?, ?, ?)",
            [(row, place, blob(mu), *rest) for place, (mu, *rest) in enumerate(columns)],
        )

    def _people_rows(self, rows: str) -> list[Any]:
        """row, id, identity, kappa, images and mu of templates whose rows stand in a JSON list, in order."""
        return self._ask(
            "SELECT row, id, identity, kappa, images, mu FROM templates"
            " WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
            (rows,),
        )

    def _image_rows(self, row: int) -> list[Any]:
        """mu, kappa, medium and source of the images of a template, in order."""
        return self._ask("SELECT mu, kappa, medium, source FROM images WHERE row = ? ORDER BY place", (row,))

    def _template(self, *columns: Any) -> Template:
        id, identity, mu, kappa, images, media, facts, row = columns
        self._check_columns((id, identity), (kappa,), (images, media, row))
        known = self._facts_of(facts, single=images == 1)
        return Template(id, identity, self._direction(mu), kappa, images, media, known, row)

    def _check_columns(self, texts: Sequence[Any], kappas: Sequence[Any], counts: Sequence[Any] = ()) -> None:
        """A damaged page may hold NULL, or a value of any type, where the schema forbids it."""
        kinds = (texts, str), (kappas, float), (counts, int)
        if not (
            all(set(map(type, values)) <= {kind} for values, kind in kinds)
            and min(kappas, default=0) >= 0
            and max(kappas, default=0) < math.inf
            and min(counts, default=1) > 0
        ):
            raise self.damaged("a row holds values of another kind than it was written with")

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
            raise self.damaged(f"{str(text)[:40]!r} is no JSON object")
        return facts

    def _facts_of(self, text: object, *, single: bool) -> dict[str, Any]:
        facts = self._json(text)
        lists, texts = (
            ("warnings", "sources"),
            ("enrolled", "changed", *(("medium", "source") if single else ())),
        )
        if not all(_all_text(facts.get(name)) for name in lists) or not all(
            isinstance(facts.get(name), str) for name in texts
        ):
            raise self.damaged(f"{str(text)[:40]!r} lacks facts of a template")
        return facts

    @contextmanager
    def _change(self) -> Iterator[None]:
        """All or nothing of what the block writes."""
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
            return FileFormatError(self.uri, "expected the file of a gallery, got something else.")
        if isinstance(error, UnicodeError) or (code or 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
            return self.damaged(str(error))
        return StorageError(f"{self.uri}: the gallery cannot be read or written ({error})")


def _check_file(path: Path) -> None:
    """Refuse a folder, and make the file, for its owner only, if there is none."""
    if path.is_dir():
        if (path / "collections").is_dir():
            raise FileFormatError(
                path, "this gallery is a folder of Milvus Lite, as earlier versions made them.",
                f"Copy it into a file with: spherecf gallery migrate {path} NEW",
            )  # fmt: skip
        raise FileFormatError(path, "expected the file of a gallery, got a folder.")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _is_frozen(path: Path) -> bool:
    """Whether a gallery lies on a read-only disk, where SQLite must be told that nobody writes to it."""
    if os.name != "posix" or not os.statvfs(path.resolve().parent).f_flag & os.ST_RDONLY:
        return False
    log = Path(f"{path}-wal")
    return not (log.exists() and log.stat().st_size)


def _all_text(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def blob(mu: NDArray[np.float32]) -> bytes:
    """A direction as it is stored."""
    return mu.astype("<f4").tobytes()
