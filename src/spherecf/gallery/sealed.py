"""Storage of an encrypted gallery. SQLite gets encrypted rows only, so its file and log contain nothing else.

Each template is encrypted with AES-256-GCM, with a key derived for this file and a random nonce, and so are
each image, the header and the checksum below. The associated data binds each ciphertext to its place: a
template to its row and handle, an image to the nonce of its template and its position. The handle, by which a
person is looked up, is a keyed hash of the name (HMAC-SHA256). The search index is held in memory only.

To detect rows that were deleted, or restored from an older copy, an encrypted checksum over keyed hashes of
all rows and their nonces is updated with every change and verified whenever the rows are listed (a multiset
hash: Clarke, Devadas, van Dijk, Gassend and Suh, ASIACRYPT 2003). An older copy of the whole file cannot be
detected.
"""

import heapq
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

from spherecf.common.files import sync_folder
from spherecf.common.sealing import NONCE, SALT, Key, decrypted, matching_key, reject_plain
from spherecf.errors import FileFormatError, InputError, StorageError
from spherecf.gallery.rows import FORMAT, Header, Images, Template
from spherecf.gallery.store import APPLICATION, People, Store, blob

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = 2  # version of the encrypted format; the encrypted header has the version of the gallery format
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
_PAD_BYTES = 256  # texts are padded to a multiple of this, which hides the length of a name
_MAX_ENCRYPTIONS = 1 << 32  # with one key and random nonces (NIST SP 800-38D, section 8.3)
_CHECKSUM_MODULUS = 1 << 256


