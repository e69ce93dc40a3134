"""The embeddings file: directions, concentrations and image keys in one memory-mapped safetensors file.

`spherecf embed` writes it. Scoring and evaluation read nothing else, so embeddings of any origin can be
evaluated. The layout is plain safetensors (tensors ``mu``, ``log_kappa``, ``keys``, ``key_ends``, and
optionally ``labels``, ``log_precision``, ``extra.*``; JSON in the metadata), which any safetensors reader
opens. If an encryption key is set (`spherecf.common.sealing`), the whole file is encrypted and is read into
memory.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.arrays import as_array, check_directions, checked_radius, row_numbers
from spherecf.common.parsing import checked, parse_json
from spherecf.common.sealing import Key, current_key, matching_key, reject_plain, reseal, sealed_with
from spherecf.common.tensorfile import map_tensors, open_tensors, sealed_tensors, write_tensors
from spherecf.errors import FileFormatError, InputError

__all__ = ["Embeddings"]

_FORMAT = "embeddings/1"
_TYPES = {"keys": "u1", "key_ends": "i8", "labels": "i8"}  # all other tensors have one of the float types
_FLOATS = "f4", "f8"
_LOG_KAPPA_LIMIT = 60.0  # kappa between 1e-26 and 1e26, well within the range of float32
_BLOCK = 65536


@dataclass(eq=False)
class Embeddings:
    """One von Mises-Fisher distribution per image, identified by the image's key.

    Args:
        mu: (n, dim) float32, unit mean directions.
        log_kappa: (n,) float32, natural logarithm of the concentration, within -60 .. 60.
        keys: n unique strings, e.g. paths relative to the data set's folder.
        labels: (n,) int64 index into ``identities``, -1 if unknown; None if no identity is known.
        identities: name of each label.
        extras: named (n,) float32 columns: ``norm``, ``detector_score``, ``sharpness``, ``severity``, ...
        skipped: (key, reason) of every image that could not be embedded (failure to acquire).
        provenance: JSON-serialisable facts about their origin: model hash, alignment, flip, degradation, ...
        log_precision: (n, dim) float32, one log precision per coordinate, for heads that output them (PFE-G).

    Raises:
        InputError: inconsistent shapes, directions that are zero, NaN or not of unit length within 1e-3,
            log_kappa out of range, or duplicate keys.

    Example:
        >>> import numpy as np
        >>> e = Embeddings(mu=np.eye(2, dtype=np.float32), log_kappa=np.log([10.0, 100.0]), keys=["a", "b"])
        >>> e.dim, e.rows(["b", "a"]).tolist(), e.kappa.round().tolist()
        (2, [1, 0], [10.0, 100.0])
    """

    mu: NDArray[Any]  # any float type is accepted and stored as float32
    log_kappa: NDArray[Any]
    keys: Sequence[str]
    labels: NDArray[Any] | None = None
    identities: Sequence[str] = ()
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    log_precision: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        self.mu = as_array(self.mu, "mu", np.float32)
        self.log_kappa = as_array(self.log_kappa, "log_kappa", np.float32)
        self.keys = _strings(self.keys, "keys")
        self.identities = [_plain(name) for name in _strings(self.identities, "identities")]
        if self.labels is not None:
            self.labels = as_array(self.labels, "labels", np.int64)
        if self.log_precision is not None:
            self.log_precision = as_array(self.log_precision, "log_precision", np.float32)
        if not isinstance(self.extras, Mapping):
            raise InputError(f"extras: expected a dict of columns by name, got {type(self.extras).__name__}")
        self.extras = {name: as_array(column, name, np.float32) for name, column in self.extras.items()}
        try:
            self.skipped = [(_plain(str(key)), _plain(str(reason))) for key, reason in self.skipped]
        except (TypeError, ValueError) as error:
            raise InputError(f"skipped: expected pairs (key, reason): {error}") from error
        self.provenance = _plain(self.provenance)
        _check(self)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        people = "" if self.labels is None else f" of {len(np.unique(self.labels[self.labels >= 0]))} people"
        kappa = f"kappa {self.kappa.min():.4g} to {self.kappa.max():.4g}" if len(self) else "no kappa"
        extras = f", extras: {', '.join(self.extras)}" if self.extras else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Embeddings({len(self)} images{people}, dim {self.dim}, {kappa}{extras}{skipped})"

    @property
    def dim(self) -> int:
        """Dimension d of the directions."""
        return int(self.mu.shape[1])

    @property
    def kappa(self) -> NDArray[Any]:
        """Concentrations (n,); larger means more confident."""
        kappa: NDArray[Any] = np.exp(self.log_kappa)
        return kappa

    @property
    def radius(self) -> float:
        """Radius r of the mutual likelihood score, as recorded by the model; 64 if not recorded."""
        return checked_radius(self.provenance.get("radius", 64.0), "provenance: radius")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def rows(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Row of every key, in the given order.

        Raises:
            InputError: unknown keys; the message counts them and gives the reason of those that were skipped.
        """
        requested = _strings(keys, "keys")
        rows = [self._index.get(key, -1) for key in requested]
        missing = [key for key, row in zip(requested, rows) if row < 0]
        if missing:
            reasons = dict(self.skipped)
            examples = [f"{key!r} ({reasons[key]})" if key in reasons else repr(key) for key in missing[:5]]
            raise InputError(
                f"{len(missing)} of {len(requested)} keys are not in these embeddings of {len(self)} images: "
                f"{', '.join(examples)}{', ...' if len(missing) > 5 else ''}. Keys here look like "
                f"{', '.join(map(repr, self.keys[:2])) or '(none)'}; embed the missing images "
                "or use the matching list."
            )
        return np.asarray(rows, np.int64)

    def select(self, rows: NDArray[Any] | Iterable[int]) -> "Embeddings":
        """A copy with these rows only, in this order: their numbers, or a mask of n booleans.

        Raises:
            InputError: a row is not in 0..n-1 or occurs twice.
        """
        row_indices = row_numbers(rows, len(self))
        return Embeddings(
            mu=self.mu[row_indices],
            log_kappa=self.log_kappa[row_indices],
            keys=[self.keys[row] for row in row_indices],
            labels=None if self.labels is None else self.labels[row_indices],
            identities=self.identities,
            extras={name: column[row_indices] for name, column in self.extras.items()},
            skipped=list(self.skipped),
            provenance=dict(self.provenance),
            log_precision=None if self.log_precision is None else self.log_precision[row_indices],
        )

    def subjects(self) -> NDArray[Any] | None:
        """Identity name of every row, "" if unknown; None if the file has no labels."""
        if self.labels is None:
            return None
        subjects: NDArray[Any] = np.where(self.labels < 0, "", self.labels.astype(str))
        if self.identities:
            subjects = np.asarray([*self.identities, ""])[self.labels]  # label -1 selects the last entry, ""
        return subjects

    def fingerprint(self) -> str:
        """SHA-256 (hex) of keys, directions and concentrations: files of equal content have equal hashes."""
        digest = hashlib.sha256(f"{_FORMAT} {self.mu.shape}".encode())
        for key in self.keys:
            digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
        precision = () if self.log_precision is None else (self.log_precision,)
        for column in (self.mu, self.log_kappa, *precision):
            for start in range(0, len(self), _BLOCK):
                digest.update(np.ascontiguousarray(column[start : start + _BLOCK], "<f4").data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file atomically, encrypted if an encryption key is set; return its path.

        Raises:
            StorageError: the disk is full or not writable; an earlier file at ``path`` is untouched.
            InputError: the encryption key cannot be used.
            MissingDependencyError: an encryption key is set, but the extra ``encryption`` is not installed.
        """
        seal = current_key()
        encoded = [key.encode("utf-8", "surrogateescape") for key in self.keys]  # file names may not be UTF-8
        tensors: dict[str, NDArray[Any]] = {
            "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
            **({} if self.labels is None else {"labels": self.labels}),
            "mu": self.mu,
            "log_kappa": self.log_kappa,
            **({} if self.log_precision is None else {"log_precision": self.log_precision}),
            **{f"extra.{name}": column for name, column in self.extras.items()},
            "keys": np.frombuffer(b"".join(encoded), np.uint8),
        }
        metadata = {
            "spherecf": _FORMAT,
            "identities": json.dumps(list(self.identities)),
            "skipped": json.dumps(self.skipped),
            "provenance": json.dumps(self.provenance),
        }
        return write_tensors(path, tensors, metadata, seal)

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Open a file written by `save`; ``mu`` and ``log_precision`` stay on disk, mapped read-only.

        An encrypted file is decrypted into memory.

        Raises:
            FileFormatError: truncated, not an embeddings file, or content that fails the checks.
            InputError: the file is encrypted with a key other than the current one, or a key is set but the
                file is not encrypted.
            MissingDependencyError: the file is encrypted, but the extra ``encryption`` is not installed.
        """
        return cls._load(Path(path), current_key())

    @classmethod
    def _load(cls, path: Path, key: Key | None) -> "Embeddings":
        tensors, metadata = _read(path, key)
        try:
            return cls(
                keys=_keys(path, tensors["keys"].tobytes(), tensors["key_ends"]),
                mu=tensors["mu"],
                log_kappa=np.array(tensors["log_kappa"]),
                labels=np.array(tensors["labels"]) if "labels" in tensors else None,
                extras={
                    name.removeprefix("extra."): np.array(column)
                    for name, column in tensors.items()
                    if name.startswith("extra.")
                },
                log_precision=tensors.get("log_precision"),
                **vars(_facts(path, metadata)),
            )
        except (KeyError, InputError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FileFormatError(path, f"not usable as embeddings: {reason}.", _AGAIN) from error


def reseal_embeddings(path: str | Path, key: Key | None, new: Key | None) -> bool:
    """Change the encryption of an embeddings file, atomically: encrypt, re-encrypt or decrypt it.

    Args:
        path: the file.
        key: its current encryption key; None if it is not encrypted.
        new: its new encryption key; None to decrypt it.

    Returns:
        Whether the file was changed; False if it was already encrypted with ``new``.

    Raises:
        InputError, FileFormatError, StorageError, MissingDependencyError: as `Embeddings.load` and `save`.
    """
    if sealed_with(path) == (new and new.id):
        Embeddings._load(Path(path), new)
        return False
    Embeddings._load(Path(path), key)  # raises unless it is a valid embeddings file
    reseal(path, key, new)
    return True


_AGAIN = "Write it again with `spherecf embed`, or with Embeddings(...).save(path)."


def _read(path: Path, key: Key | None) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors, as views of the mapped file or of its decrypted copy in memory, and the metadata."""
    if (key_id := sealed_with(path)) is not None:
        tensors, metadata = sealed_tensors(
            path, matching_key(key, path, key_id), "an embeddings file", _AGAIN
        )
    else:
        with open_tensors(path, "an embeddings file", _AGAIN) as file:
            metadata = dict(file.metadata() or {})
        reject_plain(path, key)
        tensors = map_tensors(path)
    if metadata.get("spherecf") != _FORMAT:
        got = metadata.get("spherecf", "no format name")[:80]
        hint = "Update spherecf." if re.fullmatch(r"embeddings/\d+", got) else _AGAIN
        raise FileFormatError(path, f"a safetensors file, but not {_FORMAT} (got {got}).", hint)
    for name, tensor in tensors.items():
        types = [_TYPES[name]] if name in _TYPES else _FLOATS
        if tensor.dtype not in map(np.dtype, types):
            raise FileFormatError(
                path, f"tensor {name[:40]!r} has the unexpected type {tensor.dtype}.", _AGAIN
            )
    return tensors, metadata


def _keys(path: Path, blob: bytes, ends: NDArray[Any]) -> list[str]:
    """Split the concatenated keys at their end offsets."""
    offsets = np.concatenate([[0], ends.reshape(-1)])
    if (np.diff(offsets) < 0).any() or offsets[-1] != len(blob):
        raise FileFormatError(
            path,
            f"not usable as embeddings: key_ends must ascend to {len(blob)}, the number of bytes of keys.",
            _AGAIN,
        )
    bounds = pairwise(offsets.tolist())
    if blob.isascii():
        text = blob.decode()
        return [text[start:end] for start, end in bounds]
    return [blob[start:end].decode("utf-8", "surrogateescape") for start, end in bounds]


@dataclass
class _Facts:
    """Fields of the metadata, apart from the format name."""

    identities: list[str]
    skipped: list[tuple[str, str]]
    provenance: dict[str, Any]


def _facts(path: Path, metadata: Mapping[str, str]) -> _Facts:
    names = ("identities", "skipped", "provenance")
    facts = {name: parse_json(metadata[name], path, name, _AGAIN) for name in names}
    return checked(_Facts, facts, "metadata")


def _strings(values: Iterable[Any], name: str) -> list[str]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"{name}: expected a list of strings, got {type(values).__name__}")
    return [str(value) for value in values]


def _plain(value: Any) -> Any:
    """Copy a JSON-serialisable value, escaping strings that UTF-8 cannot encode, as file names may be."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check(e: Embeddings) -> None:
    n = len(e.keys)
    if e.mu.ndim != 2 or e.mu.shape[0] != n or e.mu.shape[1] < 2:
        raise InputError(f"mu: expected (n, dim) with n = {n} keys and dim >= 2, got shape {e.mu.shape}")
    columns: dict[str, NDArray[Any]] = {
        "log_kappa": e.log_kappa,
        **e.extras,
        **({} if e.labels is None else {"labels": e.labels}),
    }
    for name, column in columns.items():
        if column.shape != (n,):
            raise InputError(f"{name}: expected shape ({n},) like the keys, got {column.shape}")
        bad = np.flatnonzero(~np.isfinite(column))
        if bad.size:
            key = e.keys[bad[0]]
            raise InputError(
                f"{name}: {bad.size} of {n} values are NaN or infinite, first for {key!r} (row {bad[0]})"
            )
    bad = np.flatnonzero(np.abs(e.log_kappa) > _LOG_KAPPA_LIMIT)
    if bad.size:
        raise InputError(
            f"log_kappa: {bad.size} of {n} values are outside -60 .. 60, first {e.log_kappa[bad[0]]} for "
            f"{e.keys[bad[0]]!r}; expected the natural logarithm of kappa (is this kappa itself?)"
        )
    try:
        json.dumps(e.provenance, allow_nan=False)
        for key in () if all(map(str.isascii, e.keys)) else e.keys:
            key.encode("utf-8", "surrogateescape")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"keys or provenance cannot be written: {error}") from error
    if len(set(e.keys)) != n:
        visited: set[str] = set()
        duplicate = next(key for key in e.keys if key in visited or visited.add(key))  # type: ignore[func-returns-value]
        raise InputError(
            f"keys: {n - len(set(e.keys))} duplicates, first {duplicate!r}; every image needs a unique key"
        )
    if e.labels is not None and n:
        low, high, count = int(e.labels.min()), int(e.labels.max()), len(e.identities)
        if low < -1 or (count and high >= count):
            expected = f"-1 (unknown) .. {count - 1} (identities)" if count else "-1 (unknown) or more"
            raise InputError(f"labels: expected {expected}, got {low} .. {high}")
    if e.log_precision is not None and e.log_precision.shape != e.mu.shape:
        raise InputError(
            f"log_precision: expected one value per coordinate, shape {e.mu.shape}, "
            f"got {e.log_precision.shape}"
        )
    check_directions(e.mu, "mu", keys=e.keys)
    if e.log_precision is None:
        return
    for start in range(0, n, _BLOCK):  # in blocks: a mapped file may exceed the memory
        finite = np.isfinite(e.log_precision[start : start + _BLOCK]).all(1)
        if not finite.all():
            key = e.keys[start + int(finite.argmin())]
            raise InputError(
                f"log_precision: {int((~finite).sum())} of {len(finite)} rows contain NaN or infinity, "
                f"first for {key!r}"
            )
