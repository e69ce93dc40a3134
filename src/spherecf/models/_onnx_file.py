"""An ONNX file with all of its weights, those kept beside it too, and the hash that identifies it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from spherecf.common.files import describe_content
from spherecf.errors import ModelError

Model = Any  # onnx.ModelProto, onnx.NodeProto and onnx.TensorProto are generated classes without usable types
Node = Any
StoredTensor = Any

LARGEST = 2**31 - 1  # bytes of one file, a limit of its format
TYPE_NAMES: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
PACKED = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2, "FLOAT4": 4, "FLOAT6": 6}  # bits of what shares bytes


@dataclass(frozen=True)
class OnnxFile:
    """A model as it came.

    Attributes:
        model: every weight is inside it.
        name: the file's stem, or the graph's name.
        sha256: of the file's bytes. Of a file with weights beside it, of the same model in one file, as
            ``onnx.save(onnx.load(path), ...)`` writes it: names and layout of the others do not matter.
        former_sha256: of the graph's file without the weights beside it, by which SphereCF identified such a
            model before; "" where there are none.
    """

    model: Model
    name: str
    sha256: str
    former_sha256: str = ""


def read_onnx(source: str | Path | Model) -> OnnxFile:
    """Read a model file, or copy an ``onnx.ModelProto``, and check that every tensor holds what it declares.

    Raises:
        ModelError: no ONNX file, truncated, larger than 2 GiB with its weights; weights beside it that are
            missing, too short or outside its folder; a tensor whose data do not fit its shape.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        name, former = source.graph.name or "model", ""
        outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        if outside:
            raise ModelError(
                f"{name}: {len(outside)} tensors ({outside[0].name}, ...) are kept in other files, which a "
                f"loaded model does not know; give the path of the file, or load it with its weights by "
                f"onnx.load(path)"
            )
        _check_names(model, name)
        sha256 = hashlib.sha256(serialized(model, name)).hexdigest()
    else:
        path = Path(source)
        if not path.is_file():
            raise ModelError(f"{path}: expected an ONNX file, found no such file")
        content = path.read_bytes()
        model, name, former = _parse(path, content), path.stem, ""
        sha256 = hashlib.sha256(content).hexdigest()
        _check_names(model, name)
        if _attach_weights(model, path):
            sha256, former = hashlib.sha256(serialized(model, name)).hexdigest(), sha256
    for tensor in _tensors(model):
        _check(tensor, name)
    return OnnxFile(model, name, sha256, former)


