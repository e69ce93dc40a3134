"""Search index: directions in 8 bits, memory-mapped from a file next to the gallery.

A direction y is stored as codes c with y = s c + e. The scale s is the largest absolute component divided by
127, and a bound on |e| is stored. Since |<x, y> - <x', y'>| <= |x - x'| |y'| + |x| |y - y'|, products of
codes give every cosine up to a known error.

The file contains nothing that is not in the gallery. The gallery stores the hash of its index file. Rows of
the gallery never change and their numbers are never reused, so only rows that were added or removed since the
file was written are read when it is opened. Each row has a checksum. The codes have checksums too, which the
first search verifies as products with one additional probe. A file that is missing, damaged or belongs to
another gallery is rebuilt.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherecf.errors import StorageError
from spherecf.gallery.bound import BinEnds
from spherecf.gallery.store import Store

SUB, BIN = (
    256,
    4096,
)  # rows per group (of which only the highest cosine is stored), and rows per bin of kappas
_CHUNK = 1 << 15  # rows per matrix product
_TAIL = 4096  # number of new, unsorted rows after which all rows are sorted by kappa again
_READ = 8192  # rows per read from the gallery
_MAGIC, _HEAD = b"spherecf.search1", struct.Struct("<16s16sQI20x")
_ROW = np.dtype(
    [("row", "<i8"), ("kappa", "<f8"), ("scale", "<f4"), ("error", "<f4"), ("sum", "<i4"), ("seal", "<u4")]
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, for mixing bits

log = logging.getLogger(__name__)


class Damaged(Exception):
    """The codes differ from those that were written."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of the index other than the codes."""

    row: NDArray[np.int64]
    """(size,) row numbers in the gallery; 0 for removed rows and padding."""
    kappa: NDArray[np.float64]
    """(size,) concentrations."""
    scale: Tensor
    """(size,) scales of the codes."""
    ends: BinEnds
    """Smallest and largest kappa of each of the b bins."""
    error: NDArray[np.float64]
    """(b,) largest error of each bin."""
    groups: NDArray[np.int64]
    """(b,) number of groups in each bin."""

    @classmethod
    def joined(cls, parts: "Sequence[Columns]") -> "Columns":
        """Concatenate the columns of several parts."""
        if len(parts) == 1:
            return parts[0]
        row, kappa, error, groups = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("row", "kappa", "error", "groups")
        )
        scale = torch.cat([part.scale for part in parts])
        ends = BinEnds.joined([part.ends for part in parts])
        return cls(row, kappa, scale, ends, error, groups)


