"""Encryption at rest: the key, and files that are sealed with it.

A key is 32 random bytes in a file that its owner alone can read. It encrypts nothing itself: every sealed
file has a random salt, and HKDF-SHA256 (RFC 5869) derives from key and salt the keys of this file. The cipher
is AES-256-GCM (NIST SP 800-38D). Whoever opens or saves something asks `current_key`, the one place that says
whether there is a key.

A sealed file is a head (mark, id of the key, salt) and chunks of 1 MiB, each with its tag of 16 bytes. The
nonce of a chunk is its number and whether it is the last, so chunks that are exchanged, left out or repeated
and a file that is cut short are refused; the head is authenticated with every chunk. (The construction is
STREAM of Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO 2015.)
"""

import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import write_atomically
from spherecf.errors import FileFormatError, InputError, MissingDependencyError, StorageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_FILE, KEY = "SPHERECF_KEY_FILE", "SPHERECF_KEY"
"""Variables that name the file of the key, or hold the key itself."""

TAG, NONCE, SALT = 16, 12, 32  # bytes
DAMAGED = "Restore it from a backup."
_WORD = "spherecf-key-1"  # begins the text of a key
_MAGIC, _HEAD = b"spherecf.sealed1", struct.Struct(f"<16s8s{SALT}s")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Key:
    """A key; its bytes are in no message.

    Example:
        >>> key = Key(bytes(32), "an example")
        >>> key, key.id
        (Key(origin='an example'), 'e2ab3dfb2e1f0e77')
    """

    secret: bytes = field(repr=False)
    """32 bytes."""
    origin: str
    """Where it is from: the file or the variable."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that tell keys apart and say nothing about them."""
        return self.derive(b"", "id", 8).hex()

    def derive(self, salt: bytes, purpose: str, length: int = 32) -> bytes:
        """HKDF-SHA256 of the key: the key of one file for one purpose.

        Raises:
            MissingDependencyError: the package cryptography is not installed.
        """
        try:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError as error:
            raise MissingDependencyError(
                'encryption needs the package cryptography: pip install "spherecf[encryption]"'
            ) from error
        return HKDF(SHA256(), length, salt, f"spherecf {purpose}".encode()).derive(self.secret)

    def cipher(self, salt: bytes, purpose: str) -> "AESGCM":
        """AES-256-GCM with a derived key."""
        derived = self.derive(salt, purpose)
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(derived)


def make_key(path: str | Path) -> Key:
    """Write a new random key into a new file with permissions 0600.

    Raises:
        StorageError: the file exists, or cannot be written.
    """
    secret = secrets.token_bytes(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"{_WORD} {secret.hex()}\n")
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise StorageError(f"{path}: exists; a key is never overwritten, so give another name") from error
    except OSError as error:
        raise StorageError(f"{path}: could not be written ({error.strerror})") from error
    return Key(secret, str(path))


def read_key(path: str | Path) -> Key:
    """The key in a file.

    Raises:
        InputError: absent, readable to others than its owner, or no key.
    """
    try:
        with Path(path).open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            text = stream.read(1024)
    except OSError as error:
        raise InputError(f"{path}: the key file cannot be read ({error.strerror})") from error
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            f"{path}: others can read this key file (permissions {mode:04o}); run: chmod 600 {path}"
        )
    return _parsed(text.decode("latin-1"), str(path))


def current_key() -> Key | None:
    """The key in use: of the file that SPHERECF_KEY_FILE names, or in SPHERECF_KEY; None if neither is set.

    Raises:
        InputError: as `read_key`; or both are set.
    """
    file, text = os.environ.get(KEY_FILE, ""), os.environ.get(KEY, "")
    if file and text:
        raise InputError(f"both {KEY_FILE} and {KEY} are set; unset one of them")
    if file:
        return read_key(file)
    return _parsed(text, KEY) if text else None


def _parsed(text: str, origin: str) -> Key:
    word, _, digits = text.strip().partition(" ")
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if word != _WORD or len(secret) != 32:
        raise InputError(f"{origin}: expected a key as `spherecf key make` writes it, got something else")
    return Key(secret, origin)


def fitting(key: Key | None, path: str | Path, sealed_with: str) -> Key:
    """The key in use, if a file is encrypted with it.

    Args:
        key: the key in use.
        path: the file.
        sealed_with: id of the key that it is encrypted with.

    Raises:
        InputError: there is no key, or another one; what to do is in the message.
    """
    if key is None:
        raise InputError(
            f"{path}: is encrypted with the key {sealed_with}; name the file of the key in {KEY_FILE}, or "
            "with `spherecf --key-file=FILE ...`"
        )
    if key.id != sealed_with:
        raise InputError(
            f"{path}: is encrypted with the key {sealed_with}, but {key.origin} is the key {key.id}; "
            "name the file of the right key"
        )
    return key


