"""Encryption at rest: the key, and files that are sealed (encrypted and authenticated) with it.

A key is 32 random bytes in a file that only its owner can read. It is not used for encryption directly: every
sealed file has a random salt, and HKDF-SHA256 (RFC 5869) derives the keys of that file from key and salt. The
cipher is AES-256-GCM (NIST SP 800-38D). Code that opens or saves files gets the key from `current_key`, the
only place that determines whether a key is set.

A sealed file is a head (magic bytes, id of the key, salt) followed by chunks of 1 MiB, each with a tag of 16
bytes. The nonce of a chunk consists of its number and a flag for the last chunk. Chunks that are exchanged,
missing or repeated, and a truncated file, are therefore rejected; the head is authenticated with every chunk.
(The construction is STREAM of Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO 2015.)
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
"""Environment variables for the path of the key file, and for the key itself."""

TAG, NONCE, SALT = 16, 12, 32  # bytes
DAMAGED = "Restore it from a backup."
_WORD = "spherecf-key-1"  # first word of the text form of a key
_MAGIC, _HEAD = b"spherecf.sealed1", struct.Struct(f"<16s8s{SALT}s")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Key:
    """A key; its bytes never appear in messages.

    Example:
        >>> key = Key(bytes(32), "an example")
        >>> key, key.id
        (Key(origin='an example'), 'e2ab3dfb2e1f0e77')
    """

    secret: bytes = field(repr=False)
    """32 bytes."""
    origin: str
    """Where it comes from: the key file or the environment variable."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that identify the key without revealing it."""
        return self.derive(b"", "id", 8).hex()

    def derive(self, salt: bytes, purpose: str, length: int = 32) -> bytes:
        """Derive the key of one file for one purpose, by HKDF-SHA256.

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
        """AES-256-GCM with the key derived for this salt and purpose."""
        derived = self.derive(salt, purpose)
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(derived)


def make_key(path: str | Path) -> Key:
    """Write a new random key into a new file with permissions 0600.

    Raises:
        StorageError: the file exists already, or cannot be written.
    """
    secret = secrets.token_bytes(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"{_WORD} {secret.hex()}\n")
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise StorageError(
            f"{path}: exists already, and a key is never overwritten; choose another name"
        ) from error
    except OSError as error:
        raise StorageError(f"{path}: could not be written ({error.strerror})") from error
    return Key(secret, str(path))


def read_key(path: str | Path) -> Key:
    """Read the key from a file.

    Raises:
        InputError: the file does not exist, is readable by others than its owner, or is not a key.
    """
    try:
        with Path(path).open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            text = stream.read(1024)
    except OSError as error:
        raise InputError(f"{path}: the key file cannot be read ({error.strerror})") from error
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            f"{path}: other users can read this key file (permissions {mode:04o}); run: chmod 600 {path}"
        )
    return _parse_key(text.decode("latin-1"), str(path))


def current_key() -> Key | None:
    """The key in use, from the file named by SPHERECF_KEY_FILE or from SPHERECF_KEY; None if neither is set.

    Raises:
        InputError: as `read_key`, or both variables are set.
    """
    file, text = os.environ.get(KEY_FILE, ""), os.environ.get(KEY, "")
    if file and text:
        raise InputError(f"both {KEY_FILE} and {KEY} are set; unset one of them")
    if file:
        return read_key(file)
    return _parse_key(text, KEY) if text else None


def _parse_key(text: str, origin: str) -> Key:
    first_word, _, digits = text.strip().partition(" ")
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if first_word != _WORD or len(secret) != 32:
        raise InputError(f"{origin}: expected a key as written by `spherecf key make`, got something else")
    return Key(secret, origin)


def matching_key(key: Key | None, path: str | Path, sealed_with: str) -> Key:
    """Return the key in use, after checking that a file is encrypted with it.

    Args:
        key: the key in use.
        path: the file.
        sealed_with: id of the key that the file is encrypted with.

    Raises:
        InputError: no key is set, or another one; the message states what to do.
    """
    if key is None:
        raise InputError(
            f"{path}: is encrypted with the key {sealed_with}, but no key is set; set {KEY_FILE} to the path "
            "of the key file, or use `spherecf --key-file=FILE ...`"
        )
    if key.id != sealed_with:
        raise InputError(
            f"{path}: is encrypted with the key {sealed_with}, but {key.origin} is the key {key.id}; "
            "use the right key file"
        )
    return key


def reject_plain(path: str | Path, key: Key | None) -> None:
    """Reject a file that is not encrypted if a key is set: it may have been put in place of the real one.

    Raises:
        InputError: a key is set; the message states what to do.
    """
    if key is not None:
        raise InputError(
            f"{path}: is not encrypted, but a key is set ({key.origin}); encrypt it with "
            f"`spherecf key encrypt {path}`, or unset {KEY_FILE} and {KEY}"
        )


def decrypted(cipher: "AESGCM", nonce: bytes, content: bytes, bound: bytes) -> bytes | None:
    """Decrypt; None if the content, nonce or associated data ``bound`` differ from what was sealed."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, content, bound)
    except InvalidTag:
        return None