class Part:
    """Rows with their codes, in bins of consecutive rows. Removed rows and padding are zeros.

    Args:
        rows: (capacity,) array of ``_ROW``; the capacity is a multiple of ``SUB``.
        codes: (capacity, dim) int8 codes.
        used: number of rows in use, including removed rows.
        verified: whether the checksums of the codes have been verified.
    """

    def __init__(
        self, rows: NDArray[Any], codes: NDArray[np.int8], used: int, *, verified: bool = True
    ) -> None:
        self.rows, self.codes, self.used, self._verified = rows, codes, used, verified
        self.alive = int(np.count_nonzero(rows["row"]))
        self._columns: Columns | None = None

    @property
    def size(self) -> int:
        """Number of rows, including the padding of the last group."""
        return -(-self.used // SUB) * SUB

    def append(self, rows: NDArray[Any], codes: NDArray[np.int8]) -> None:
        """Add rows at the end."""
        end = self.used + len(rows)
        if end > len(self.rows):
            n_new = -(-max(end, len(self.rows) * 3 // 2) // SUB) * SUB - len(self.rows)
            self.rows = np.concatenate([self.rows, np.zeros(n_new, _ROW)])
            self.codes = np.concatenate([self.codes, np.zeros((n_new, self.codes.shape[1]), np.int8)])
        self.rows[self.used : end], self.codes[self.used : end] = rows, codes
        self.used, self.alive, self._columns = end, self.alive + len(rows), None

    def drop(self, removed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Overwrite rows with zeros; returns their positions."""
        places = np.flatnonzero(np.isin(self.rows["row"][: self.used], removed))
        self.rows[places], self.codes[places] = np.zeros(1, _ROW), 0
        self.alive, self._columns = self.alive - len(places), None
        return places

    @property
    def columns(self) -> Columns:
        """The columns, with the bins."""
        if self._columns is None:
            table, starts = self.rows[: self.size], np.arange(0, self.size, BIN)
            row, kappa, scale, error = (table[name].copy() for name in ("row", "kappa", "scale", "error"))
            high = np.maximum.reduceat(np.where(row > 0, kappa, 0.0), starts)
            low = np.minimum(np.minimum.reduceat(np.where(row > 0, kappa, np.inf), starts), high)
            ends = BinEnds.of(low, high, self.codes.shape[1])
            highest_error = np.maximum.reduceat(error.astype(np.float64), starts)
            groups = np.diff(np.append(starts, self.size)) // SUB
            self._columns = Columns(row, kappa, torch.from_numpy(scale), ends, highest_error, groups)
        return self._columns

    def scan(self, probes: Tensor, out: Tensor) -> None:
        """Multiply the codes of all rows with the codes of probes, and with the scales of the rows.

        Args:
            probes: (m, dim) int8 codes of the probes.
            out: (m, size) array for the products.

        Raises:
            Damaged: a checksum does not match.
        """
        scale = self.columns.scale
        codes = torch.from_numpy(self.codes[: self.size])
        sums = None if self._verified else torch.from_numpy(self.rows["sum"][: self.size].copy())
        factors = probes if sums is None else torch.cat([probes, _weights(probes.shape[1])])
        for start in range(0, self.size, _CHUNK):
            stop = min(start + _CHUNK, self.size)
            products = _products(factors, codes[start:stop])
            if sums is not None and not torch.equal(products[-1], sums[start:stop]):
                raise Damaged
            torch.mul(products[: len(probes)], scale[start:stop], out=out[:, start:stop])
        self._verified = True


class Index:
    """The quantised directions of a gallery: a main part sorted by kappa, and a tail of new rows.

    Args:
        store: store of the gallery.
        dim: dimension of the directions.

    Example:
        >>> store = Store(":memory:", 2)
        >>> store.create({})
        >>> index = Index(store, 2)
        >>> index.add(np.array([1, 2]), np.eye(2, dtype=np.float32), np.array([3.0, 4.0]))
        >>> len(index)
        2
    """

    def __init__(self, store: Store, dim: int) -> None:
        self._store, self._dim, self._file_hash = store, dim, ""
        self._file = store.search_file
        self._main, self._tail = _empty(dim), _empty(dim)
        self._joined: tuple[list[Columns], Columns] | None = None
        self._unwritten: list[int] = []  # positions of dropped rows that are still in the file
        self.follow()

    def __len__(self) -> int:
        return sum(part.alive for part in self.parts)

    @property
    def parts(self) -> list[Part]:
        """The parts that are not empty."""
        return [part for part in (self._main, self._tail) if part.used]

    @property
    def columns(self) -> Columns:
        """Columns of all parts. At least one part must not be empty."""
        parts = [part.columns for part in self.parts]
        if self._joined is None or self._joined[0] != parts:
            self._joined = parts, Columns.joined(parts)
        return self._joined[1]

    def follow(self) -> None:
        """Synchronise with the gallery: add new rows, and drop removed rows."""
        file_hash = self._store.fact("search") if self._file else ""
        if file_hash != self._file_hash:
            self._load(file_hash)
        stored = self._store.rows()
        indexed = np.concatenate([part.rows["row"][: part.used] for part in (self._main, self._tail)])
        indexed = indexed[indexed > 0]
        self.drop(np.setdiff1d(indexed, stored, assume_unique=True))
        new = np.setdiff1d(stored, indexed, assume_unique=True)
        for start in range(0, len(new), _READ):
            people = self._store.people(new[start : start + _READ])
            self.add(people.rows, people.mu, people.kappa)

    def rebuild(self) -> None:
        """Rebuild the index from the gallery."""
        log.warning("%s: damaged; rebuilding it from the gallery", self._file)
        self._main, self._tail, self._unwritten = _empty(self._dim), _empty(self._dim), []
        self.follow()

    def add(self, rows: NDArray[np.int64], mu: NDArray[np.float32], kappa: NDArray[Any]) -> None:
        """Append rows with directions (n, dim) and kappas (n,)."""
        codes, scale, error = quantise(mu)
        table = np.zeros(len(rows), _ROW)
        table["row"], table["kappa"], table["scale"], table["error"] = rows, kappa, scale, error
        table["sum"] = _products(_weights(self._dim), torch.from_numpy(codes))[0].numpy()
        table["seal"] = _seals(table)
        self._tail.append(table, codes)

    def drop(self, removed: NDArray[np.int64]) -> None:
        """Overwrite rows with zeros; also in the file, if this process holds the lock."""
        if len(removed):
            self._unwritten += self._main.drop(removed).tolist()
            self._tail.drop(removed)
        if self._store.claimed:
            self._wipe()

    def close(self) -> None:
        """Bring the file up to date, if this process holds the lock."""
        if self._store.claimed:
            self._wipe()
            self.settle()
            if self._file is not None:
                # The temporary file of a process that was killed may contain people who were removed since.
                with suppress(OSError):
                    _temporary_file(self._file).unlink(missing_ok=True)

    def _wipe(self) -> None:
        """Overwrite dropped rows in the file.

        Raises:
            StorageError: the file cannot be written.
        """
        places, self._unwritten = self._unwritten, []
        if not places or self._file is None or not isinstance(self._main.codes, np.memmap):
            return
        codes_start = _HEAD.size + len(self._main.rows) * _ROW.itemsize
        try:
            with self._file.open("r+b") as stream:
                for place in places:
                    stream.seek(_HEAD.size + place * _ROW.itemsize)
                    stream.write(bytes(_ROW.itemsize))
                    stream.seek(codes_start + place * self._dim)
                    stream.write(bytes(self._dim))
                stream.flush()
                os.fsync(stream.fileno())
        except FileNotFoundError:  # somebody deleted it: nothing is left to erase
            return
        except OSError as error:
            raise StorageError(
                f"{self._file}: removed people could not be erased from it ({error.strerror})"
            ) from error

    def settle(self) -> None:
        """Sort the rows by kappa and write the file, if there are many new rows."""
        if self._tail.used > max(_TAIL, self._main.used // 16):
            self.save()

    def save(self) -> None:
        """Sort all rows by kappa, and write the file if possible."""
        table = np.concatenate([part.rows[: part.used] for part in (self._main, self._tail)])
        order = np.lexsort((table["row"], table["kappa"]))
        order = order[table["row"][order] > 0]
        padded = np.zeros(-(-len(order) // SUB) * SUB, _ROW)
        padded[: len(order)] = table[order]
        if self._file is None or not self._try_write(self._file, padded, order):
            codes = np.zeros((len(padded), self._dim), np.int8)
            for start, block in self._codes(order):
                codes[start : start + len(block)] = block
            self._main = Part(padded, codes, len(order))
        self._unwritten = []
        self._tail = _empty(self._dim)

    def compact(self) -> None:
        """Rewrite the file without dropped rows."""
        if self._main.used:
            self.save()

    def _try_write(self, file: Path, table: NDArray[Any], order: NDArray[np.int64]) -> bool:
        """Write the file and map it to memory. Returns False if the file could not be written.

        The index then works without the file.
        """
        claimed = self._store.claimed
        try:
            self._store.claim()
            self._file_hash = self._write(file, table, order)
            self._main = _read(file, self._file_hash, self._dim)
        except OSError as error:
            log.info("%s: not written (%s)", file, error)
            return False
        finally:
            if not claimed:
                self._store.release()
        return True

    def _load(self, file_hash: str) -> None:
        self._file_hash, self._main, self._tail = file_hash, _empty(self._dim), _empty(self._dim)
        self._unwritten = []
        if file_hash and self._file is not None:
            try:
                self._main = _read(self._file, file_hash, self._dim)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                log.warning("%s: %s; rebuilding it from the gallery", self._file, reason)

    def _write(self, file: Path, table: NDArray[Any], order: NDArray[np.int64]) -> str:
        """Write the file, and store its hash in the gallery; returns the hash."""
        digest = hashlib.blake2b(table.tobytes(), digest_size=16).digest()
        temporary = _temporary_file(file)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(_HEAD.pack(_MAGIC, digest, len(table), self._dim))
            stream.write(table.tobytes())
            for _, block in self._codes(order):
                stream.write(block.tobytes())
            stream.write(bytes((len(table) - len(order)) * self._dim))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        self._store.set_fact("search", digest.hex())
        return digest.hex()

    def _codes(self, order: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int8]]]:
        """Yield (start, codes) of blocks of rows of both parts, in the given order."""
        n_main = self._main.used
        for start in range(0, len(order), _CHUNK):
            places = order[start : start + _CHUNK]
            block, in_main = np.empty((len(places), self._dim), np.int8), places < n_main
            block[in_main] = self._main.codes[places[in_main]]
            block[~in_main] = self._tail.codes[places[~in_main] - n_main]
            yield start, block


def _temporary_file(file: Path) -> Path:
    return file.with_name(f"{file.name}-part")


def quantise(
    mu: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Quantise directions (n, dim) to 8 bits, with |mu - scale * codes| <= error.

    Returns:
        Codes (n, dim), scales (n,), and bounds on the error (n,).

    Example:
        >>> codes, scale, error = quantise(np.array([[0.6, 0.8]], np.float32))
        >>> codes.tolist(), bool(np.linalg.norm([0.6, 0.8] - scale[0] * codes[0]) <= error[0] < 0.005)
        ([[95, 127]], True)
    """
    scale = np.maximum(np.abs(mu).max(1), np.float32(1e-30)) / np.float32(127)
    codes = np.rint(mu / scale[:, None])
    rest = np.linalg.norm(mu - scale[:, None] * codes, axis=1)
    return codes.astype(np.int8), scale, (rest * 1.0001 + _ROUNDING).astype(np.float32)


_ROUNDING = 1e-6  # allowance for the rounding of differences and norms in float32


def _products(probes: Tensor, codes: Tensor) -> Tensor:
    """(m, n) exact products of int8 codes (m, dim) and (n, dim)."""
    return torch._int_mm(probes, codes.T)


def _weights(dim: int) -> Tensor:
    """(1, dim) fixed pseudo-random codes without zeros. The product with them is a checksum."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 128, (1, dim)) * rng.choice([-1, 1], (1, dim))
    return torch.from_numpy(weights.astype(np.int8))


def _seals(table: NDArray[Any]) -> NDArray[np.uint32]:
    """(n,) checksums of the other columns; 0 for rows of zeros."""
    mixed = table["row"].astype(np.uint64)
    for name, kind in (("kappa", np.uint64), ("scale", np.uint32), ("error", np.uint32), ("sum", np.uint32)):
        mixed = (mixed ^ np.ascontiguousarray(table[name]).view(kind)) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _empty(dim: int) -> Part:
    return Part(np.zeros(0, _ROW), np.zeros((0, dim), np.int8), 0)


def _read(file: Path, file_hash: str, dim: int) -> Part:
    """Read a part from a file. Its codes are memory-mapped.

    Raises:
        ValueError: the file does not belong to the gallery, or is damaged.
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD.size)
        magic, digest, size, width = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", b"", 0, 0)
        if magic != _MAGIC or digest.hex() != file_hash or width != dim:
            raise ValueError("does not belong to the gallery")
        start = _HEAD.size + size * _ROW.itemsize
        if file.stat().st_size != start + size * dim:
            raise ValueError("truncated")
        rows = np.fromfile(stream, _ROW, size)
    if not np.array_equal(rows["seal"], _seals(rows)):
        raise ValueError("damaged")
    used = int(np.flatnonzero(rows["row"])[-1]) + 1 if rows["row"].any() else 0
    # A private mapping: `_wipe` writes removed rows to the file explicitly.
    return Part(rows, np.memmap(file, np.int8, "c", start, (size, dim)), used, verified=False)