def refuse_plain(path: str | Path, key: Key | None) -> None:
    """Refuse a file that is not encrypted if there is a key: somebody may have put it in its place.

    Raises:
        InputError: what to do is in the message.
    """
    if key is not None:
        raise InputError(
            f"{path}: is not encrypted, but a key is set ({key.origin}); encrypt it with "
            f"`spherecf key encrypt {path}`, or unset {KEY_FILE} and {KEY}"
        )


def opened(cipher: "AESGCM", nonce: bytes, content: bytes, bound: bytes) -> bytes | None:
    """The plain text; None if text, nonce or what it is bound to are not what was sealed."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, content, bound)
    except InvalidTag:
        return None


def sealed_with(path: str | Path) -> str | None:
    """Id of the key that a file is sealed with; None if it is no sealed file, or none at all."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(_HEAD.size)
    except OSError:
        return None
    if not head.startswith(_MAGIC):
        return None
    if len(head) < _HEAD.size:
        raise FileFormatError(path, "the encrypted file is cut short.", DAMAGED)
    return str(head[16:24].hex())


class _Sealer:
    """What is written to it goes sealed to another stream."""

    def __init__(self, stream: IO[bytes], key: Key) -> None:
        salt = secrets.token_bytes(SALT)
        self._stream, self._head = stream, _HEAD.pack(_MAGIC, bytes.fromhex(key.id), salt)
        self._cipher = key.cipher(salt, "file")
        self._pending, self._count = bytearray(), 0
        stream.write(self._head)

    def write(self, data: Any) -> None:
        """Seal whole chunks; one that may be the last waits."""
        self._pending += data
        while len(self._pending) > _CHUNK:
            self._put(bytes(self._pending[:_CHUNK]), last=False)
            del self._pending[:_CHUNK]

    def finish(self) -> None:
        """Seal the last chunk."""
        self._put(bytes(self._pending), last=True)

    def _put(self, chunk: bytes, *, last: bool) -> None:
        self._stream.write(self._cipher.encrypt(_nonce(self._count, last), chunk, self._head))
        self._count += 1


@contextmanager
def sealing(stream: IO[bytes], key: Key | None) -> Iterator[Any]:
    """A stream whose bytes go sealed to this one; the stream itself without a key.

    Raises:
        MissingDependencyError: the package cryptography is not installed.
    """
    if key is None:
        yield stream
        return
    sealer = _Sealer(stream, key)
    yield sealer
    sealer.finish()


def unsealed(path: str | Path, key: Key) -> NDArray[np.uint8]:
    """The bytes in a file that is sealed with this key, in memory.

    Raises:
        FileFormatError: damaged, altered or cut short.
        MissingDependencyError: the package cryptography is not installed.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(_HEAD.size)
        size = os.fstat(stream.fileno()).st_size - _HEAD.size
        count = -(-size // (_CHUNK + TAG))
        if size - count * TAG < max(0, count - 1) * _CHUNK or not count:
            raise FileFormatError(path, "the encrypted file is cut short.", DAMAGED)
        key_of_file = key.cipher(head[24:], "file")
        plain = np.empty(size - count * TAG, np.uint8)
        for number in range(count):
            chunk = stream.read(_CHUNK + TAG)
            found = opened(key_of_file, _nonce(number, number == count - 1), chunk, head)
            if found is None:
                where = _HEAD.size + number * (_CHUNK + TAG)
                raise FileFormatError(
                    path, f"the encrypted file is damaged or was altered, near byte {where:,}.", DAMAGED
                )
            plain[number * _CHUNK :][: len(found)] = np.frombuffer(found, np.uint8)
    return plain


def reseal(path: str | Path, key: Key | None, new: Key | None) -> None:
    """Write a file anew with the same content, sealed with another key or with none; whole or not at all.

    Args:
        path: the file.
        key: that it is sealed with; None if it is not.
        new: to seal it with; None to leave it as it is inside.

    Raises:
        FileFormatError: damaged.
        StorageError: it could not be written; it is as it was.
    """
    plain = np.memmap(path, np.uint8, "r") if key is None else unsealed(path, key)

    def write(stream: IO[bytes]) -> None:
        with sealing(stream, new) as target:
            for start in range(0, len(plain), _CHUNK):
                target.write(plain[start : start + _CHUNK].tobytes())

    write_atomically(path, write)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(NONCE - 1, "big") + bytes([last])
