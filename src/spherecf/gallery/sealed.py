"""An encrypted gallery: SQLite sees sealed rows only, so neither its file nor its log holds anything else.

A template is sealed with AES-256-GCM under a key of this file, with a random nonce; so is each of its
images, the header, and the sum below. What is sealed is bound to its place: a template to its row and handle,
an image to its template's nonce and its place. The handle, which a person is looked up by, is a keyed hash of
the name (HMAC-SHA256). What a search reads is held in memory only.

So that no row can be taken out, or put back from an older copy, a sealed sum over keyed hashes of all rows
and their nonces goes with every change and is compared whenever the rows are listed (a multiset hash: Clarke,
Devadas, van Dijk, Gassend and Suh, ASIACRYPT 2003). An older copy of the whole file cannot be told from a
newer one.
"""

import hmac
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.sealing import NONCE, SALT, Key, fitting, opened, refuse_plain
from spherecf.errors import InputError, StorageError
from spherecf.gallery.rows import FORMAT, Header, Images, Template
from spherecf.gallery.store import APPLICATION, People, Store, blob

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = 2  # of an encrypted gallery; the header that is sealed in it has the version of a gallery
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sealed (
    row INTEGER PRIMARY KEY AUTOINCREMENT, identity TEXT NOT NULL, nonce BLOB NOT NULL, content BLOB NOT NULL
);
CREATE UNIQUE INDEX by_identity ON sealed (identity, nonce);
CREATE TABLE sealed_images (
    row INTEGER NOT NULL REFERENCES sealed ON DELETE CASCADE, place INTEGER NOT NULL, nonce BLOB NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (row, place)
) WITHOUT ROWID;
"""
_PAD = 256  # bytes; the length of a name does not show
_MOST = 1 << 32  # sealed with one key and random nonces (NIST SP 800-38D, section 8.3)
_SUM = 1 << 256


class SealedStore(Store):
    """A store whose templates and images are encrypted; see the head of this file.

    Raises:
        StorageError, FileFormatError: as `Store`; also for what was altered, exchanged, taken out, put back.
        MissingDependencyError: the package cryptography is not installed.

    Example:
        >>> store = SealedStore(":memory:", 2, Key(bytes(32), "an example"))
        >>> store.create({"dim": 2})
        >>> mu = np.eye(2, dtype=np.float32)
        >>> facts = {"medium": "a", "source": "a.jpg", "sources": ["a.jpg"], "warnings": []}
        >>> facts |= dict.fromkeys(("enrolled", "changed"), "2026-01-01")
        >>> _ = store.insert([Template("1", "Ann", mu[0], 3.0, 1, 1, facts)])
        >>> store.find("Ann").kappa, store.counts(), any("Ann" in line for line in store._db.iterdump())
        (3.0, (1, 1), False)
    """

    _schema, _table, _columns = _SCHEMA, "sealed", "identity, nonce, content, row"

    def __init__(self, uri: str, dim: int, key: Key, timeout: float = 10.0) -> None:
        self._key, self.encrypted_with = key, key.id
        self._cipher: AESGCM | None = None  # once the salt is known
        self._sum = self._seals = 0
        super().__init__(uri, dim, timeout)

    @property
    def search_file(self) -> None:
        """None: what a search reads is held in memory only."""
        return None

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        outside = super().header()
        if outside is None:
            return None
        try:
            salt, sealed = (bytes.fromhex(outside[name]) for name in ("salt", "header"))
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged("its header is not whole") from error
        self._unlock(salt)
        return self._json(self._opened(sealed[:NONCE], sealed[NONCE:], b"header").decode())

    def counts(self) -> tuple[int, int]:
        """Number of templates, and of their images."""
        ((people, single, images),) = self._ask(
            "SELECT (SELECT count(*) FROM sealed), count(DISTINCT row), count(*) FROM sealed_images"
        )
        return people, people - single + images

    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of all templates, in order; their sum is compared.

        They are read from the index by handle, whose order is checked as well: then everybody is found in it.
        """
        *found, (_, _, state) = self._ask(
            "SELECT identity, row, nonce FROM sealed INDEXED BY by_identity"
            " UNION ALL SELECT 0, 0, (SELECT value FROM facts WHERE name = 'state')"
        )
        self._read_state(state)
        if sum(self._mark(*one) for one in found) % _SUM != self._sum:
            raise self.damaged("templates were taken out or put back by something else than SphereCF")
        if any(one[0] >= other[0] for one, other in pairwise(found)):
            raise self.damaged("its index is not in order")
        return np.sort(np.fromiter((row for _, row, _ in found), np.int64, len(found)))

    def people(self, rows: NDArray[np.int64]) -> People:
        """What a search needs of some templates, in the order of the rows; removed ones are left out."""
        found = super().people(rows)
        if len(found.rows) < len(rows):
            self._check_seen(found.rows, rows)
        return found

    def templates(self) -> Iterator[list[Template]]:
        """All templates in the order of their rows, page by page."""
        expected, seen = self.rows(), list[int]()
        for page in super().templates():
            seen += [one.row for one in page]
            yield page
        self._check_seen(np.array(seen, np.int64), expected)

    def _check_seen(self, seen: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
        """Refuse that a row is missing which was not removed meanwhile."""
        missing = np.setdiff1d(expected, seen)
        if len(missing) and np.isin(missing, self.rows()).any():
            raise self.damaged("a template is listed, but is not in its place")

    def compact(self) -> None:
        """Check the file and everything in it, and write it anew without what was removed."""
        for page in self.templates():
            for one in page:
                self.images(one)
        super().compact()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with super()._change():
            if self._cipher is not None:
                self._read_state(self.fact("state"))
            yield
            state = json.dumps({"sum": f"{self._sum % _SUM:x}", "seals": self._seals + 1})
            if self._seals >= _MOST:
                raise StorageError(
                    f"{self.uri}: the gallery was written to so often that it needs another key; give it one "
                    "with `spherecf key change`"
                )
            sealed = b"".join(self._seal(state.encode(), b"state"))
            self._ask("INSERT OR REPLACE INTO facts VALUES ('state', ?)", (sealed.hex(),))

    def _read_state(self, text: object) -> None:
        try:
            sealed = bytes.fromhex(str(text))
            state = json.loads(self._opened(sealed[:NONCE], sealed[NONCE:], b"state"))
            self._sum, self._seals = int(state["sum"], 16), int(state["seals"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged("the sum over its templates is not whole") from error

    def _lay_out(self, facts: dict[str, Any]) -> None:
        salt = secrets.token_bytes(SALT)
        self._unlock(salt)
        self._sum = self._seals = 0
        sealed = b"".join(self._seal(json.dumps(facts).encode(), b"header"))
        outside = {"format": FORMAT, "version": _VERSION, "cipher": "AES-256-GCM", "key": self._key.id}
        super()._lay_out(outside | {"salt": salt.hex(), "header": sealed.hex()})

    def _unlock(self, salt: bytes) -> None:
        self._cipher = self._key.cipher(salt, "gallery")
        self._names, self._sums = (self._key.derive(salt, f"gallery {use}") for use in ("names", "sum"))

    def _handle(self, identity: str) -> str:
        return hmac.digest(self._names, identity.encode(), "sha256").hex()

    def _mark(self, handle: object, row: int, nonce: object) -> int:
        if not isinstance(nonce, bytes) or not isinstance(handle, str):
            raise self.damaged("a row has no handle or no nonce")
        return int.from_bytes(hmac.digest(self._sums, _bound(handle, row, nonce), "sha256"), "big")

    def _delete(self, identity: str) -> None:
        found = self._ask(
            "SELECT identity, row, nonce FROM sealed WHERE identity = ?", (self._handle(identity),)
        )
        self._sum -= sum(self._mark(*one) for one in found)
        super()._delete(identity)

    def _added(self, templates: Sequence[Template]) -> list[int]:
        if twice := self.enrolled([one.identity for one in templates]):
            raise StorageError(f"{self.uri}: {len(twice)} of these people are enrolled already")
        return super()._added(templates)

    def _packed(self, row: int, one: Template) -> tuple[Any, ...]:
        handle, facts = self._handle(one.identity), json.dumps(one.facts)
        inside = [one.id, one.identity, one.kappa, one.images, one.media, facts]
        nonce, content = self._seal(blob(one.mu) + _padded(inside), _bound(handle, row))
        self._sum += self._mark(handle, row, nonce)
        return handle, nonce, content, row

    def _template(self, *columns: Any) -> Template:
        return super()._template(*self._unpacked(*columns))

    def _unpacked(self, handle: object, nonce: object, content: object, row: int) -> tuple[Any, ...]:
        """The columns of a template that is not encrypted."""
        mu, (id, identity, kappa, images, media, facts) = self._parts(
            self._opened(nonce, content, _bound(handle, row)), 6
        )
        return id, identity, mu, kappa, images, media, facts, row

    def _people_rows(self, rows: str) -> list[Any]:
        found = self._ask(
            f"SELECT {self._columns} FROM sealed WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
            (rows,),
        )
        unpacked = (self._unpacked(*columns) for columns in found)
        return [
            (row, id, identity, kappa, images, mu) for id, identity, mu, kappa, images, _, _, row in unpacked
        ]

    def _add_images(self, row: int, images: Images) -> None:
        ((owner,),) = self._ask("SELECT nonce FROM sealed WHERE row = ?", (row,))
        values = []
        for place, mu in enumerate(images.mu):
            inside = [float(images.kappa[place]), images.media[place], images.sources[place]]
            nonce, content = self._seal(blob(mu) + _padded(inside), _bound(owner, place))
            values.append((row, place, nonce, content))
        self._many("INSERT INTO sealed_images (row, place, nonce, content) VALUES (?, ?, ?, ?)", values)

    def _image_rows(self, row: int) -> list[Any]:
        found = self._ask(
            "SELECT sealed.nonce, place, i.nonce, i.content FROM sealed JOIN sealed_images AS i USING (row)"
            " WHERE row = ? ORDER BY place",
            (row,),
        )
        parts = (
            self._parts(self._opened(nonce, content, _bound(owner, place)), 3)
            for owner, place, nonce, content in found
        )
        return [(mu, *inside) for mu, inside in parts]

    def _parts(self, plain: bytes, count: int) -> tuple[bytes, list[Any]]:
        """A direction, and the values behind it."""
        with suppress(ValueError):
            inside = json.loads(plain[4 * self._dim :])
            if isinstance(inside, list) and len(inside) == count:
                return plain[: 4 * self._dim], inside
        raise self.damaged(f"a template is not one of {self._dim} dimensions")

    def _seal(self, plain: bytes, bound: bytes) -> tuple[bytes, bytes]:
        """A fresh nonce, and the cipher text with its tag."""
        assert self._cipher is not None
        self._seals += 1
        nonce = secrets.token_bytes(NONCE)
        return nonce, self._cipher.encrypt(nonce, plain, bound)

    def _opened(self, nonce: object, content: object, bound: bytes) -> bytes:
        plain = None
        if isinstance(nonce, bytes) and isinstance(content, bytes) and len(nonce) == NONCE:
            assert self._cipher is not None
            plain = opened(self._cipher, nonce, content, bound)
        if plain is None:
            raise self.damaged("something in it was altered, or is not in its place")
        return plain


def open_store(uri: str, dim: int, key: Key | None, timeout: float = 10.0) -> Store:
    """Open the store in a file; a new one is encrypted if there is a key.

    Args:
        uri, dim, timeout: as `Store`.
        key: the key in use.

    Raises:
        InputError: encrypted with another key, or not encrypted although there is a key.
        StorageError, FileFormatError, MissingDependencyError: as `SealedStore`.
    """
    plain = Store(uri, dim, timeout)
    try:
        header = plain.header()
        found = _sealed_with(header)
        if found is None and (header is not None or key is None):
            refuse_plain(uri, key)
            return plain
        key = fitting(key, uri, found or (key and key.id) or "")
    except BaseException:
        plain.close()
        raise
    plain.close()
    return SealedStore(uri, dim, key, timeout)


def reseal_gallery(path: str | Path, key: Key | None, new: Key | None) -> bool:
    """Encrypt a gallery with another key, or for the first time, or decrypt it, in one change.

    Afterwards the file is written anew, so that it holds nothing of before. After an interruption the same
    call finishes.

    Args:
        path: of the gallery.
        key: that it is encrypted with; None if it is not.
        new: that it shall be encrypted with; None to decrypt it.

    Returns:
        Whether there was more to do than to write it anew.

    Raises:
        InputError: there is no gallery, or it has another key.
        StorageError: another process has it open, or it cannot be written.
        FileFormatError: it is damaged.
    """
    uri, wanted = str(path), new and new.id
    header = None
    if Path(uri).exists():
        with closing(Store(uri, 0)) as outside:
            header = outside.header()
    if header is None:
        raise InputError(f"{uri}: there is no gallery here")
    done = _sealed_with(header) == wanted
    if done:
        key = new
    with closing(open_store(uri, 0, key)) as old:
        facts = old.header() or {}
    dim = Header.read(facts, uri).dim
    with closing(Store(uri, dim) if new is None else SealedStore(uri, dim, new)) as target:
        target.claim_alone()
        with closing(open_store(uri, dim, key)) as old:
            old.header()
            if not done:
                for name in (f"{uri}-search", f"{uri}-search-part"):
                    Path(name).unlink(missing_ok=True)
                target.replace(facts, old)
        target.header()
        target.erase()
        target.compact()
    return not done


def _sealed_with(header: dict[str, Any] | None) -> str | None:
    """Id of the key of an encrypted gallery."""
    sealed = header is not None and header.get("version") == _VERSION
    return str(header.get("key")) if header and sealed else None


def _bound(*what: object) -> bytes:
    """What a row is authenticated with, as text that only this row has."""
    return json.dumps([one.hex() if isinstance(one, bytes) else one for one in what]).encode()


def _padded(inside: list[Any]) -> bytes:
    text = json.dumps(inside).encode()
    return text + b" " * (-len(text) % _PAD)
