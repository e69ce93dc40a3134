"""Embeddings files: an accepted one is whole, and can be saved again equal."""

import io
import json
import os
import struct
from unittest.mock import patch

import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.common.sealing import KEY, Key, sealing
from spherecf.embeddings import Embeddings


def _saved(**fields: object) -> bytes:
    mu = np.eye(4, dtype=np.float32)[:3]
    made = Embeddings(**{"mu": mu, "log_kappa": np.zeros(3), "keys": ["a", "b/\u00e9", "c"], **fields})  # type: ignore[arg-type]
    return made.save(write("seed.safetensors", b"")).read_bytes()


def _seeds() -> dict[str, bytes]:
    labelled = {"labels": np.array([0, 1, -1]), "identities": ["Ann", "Bo"]}
    return {
        "plain": _saved(),
        "labelled": _saved(**labelled, extras={"norm": np.ones(3)}, skipped=[("d", "dark")]),
        "numbers": _saved(labels=np.array([5, 0, -1]), provenance={"model": "x", "flip": {"a": [1, None]}}),
        "precise": _saved(log_precision=np.zeros((3, 4))),
    }


def _use(data: bytes) -> None:
    embeddings = Embeddings.load(write("e.safetensors", data))
    again = Embeddings.load(embeddings.save(write("again.safetensors", b"")))
    assert again.fingerprint() == embeddings.fingerprint() and again.keys == embeddings.keys
    assert (again.skipped, again.provenance) == (embeddings.skipped, embeddings.provenance)
    assert (again.identities, {*again.extras}) == (embeddings.identities, {*embeddings.extras})
    subjects = embeddings.subjects()
    assert subjects is None or len(subjects) == len(embeddings)
    assert embeddings.rows(embeddings.keys).tolist() == [*range(len(embeddings))]


@fuzz(
    _seeds,
    name="embeddings",
    tokens=[b"F32", b"F64", b"I64", b"U8", b"key_ends", b"extra.mu", b'\\"', b"[0,8]"],
)
def test_embeddings(data: bytes) -> None:
    _use(data)


_SECRET = bytes(range(32))


@fuzz(_seeds, name="embeddings, encrypted", tokens=[b"F32", b"F64", b"I64", b"U8", b"key_ends", b"[0,8]"])
def test_sealed(data: bytes) -> None:
    """Sealed after the mutation, so that it reaches what reads the content."""
    stream = io.BytesIO()
    with sealing(stream, Key(_SECRET, "fuzz")) as target:
        target.write(data)
    with patch.dict(os.environ, {KEY: f"spherecf-key-1 {_SECRET.hex()}"}):
        _use(stream.getvalue())


def _headers() -> dict[str, bytes]:
    data = _seeds()["labelled"]
    return {"labelled": data[8 : 8 + struct.unpack("<Q", data[:8])[0]]}


@fuzz(
    _headers, name="embeddings, header", tokens=[b"F32", b"F64", b"I64", b"U8", b"key_ends", b'\\"', b"[0,8]"]
)
def test_header(data: bytes) -> None:
    """The length in front always fits, so that mutations reach the header."""
    length = max((end for entry in _entries(data) for end in entry), default=0)
    _use(struct.pack("<Q", len(data)) + data + _CONTENT[:length].ljust(length, b"\0"))


def _entries(data: bytes) -> list[list[int]]:
    try:
        header = json.loads(data)
        offsets = [entry.get("data_offsets") for entry in header.values() if isinstance(entry, dict)]
    except (ValueError, AttributeError, RecursionError):
        return []
    return [
        [end for end in one if isinstance(end, int) and 0 < end < 4096]
        for one in offsets
        if isinstance(one, list)
    ]


_CONTENT = _seeds()["labelled"][8 + struct.unpack("<Q", _seeds()["labelled"][:8])[0] :]
