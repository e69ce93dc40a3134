"""Embeddings files: an accepted one is complete, and is equal after saving and loading."""

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
    embeddings = Embeddings(**{"mu": mu, "log_kappa": np.zeros(3), "keys": ["a", "b/\u00e9", "c"], **fields})  # type: ignore[arg-type]
    return embeddings.save(write("seed.safetensors", b"")).read_bytes()


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
    reloaded = Embeddings.load(embeddings.save(write("again.safetensors", b"")))
    assert reloaded.fingerprint() == embeddings.fingerprint() and reloaded.keys == embeddings.keys
    assert (reloaded.skipped, reloaded.provenance) == (embeddings.skipped, embeddings.provenance)
    assert (reloaded.identities, {*reloaded.extras}) == (embeddings.identities, {*embeddings.extras})
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
    """Encrypt after the mutation, so that the mutation reaches the code that reads the content."""
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
    """Keep the length prefix correct, so that mutations reach the code that reads the header."""
    length = max((end for entry in _entries(data) for end in entry), default=0)
    _use(struct.pack("<Q", len(data)) + data + _CONTENT[:length].ljust(length, b"\0"))


def _entries(data: bytes) -> list[list[int]]:
    try:
        header = json.loads(data)
        offsets = [entry.get("data_offsets") for entry in header.values() if isinstance(entry, dict)]
    except (ValueError, AttributeError, RecursionError):
        return []
    return [
        [end for end in ends if isinstance(end, int) and 0 < end < 4096]
        for ends in offsets
        if isinstance(ends, list)
    ]


_CONTENT = _seeds()["labelled"][8 + struct.unpack("<Q", _seeds()["labelled"][:8])[0] :]