def serialized(model: Model, name: str) -> bytes:
    """The model in one piece.

    Raises:
        ModelError: it is larger than 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's EncodeError, which has no public home in onnx
        raise ModelError(f"{name}: larger than 2 GiB with its weights, which ONNX cannot hold") from error
    return content


def as_array(tensor: StoredTensor, owner: str) -> NDArray[Any]:
    """A stored tensor's values; ``owner`` is named in the error.

    Raises:
        ModelError: its data do not fit its type and shape.

    Example:
        >>> as_array(helper.make_tensor("shape", TensorProto.INT64, [2], [1, 512]), "tiny").tolist()
        [1, 512]
    """
    _check(tensor, owner)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # of NumPy, ml_dtypes and onnx: what is stored is no such number
        raise ModelError(f"{owner}: tensor {_label(tensor)} cannot be read: {error}") from error


def _parse(path: Path, content: bytes) -> Model:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which has no public home in onnx
        raise ModelError(
            f"{path}: not a readable ONNX file ({len(content)} bytes): it is {describe_content(path)}, or "
            f"truncated; download or export it again"
        ) from error
    return model


def _check_names(model: Model, owner: str) -> None:
    """Refuse names that are no text: protobuf hands them out as bytes, which nothing expects."""
    pending: list[Any] = [model]
    while pending:
        for field, value in pending.pop().ListFields():
            values = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
            if field.type == field.TYPE_MESSAGE:
                pending += values
            elif field.type == field.TYPE_STRING:
                for text in values:
                    if isinstance(text, bytes):
                        raise ModelError(
                            f"{owner}: {field.name} {text!r} in it is no text (UTF-8): the file is damaged"
                        )


def _tensors(model: Model) -> Iterator[StoredTensor]:
    """Every stored tensor: weights, constants, those of inner graphs and of functions."""
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        part = pending.pop()
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
            for sparse in part.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in part.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _attach_weights(model: Model, path: Path) -> int:
    """Read the weights kept in other files into the model; how many tensors there were.

    The result is what ``onnx.load`` makes of it, byte for byte. That reads links and checks nothing's size.
    """
    count, total = 0, 0
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        where = _beside(path, tensor, facts.get("location", ""))
        size, needed = where.stat().st_size, _byte_count(tensor, path.name)
        offset = _number(path, tensor, facts, "offset", 0)
        length = _number(path, tensor, facts, "length", size - offset)
        total += needed
        if offset + needed > size or length != needed:
            raise ModelError(
                f"{path}: tensor {_label(tensor)} of shape {tuple(tensor.dims)} needs {needed} bytes, "
                f"{where} ({size} bytes) should have {length} of it from byte {offset}: the files do not "
                f"belong together or one is truncated"
            )
        if total > LARGEST:
            raise ModelError(f"{path}: {total} bytes of weights or more; ONNX holds 2 GiB in one model")
        with where.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(needed)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        count += 1
    return count


def _beside(path: Path, tensor: StoredTensor, location: str) -> Path:
    """The file with a tensor's weights, which must lie in the graph's folder or below it."""
    outside = f"{path}: the weights of {_label(tensor)} are kept outside the file, in {location!r}"
    parts = {part for kind in (PurePosixPath, PureWindowsPath) for part in kind(location).parts}
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or rooted or ".." in parts or "\0" in location:
        raise ModelError(f"{outside}, which is no place in its folder: such a file is not opened")
    where = path.parent / location
    try:
        regular = where.is_file()
    except OSError:  # a name that is too long
        regular = False
    if not regular:
        raise ModelError(f"{outside}, which is missing: put that file beside it, under its own name")
    return where


def _number(path: Path, tensor: StoredTensor, facts: dict[str, str], key: str, default: int) -> int:
    text = facts.get(key, str(default))
    if not text.isdecimal() or len(text) > len(str(2**63)):
        raise ModelError(
            f"{path}: tensor {_label(tensor)}: expected a number of bytes as {key}, found {text!r}"
        )
    return int(text)


def _check(tensor: StoredTensor, owner: str) -> None:
    """Refuse a tensor whose data are not as many as its shape says; nothing is copied."""
    needed, count = _byte_count(tensor, owner), prod(tensor.dims)
    if tensor.HasField("raw_data"):
        stored, needed, unit = len(tensor.raw_data), needed, "bytes"
    elif tensor.data_type == TensorProto.STRING:
        stored, needed, unit = len(tensor.string_data), count, "texts"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        per_item = 2 if "COMPLEX" in type_name(tensor.data_type) else 1
        stored, needed, unit = len(getattr(tensor, field)), min(needed, count * per_item), "numbers"
    if stored != needed:
        raise ModelError(
            f"{owner}: tensor {_label(tensor)} of shape {tuple(tensor.dims)} should hold {needed} {unit}, "
            f"found {stored}: the file is damaged"
        )


def _byte_count(tensor: StoredTensor, owner: str) -> int:
    """Bytes that a tensor of this type and shape takes."""
    kind = type_name(tensor.data_type)
    if min(tensor.dims, default=0) < 0 or kind in ("UNDEFINED", "unknown"):
        raise ModelError(
            f"{owner}: tensor {_label(tensor)} has the shape {tuple(tensor.dims)} and the type {kind}: the "
            f"file is damaged, or made for a newer onnx than {onnx.__version__}"
        )
    whole = 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    bits = next((bits for start, bits in PACKED.items() if kind.startswith(start)), whole)
    return -(-int(prod(tensor.dims)) * bits // 8)


def type_name(kind: int) -> str:
    """ONNX's name of a tensor's type.

    Example:
        >>> type_name(TensorProto.FLOAT16), type_name(99)
        ('FLOAT16', 'unknown')
    """
    return TYPE_NAMES.get(kind, "unknown")


def _label(tensor: StoredTensor) -> str:
    return repr(tensor.name) if tensor.name else "without a name"