class SealedStore(Store):
    """A store whose templates and images are encrypted; see the docstring of this module.

    Raises:
        StorageError: as in `Store`.
        FileFormatError: as in `Store`, or rows were altered, exchanged, deleted or restored by another
        program. MissingDependencyError: the package cryptography is not installed.

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
        self._cipher: AESGCM | None = None  # set when the salt has been read
        self._checksum = self._seals = 0  # _seals: number of encryptions
        super().__init__(uri, dim, timeout)

    @property
    def search_file(self) -> None:
        """None: the search index is held in memory only."""
        return None

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        plain_header = super().header()
        if plain_header is None:
            return None
        version = plain_header.get("version")
        if version != _VERSION:
            problem = f"expected an encrypted gallery of version {_VERSION}, got {version}."
            raise FileFormatError(self.uri, problem, "Update spherecf.")
        try:
            salt, sealed = (bytes.fromhex(plain_header[name]) for name in ("salt", "header"))
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged("its header is incomplete") from error
        self._unlock(salt)
        return self._json(self._decrypt(sealed[:NONCE], sealed[NONCE:], b"header").decode())

    def counts(self) -> tuple[int, int]:
        """(number of templates, number of their images)."""
        ((people, single, images),) = self._ask(
            "SELECT (SELECT count(*) FROM sealed), count(DISTINCT row), count(*) FROM sealed_images"
        )
        return people, people - single + images

    def rows(self) -> NDArray[np.int64]:
        """(n,) row numbers of all templates, increasing. Verifies the checksum.

        The rows are read from the index by handle. Its order is also checked, to make sure that every person
        can be found in it.
        """
        *rows, (_, _, state) = self._ask(
            "SELECT identity, row, nonce FROM sealed INDEXED BY by_identity"
            " UNION ALL SELECT 0, 0, (SELECT value FROM facts WHERE name = 'state')"
        )
        self._read_state(state)
        if sum(self._row_hash(*row) for row in rows) % _CHECKSUM_MODULUS != self._checksum:
            raise self.damaged("templates were deleted or restored by another program than SphereCF")
        if any(first[0] >= second[0] for first, second in pairwise(rows)):
            raise self.damaged("its index is not in order")
        return np.sort(np.fromiter((row for _, row, _ in rows), np.int64, len(rows)))

    def first_rows(self, count: int) -> NDArray[np.int64]:
        """(count,) row numbers of the first templates by id, increasing. Decrypts all templates."""
        rows_by_id = ((template.id, template.row) for page in self.templates() for template in page)
        return np.sort(np.array([row for _, row in heapq.nsmallest(count, rows_by_id)], np.int64))

    def people(self, rows: NDArray[np.int64]) -> People:
        """Templates by row number, in order, without their facts. Removed templates are left out."""
        people = super().people(rows)
        if len(people.rows) < len(rows):
            self._check_complete(people.rows, rows)
        return people

    def templates(self) -> Iterator[list[Template]]:
        """Yield all templates in the order of their rows, in pages."""
        expected, seen = self.rows(), list[int]()
        for page in super().templates():
            seen += [template.row for template in page]
            yield page
        self._check_complete(np.array(seen, np.int64), expected)

    def _check_complete(self, seen: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
        """Raise an error if an expected row is missing that was not removed in the meantime."""
        missing = np.setdiff1d(expected, seen)
        if len(missing) and np.isin(missing, self.rows()).any():
            raise self.damaged("a template is listed but missing")

    def compact(self) -> None:
        """Check the file and all templates and images, and rewrite the file without removed data."""
        for page in self.templates():
            for template in page:
                self.images(template)
        super().compact()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with super()._change():
            if self._cipher is not None:
                self._read_state(self.fact("state"))
            yield
            checksum = self._checksum % _CHECKSUM_MODULUS
            state = json.dumps({"sum": f"{checksum:x}", "seals": self._seals + 1})
            if self._seals >= _MAX_ENCRYPTIONS:
                raise StorageError(
                    f"{self.uri}: the gallery has been written so often that it needs another key; change "
                    "the key with `spherecf key change`"
                )
            sealed = b"".join(self._seal(state.encode(), b"state"))
            self._ask("INSERT OR REPLACE INTO facts VALUES ('state', ?)", (sealed.hex(),))

    def _read_state(self, text: object) -> None:
        try:
            sealed = bytes.fromhex(str(text))
            state = json.loads(self._decrypt(sealed[:NONCE], sealed[NONCE:], b"state"))
            self._checksum, self._seals = int(state["sum"], 16), int(state["seals"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged("the checksum over its templates is incomplete") from error

    def _create_tables(self, facts: dict[str, Any]) -> None:
        salt = secrets.token_bytes(SALT)
        self._unlock(salt)
        self._checksum = self._seals = 0
        sealed = b"".join(self._seal(json.dumps(facts).encode(), b"header"))
        plain_header = {"format": FORMAT, "version": _VERSION, "cipher": "AES-256-GCM", "key": self._key.id}
        super()._create_tables(plain_header | {"salt": salt.hex(), "header": sealed.hex()})

    def _unlock(self, salt: bytes) -> None:
        """Derive the keys of this file."""
        self._cipher = self._key.cipher(salt, "gallery")
        self._name_key, self._checksum_key = (
            self._key.derive(salt, f"gallery {use}") for use in ("names", "sum")
        )

    def _handle(self, identity: str) -> str:
        return hmac.digest(self._name_key, identity.encode(), "sha256").hex()

    def _row_hash(self, handle: object, row: int, nonce: object) -> int:
        """Keyed hash of a row, a summand of the checksum."""
        if not isinstance(nonce, bytes) or not isinstance(handle, str):
            raise self.damaged("a row has no handle or no nonce")
        message = _associated_data(handle, row, nonce)
        return int.from_bytes(hmac.digest(self._checksum_key, message, "sha256"), "big")

    def _delete(self, identity: str) -> None:
        rows = self._ask(
            "SELECT identity, row, nonce FROM sealed WHERE identity = ?", (self._handle(identity),)
        )
        self._checksum -= sum(self._row_hash(*row) for row in rows)
        super()._delete(identity)

    def _insert_templates(self, templates: Sequence[Template]) -> list[int]:
        if enrolled := self.enrolled([template.identity for template in templates]):
            raise StorageError(f"{self.uri}: {len(enrolled)} of these people are already enrolled")
        return super()._insert_templates(templates)

    def _pack(self, row: int, template: Template) -> tuple[Any, ...]:
        handle, facts = self._handle(template.identity), json.dumps(template.facts)
        values = [
            template.id, template.identity, template.kappa, template.images, template.media, facts,
        ]  # fmt: skip
        nonce, content = self._seal(blob(template.mu) + _pad(values), _associated_data(handle, row))
        self._checksum += self._row_hash(handle, row, nonce)
        return handle, nonce, content, row

    def _template(self, *columns: Any) -> Template:
        return super()._template(*self._unpack(*columns))

    def _unpack(self, handle: object, nonce: object, content: object, row: int) -> tuple[Any, ...]:
        """Decrypt a row to the columns of an unencrypted template."""
        mu, (id, identity, kappa, images, media, facts) = self._split(
            self._decrypt(nonce, content, _associated_data(handle, row)), 6
        )
        return id, identity, mu, kappa, images, media, facts, row

    def _people_rows(self, rows: str) -> list[Any]:
        result = self._ask(
            f"SELECT {self._columns} FROM sealed WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
            (rows,),
        )
        unpacked = (self._unpack(*columns) for columns in result)
        return [
            (row, id, identity, kappa, images, mu) for id, identity, mu, kappa, images, _, _, row in unpacked
        ]

    def _add_images(self, row: int, images: Images) -> None:
        ((template_nonce,),) = self._ask("SELECT nonce FROM sealed WHERE row = ?", (row,))
        encrypted_rows = []
        for place, mu in enumerate(images.mu):
            values = [float(images.kappa[place]), images.media[place], images.sources[place]]
            nonce, content = self._seal(blob(mu) + _pad(values), _associated_data(template_nonce, place))
            encrypted_rows.append((row, place, nonce, content))
        self._many(
            "INSERT INTO sealed_images (row, place, nonce, content) VALUES (?, ?, ?, ?)", encrypted_rows
        )

    def _image_rows(self, row: int) -> list[Any]:
        result = self._ask(
            "SELECT sealed.nonce, place, i.nonce, i.content FROM sealed JOIN sealed_images AS i USING (row)"
            " WHERE row = ? ORDER BY place",
            (row,),
        )
        parts = (
            self._split(self._decrypt(nonce, content, _associated_data(template_nonce, place)), 3)
            for template_nonce, place, nonce, content in result
        )
        return [(mu, *values) for mu, values in parts]

    def _split(self, plain: bytes, count: int) -> tuple[bytes, list[Any]]:
        """Split plaintext into a direction and the ``count`` values after it."""
        with suppress(ValueError):
            values = json.loads(plain[4 * self._dim :])
            if isinstance(values, list) and len(values) == count:
                return plain[: 4 * self._dim], values
        raise self.damaged(f"a template does not have {self._dim} dimensions")

    def _seal(self, plain: bytes, associated_data: bytes) -> tuple[bytes, bytes]:
        """Encrypt; returns a random nonce, and the ciphertext with its tag."""
        assert self._cipher is not None
        self._seals += 1
        nonce = secrets.token_bytes(NONCE)
        return nonce, self._cipher.encrypt(nonce, plain, associated_data)

    def _decrypt(self, nonce: object, content: object, associated_data: bytes) -> bytes:
        plain = None
        if isinstance(nonce, bytes) and isinstance(content, bytes) and len(nonce) == NONCE:
            assert self._cipher is not None
            plain = decrypted(self._cipher, nonce, content, associated_data)
        if plain is None:
            raise self.damaged("a part of it was altered or moved")
        return plain


def open_store(uri: str, dim: int, key: Key | None, timeout: float = 10.0) -> Store:
    """Open the store in a file. A new store is encrypted if there is a key.

    Args:
        uri: see `Store`.
        dim: see `Store`.
        key: the current key, or None.
        timeout: see `Store`.

    Raises:
        InputError: the store is encrypted with another key, or is not encrypted although there is a key.
        StorageError: as in `SealedStore`.
        FileFormatError: as in `SealedStore`.
        MissingDependencyError: as in `SealedStore`.
    """
    plain = Store(uri, dim, timeout)
    try:
        header = plain.header()
        key_id = _key_id(header)
        if key_id is None and (header is not None or key is None):
            reject_plain(uri, key)
            return plain
        key = matching_key(key, uri, key_id or (key and key.id) or "")
    except BaseException:
        plain.close()
        raise
    plain.close()
    return SealedStore(uri, dim, key, timeout)


def reseal_gallery(path: str | Path, key: Key | None, new: Key | None) -> bool:
    """Encrypt a gallery, change its key, or decrypt it, in one transaction.

    The file is then rewritten without remains of the previous data. After an interruption, the same call
    finishes the work.

    Args:
        path: gallery file.
        key: key with which the gallery is encrypted; None if it is not encrypted.
        new: key to encrypt it with; None to decrypt it.

    Returns:
        False if the gallery was already encrypted with the new key, or already decrypted, and was only
        rewritten.

    Raises:
        InputError: there is no gallery, or it is encrypted with another key.
        StorageError: another process has the gallery open, or it cannot be written.
        FileFormatError: the gallery is damaged.
    """
    uri, new_id = str(path), new and new.id
    header = None
    if Path(uri).exists():
        with closing(Store(uri, 0)) as plain:
            header = plain.header()
    if header is None:
        raise InputError(f"{uri}: there is no gallery here")
    done = _key_id(header) == new_id
    if done:
        key = new
    with closing(open_store(uri, 0, key)) as old:
        facts = old.header() or {}
    dim = Header.read(facts, uri).dim
    with closing(Store(uri, dim) if new is None else SealedStore(uri, dim, new)) as target:
        target.claim_alone()
        with closing(open_store(uri, dim, key)) as old:
            old.header()
            if new is not None:
                _delete_search_file(Path(uri).resolve())  # also if done: a power cut may have restored it
            if not done:
                target.replace(facts, old)
        target.header()
        target.erase()
        target.compact()
    return not done


def _delete_search_file(path: Path) -> None:
    try:
        for ending in ("-search", "-search-part"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}-search: the file contains unencrypted directions, and could not be deleted "
            f"({error.strerror}); delete it, then run the same command again"
        ) from error


def _key_id(header: dict[str, Any] | None) -> str | None:
    """Id of the key of a gallery; None if it is not encrypted."""
    return str(header["key"]) if header and "key" in header else None


def _associated_data(*parts: object) -> bytes:
    """Associated data that is unique to a row and authenticated with it."""
    return json.dumps([part.hex() if isinstance(part, bytes) else part for part in parts]).encode()


def _pad(values: list[Any]) -> bytes:
    text = json.dumps(values).encode()
    return text + b" " * (-len(text) % _PAD_BYTES)