def sealed_with(path: str | Path) -> str | None:
    """Id of the key that a file is sealed with; None if the file is not sealed or cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(_HEAD.size)
    except OSError:
        return None
    if head.startswith(_MAGIC[:-1]) and not head.startswith(_MAGIC):
        raise FileFormatError(
            path, "encrypted in a format that this spherecf does not know.", "Update spherecf."
        )
    if not head.startswith(_MAGIC):
        return None
    if len(head) < _HEAD.size:
        raise FileFormatError(path, "the encrypted file is truncated.", DAMAGED)
    return str(head[16:24].hex())


class _Sealer:
    """A stream that seals what is written to it, and writes the result to another stream."""

    def __init__(self, stream: IO[bytes], key: Key) -> None:
        salt = secrets.token_bytes(SALT)
        self._stream, self._head = stream, _HEAD.pack(_MAGIC, bytes.fromhex(key.id), salt)
        self._cipher = key.cipher(salt, "file")
        self._pending, self._count = bytearray(), 0
        stream.write(self._head)

    def write(self, data: Any) -> None:
        """Seal full chunks; a chunk that may be the last one is kept back."""
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
    """A stream that seals what is written to it into ``stream``; ``stream`` itself if there is no key.

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
    """The decrypted content of a file that is sealed with this key, in memory.

    Raises:
        FileFormatError: the file is damaged, altered or truncated.
        MissingDependencyError: the package cryptography is not installed.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(_HEAD.size)
        size = os.fstat(stream.fileno()).st_size - _HEAD.size
        count = -(-size // (_CHUNK + TAG))
        if size - count * TAG < max(0, count - 1) * _CHUNK or not count:
            raise FileFormatError(path, "the encrypted file is truncated.", DAMAGED)
        key_of_file = key.cipher(head[24:], "file")
        plain = np.empty(size - count * TAG, np.uint8)
        for number in range(count):
            chunk = stream.read(_CHUNK + TAG)
            content = decrypted(key_of_file, _nonce(number, number == count - 1), chunk, head)
            if content is None:
                where = _HEAD.size + number * (_CHUNK + TAG)
                raise FileFormatError(
                    path, f"the encrypted file is damaged or was altered, near byte {where:,}.", DAMAGED
                )
            plain[number * _CHUNK :][: len(content)] = np.frombuffer(content, np.uint8)
    return plain


def reseal(path: str | Path, key: Key | None, new: Key | None) -> None:
    """Rewrite a file with the same content but sealed with another key, or not sealed; all or nothing.

    Args:
        path: the file.
        key: key that it is sealed with; None if it is not sealed.
        new: key to seal it with; None to write it decrypted.

    Raises:
        FileFormatError: the file is damaged.
        StorageError: it could not be written; it is unchanged.
    """
    plain = np.memmap(path, np.uint8, "r") if key is None else unsealed(path, key)

    def write(stream: IO[bytes]) -> None:
        with sealing(stream, new) as target:
            for start in range(0, len(plain), _CHUNK):
                target.write(plain[start : start + _CHUNK].tobytes())

    write_atomically(path, write)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(NONCE - 1, "big") + bytes([last])
