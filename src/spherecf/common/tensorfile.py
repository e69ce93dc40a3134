"""Safetensors files, written as a stream and read through a memory map."""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spherecf.common.files import SAFETENSORS, describe_content, write_atomically
from spherecf.common.parsing import parse_json, reading
from spherecf.common.sealing import Key, sealing, unsealed
from spherecf.errors import FileFormatError

_DTYPES = {  # widest first, which is the order in which the safetensors library writes tensors
    name: np.dtype(kind)
    for name, kind in {
        "U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "F16": "<f2",
        "U16": "<u2", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BLOCK = 1 << 24  # bytes copied at once


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    key: Key | None = None,
) -> Path:
    """Write a safetensors file atomically, sealed if a key is given; returns its path.

    The content is identical to that of ``safetensors.numpy.save``, but written in blocks, so that nothing is
    in memory twice. Wide types come first, so that every view of the mapped file is aligned.

    Raises:
        StorageError: the disk is full or not writable; an earlier file at ``path`` is unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = write_tensors(path, {"mu": np.eye(2, dtype=np.float32)}, {"made by": "hand"})
        >>> with open_tensors(path, "an example") as file:
        ...     file.metadata(), map_tensors(path)["mu"].tolist()
        ({'made by': 'hand'}, [[1.0, 0.0], [0.0, 1.0]])
    """
    ranks = list(_DTYPES)
    kinds = {name: _NAMES[tensor.dtype.newbyteorder("<")] for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (ranks.index(kinds[name]), name))

    def write(stream: IO[bytes]) -> None:
        with sealing(stream, key) as target:
            _write(target, {name: tensors[name] for name in names}, metadata)

    return write_atomically(path, write)


def _write(stream: IO[bytes], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write the layout: length of the header (8 bytes), JSON header, raw tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        dtype = _NAMES[tensor.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        rows = np.atleast_1d(tensor)
        step = max(1, _BLOCK // max(1, rows.itemsize * math.prod(rows.shape[1:])))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            stream.write(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).tobytes())


@contextmanager
def open_tensors(path: str | Path, kind: str, hint: str = "", framework: str = "numpy") -> Iterator[Any]:
    """Open a file with ``safetensors.safe_open``, which checks header, offsets and length.

    Args:
        path: the file.
        kind: expected kind of file, for messages: "a model of SphereCF".
        hint: what to do, for messages.
        framework: framework of the tensors, ``"numpy"`` or ``"pt"``.

    Raises:
        FileFormatError: the file does not exist, is of another kind (named in the message), or is truncated
            or damaged.
    """
    if not os.path.exists(path):  # noqa: PTH110, pathlib raises if the name is too long
        raise FileFormatError(path, "no such file.", hint)
    content = describe_content(path)
    if content != SAFETENSORS:
        raise FileFormatError(path, f"not readable as {kind}: it is {content}.", hint)
    with reading(path, kind, hint):
        try:
            opened = safe_open(path, framework)
        except SafetensorError as error:  # its own message is unclear
            raise FileFormatError(
                path, f"not readable as {kind}: truncated or damaged ({error}).", hint
            ) from error
        with opened as file:
            yield file


def map_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """Memory-mapped, read-only views of the tensors in a file that `open_tensors` has checked.

    Raises:
        FileFormatError: a tensor has a type that NumPy does not have.
    """
    raw: NDArray[Any] = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    return _views(raw, start, json.loads(raw[8:start].tobytes()), path)


def sealed_tensors(
    path: str | Path, key: Key, kind: str, hint: str = ""
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """(tensors, metadata) of a file that is sealed with this key, decrypted in memory.

    Raises:
        FileFormatError: the file is damaged, or its content is not a safetensors file.
    """
    raw = unsealed(path, key)
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = parse_json(raw[8:start].tobytes(), path, kind, hint)
    with reading(path, kind, hint):
        metadata, end = {**header.pop("__metadata__", {})}, 0
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not text")
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            size = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
            if first != end or last - first != size or min(entry["shape"], default=0) < 0:
                raise ValueError(f"the offsets of tensor {name[:40]!r} do not fit its shape")
            end = last
        if start + end != len(raw):
            raise ValueError("it is truncated")
        return _views(raw, start, header, path), metadata


def _views(
    raw: NDArray[Any], start: int, header: Mapping[str, Any], path: str | Path
) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise FileFormatError(
                path,
                f"tensor {name[:40]!r} has the type {entry['dtype']}, which NumPy does not have.",
                "Convert it to float32.",
            )
        first, last = entry["data_offsets"]
        view = raw[start + first : start + last].view(_DTYPES[entry["dtype"]])
        tensors[name] = view.reshape(entry["shape"])
    return tensors
