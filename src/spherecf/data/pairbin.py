"""Pair files (``lfw.bin``, ``cfp_fp.bin``, ...): a pickle of (encoded images, mated flags).

Pair files are downloaded from untrusted places, and unpickling can call any function and allocate any amount
of memory. This module therefore interprets only the few opcodes that such data needs, as Python 2 and 3 write
them. A global name in the file selects one of the constructors below, under its NumPy 1 or 2 name; any other
name is rejected. Apart from a small constant, no opcode allocates more memory than the bytes it takes up in
the file, and the number of opcodes is bounded by the size of the file.

The opcodes are described in the standard library's `pickletools`.
"""

import math
import struct
from codecs import escape_decode
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from spherecf.common.files import describe_content
from spherecf.data.pairs import PairList
from spherecf.data.source import ImageSource
from spherecf.errors import FileFormatError

_MIN_STEPS, _BYTES_PER_STEP = 1 << 13, 8  # opcodes allowed for any file, and bytes per additional opcode
_CODES: dict[str, type[np.generic]] = {
    "u1": np.uint8, "B": np.uint8, "b1": np.bool_, "?": np.bool_, "i1": np.int8, "i2": np.int16,
    "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64,
}  # fmt: skip
_HINT = "Expected a pickle of (list of encoded images, list of bool). No code in the file was run."


class PlainArray:
    """An unpickled array: its bytes, or a list of objects for an object array."""

    __slots__ = ("content", "dtype", "shape")

    def __init__(self) -> None:
        self.content: bytes | list[Any] = b""
        self.dtype: type[np.generic] | None = np.uint8
        self.shape: tuple[int, ...] = (0,)

    def set(self, content: Any, dtype: Any, shape: Any) -> None:
        """Set content, type and shape.

        Raises:
            ValueError: they are of the wrong kind, or do not match.
        """
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array has no dtype")
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an array has no valid shape")
        bytes_each = 1 if dtype.kind is None else np.dtype(dtype.kind).itemsize
        if not isinstance(content, list if dtype.kind is None else bytes):
            raise ValueError(f"the content of an array is of type {type(content).__name__}")
        if math.prod(shape) * bytes_each != len(content):
            raise ValueError(
                f"an array has {len(content)} bytes or objects, which do not fit the shape {list(shape)[:8]}"
            )
        self.content, self.dtype, self.shape = content, dtype.kind, shape

    def __str__(self) -> str:
        kind = "object" if self.dtype is None else self.dtype.__name__
        return f"array {kind}{list(self.shape)}"

    @property
    def flat(self) -> bool:
        """Whether at most one dimension is longer than 1."""
        return math.prod(self.shape) == max(self.shape, default=1)

    def items(self) -> list[Any]:
        """The entries, in order."""
        if isinstance(self.content, list):
            return self.content
        entries: list[Any] = np.frombuffer(self.content, self.dtype).tolist()
        return entries


class _Dtype(NamedTuple):
    kind: type[np.generic] | None
    """None for an object array."""


class _Name(NamedTuple):
    """A constructor, selected by a global name in the file."""

    name: str
    make: Callable[["_Reader", tuple[Any, ...]], Any]


class _Reader:
    """The unpickling machine: position in the data, stack, marks and memo."""

    def __init__(self, data: mmap | bytes) -> None:
        self.data, self.position = data, 0
        self.size, self.copied = len(data), 0
        self.stack, self.marks, self.memo = list[Any](), list[int](), dict[int, Any]()
        self.push = self.stack.append

    def load(self) -> Any:
        for _ in range(_MIN_STEPS + self.size // _BYTES_PER_STEP):
            if self.position == self.size:
                raise ValueError("the pickle ends without a STOP opcode")
            code = self.data[self.position]
            self.position += 1
            if code == _STOP:
                return self.pop()
            if code not in _BY_NUMBER:
                raise ValueError(f"opcode {bytes([code])!r} does not occur in pair files")
            _BY_NUMBER[code](self)
        raise ValueError("it has more opcodes than a pair file of this size can have")

    def take(self, count: int) -> bytes:
        begin, end = self.position, self.position + count
        if not begin <= end <= self.size:
            raise ValueError(f"{count} bytes are declared, but {self.size - begin} follow")
        self.position = end
        return self.data[begin:end]

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("a line has no end")
        return self.take(end + 1 - self.position)[:-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self, kind: type = object) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the stack is empty")
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise ValueError(f"expected a {kind.__name__} on the stack, got a {type(value).__name__}")
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("there is no mark on the stack")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def memoize(self, key: int) -> None:
        self.memo[key] = self.top()

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise ValueError(f"memo entry {key} was never stored")
        self.push(self.memo[key])

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global name is not text")
        if (module, name) not in _CONSTRUCTORS:
            full_name = f"{module[:60]}.{name[:60]}"
            raise ValueError(f"the file refers to {full_name}, which does not occur in pair files")
        self.push(_Name(name, _CONSTRUCTORS[module, name]))

    def call(self) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError(f"an object of type {type(function).__name__} is called as a function")
        self.push(function.make(self, arguments))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, PlainArray) and isinstance(state, tuple) and len(state) == 5:
            target.set(_to_bytes(self, state[4]), state[2], state[1])
        elif not isinstance(target, _Dtype):  # the state of a dtype (byte order, ...) is not needed
            kind = "function" if isinstance(target, _Name) else type(target).__name__
            raise ValueError(f"a state is set on a {kind}")

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def extend(self) -> None:
        values = self.pop_mark()
        self.top(list).extend(values)

    def drop(self, values: object) -> None:
        """Discard the items of a dict, which stays empty: hashing untrusted keys could recurse."""
        self.top(dict)

    def encode(self, text: str) -> bytes:
        """Encode text as Latin-1; all copies together may not exceed the size of the file."""
        self.copied += len(text)
        if self.copied > self.size:
            raise ValueError("more text is encoded than the file contains")
        return text.encode("latin-1")


def _to_bytes(reader: _Reader, value: Any) -> Any:
    return reader.encode(value) if isinstance(value, str) else value


def _make_bytes(reader: _Reader, arguments: tuple[Any, ...]) -> bytes:
    """bytes(), bytearray(b"..."), bytearray("...", "latin-1"); not bytes(number), which allocates memory."""
    match arguments:
        case ():
            return b""
        case (bytes() as content,):
            return content
        case (str() as text,) | (str() as text, "latin1" | "latin-1" | b"latin1" | b"latin-1"):
            return reader.encode(text)
    raise ValueError("a byte string is made from something other than bytes or text")


def _make_dtype(reader: _Reader, arguments: tuple[Any, ...]) -> _Dtype:
    code = arguments[0] if arguments else None
    text = code.decode("latin-1") if isinstance(code, bytes) else code if isinstance(code, str) else ""
    kind = text.lstrip("|<=")
    if kind not in (*_CODES, "O8", "O"):
        raise ValueError(f"an array of {text[:20]!r} cannot hold images or flags")
    return _Dtype(_CODES.get(kind))


def _make_array(reader: _Reader, arguments: tuple[Any, ...]) -> PlainArray:
    array = PlainArray()
    if len(arguments) in (3, 4) and isinstance(arguments[1], _Dtype):  # NumPy's _frombuffer
        array.set(_to_bytes(reader, arguments[0]), arguments[1], arguments[2])
    return array


def _make_scalar(reader: _Reader, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2:
        raise ValueError("a NumPy scalar has no value")
    array = PlainArray()
    array.set(_to_bytes(reader, arguments[1]), arguments[0], (1,))
    return array.items()[0]


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_CONSTRUCTORS: dict[tuple[str, str], Callable[[_Reader, tuple[Any, ...]], Any]] = {
    ("_codecs", "encode"): _make_bytes,
    ("numpy", "dtype"): _make_dtype,
    ("numpy", "ndarray"): _make_array,
    **{
        (module, kind): _make_bytes
        for module in ("builtins", "__builtin__")
        for kind in ("bytes", "bytearray")
    },
    **{(module, "_reconstruct"): _make_array for module in _NUMPY},
    **{(module, "scalar"): _make_scalar for module in _NUMPY},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _make_array for core in ("core", "_core")},
}


def _parse_integer(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _unquote(line: bytes) -> bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string has no quotes")
    return bytes(escape_decode(line[1:-1])[0])


def _decode_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_OPCODES: dict[bytes, Callable[[_Reader], object]] = {
    b"\x80": lambda r: r.take(1),  # PROTO
    b"\x95": lambda r: r.take(8),  # FRAME
    b"(": lambda r: r.marks.append(len(r.stack)),  # MARK
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"I": lambda r: r.push(_parse_integer(r.line())),
    b"L": lambda r: r.push(_parse_integer(r.line())),
    b"K": lambda r: r.push(r.number(1)),
    b"M": lambda r: r.push(r.number(2)),
    b"J": lambda r: r.push(r.number(4, signed=True)),
    b"\x8a": lambda r: r.push(r.number(r.number(1), signed=True)),
    b"\x8b": lambda r: r.push(r.number(r.number(4), signed=True)),
    b"F": lambda r: r.push(float(r.line())),
    b"G": lambda r: r.push(*struct.unpack(">d", r.take(8))),
    b"S": lambda r: r.push(_unquote(r.line())),  # Python 2 strings are bytes
    b"T": lambda r: r.push(r.take(r.number(4, signed=True))),
    b"U": lambda r: r.push(r.take(r.number(1))),
    b"B": lambda r: r.push(r.take(r.number(4))),
    b"C": lambda r: r.push(r.take(r.number(1))),
    b"\x8e": lambda r: r.push(r.take(r.number(8))),
    b"\x96": lambda r: r.push(r.take(r.number(8))),  # a bytearray
    b"V": lambda r: r.push(r.line().decode("raw-unicode-escape")),
    b"X": lambda r: r.push(_decode_text(r.take(r.number(4)))),
    b"\x8c": lambda r: r.push(_decode_text(r.take(r.number(1)))),
    b"\x8d": lambda r: r.push(_decode_text(r.take(r.number(8)))),
    b"]": lambda r: r.push([]),
    b"l": lambda r: r.push(r.pop_mark()),
    b"a": _Reader.append,
    b"e": _Reader.extend,
    b")": lambda r: r.push(()),
    b"t": lambda r: r.push(tuple(r.pop_mark())),
    b"\x85": lambda r: r.pop_tuple(1),
    b"\x86": lambda r: r.pop_tuple(2),
    b"\x87": lambda r: r.pop_tuple(3),
    b"}": lambda r: r.push({}),
    b"d": lambda r: (r.pop_mark(), r.push({})),
    b"s": lambda r: r.drop((r.pop(), r.pop())),
    b"u": lambda r: r.drop(r.pop_mark()),
    b"0": _Reader.pop,
    b"p": lambda r: r.memoize(int(r.line())),
    b"q": lambda r: r.memoize(r.number(1)),
    b"r": lambda r: r.memoize(r.number(4)),
    b"\x94": lambda r: r.memoize(len(r.memo)),
    b"g": lambda r: r.recall(int(r.line())),
    b"h": lambda r: r.recall(r.number(1)),
    b"j": lambda r: r.recall(r.number(4)),
    b"c": lambda r: r.name(*(r.line().decode() for _ in range(2))),
    b"\x93": lambda r: r.name(*reversed((r.pop(), r.pop()))),
    b"R": _Reader.call,
    b"b": _Reader.build,
}

_STOP, _BY_NUMBER = ord("."), {code[0]: operation for code, operation in _OPCODES.items()}


def load_plain_pickle(path: Path) -> Any:
    """Read lists, tuples, numbers, byte strings and arrays (as `PlainArray`) from a Python 2 or 3 pickle.

    Raises:
        FileFormatError: the file refers to anything else (which the message names), is damaged, or is not a
            pickle.
    """
    reader = _Reader(_contents(path))
    try:
        return reader.load()
    except ValueError as error:
        raise FileFormatError(
            path,
            f"rejected as a pair file near byte {reader.position}: {error}. The file is "
            f"{describe_content(path)}.",
            _HINT,
        ) from error


def _contents(path: Path) -> mmap | bytes:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            return mmap(stream.fileno(), 0, access=ACCESS_READ) if size else b""
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error


_FOLDS = 10


class PairBin(ImageSource):
    """The images of a pair file, in memory; images 2i and 2i+1 are pair i. Identities are unknown.

    The pickle is read by a restricted interpreter, so a malicious file cannot run code. Images may be bytes
    (Python 2 or 3), bytearrays or uint8 arrays; flags may be bool, 0/1, or NumPy's.

    Args:
        path: the file.
        name: name used in messages and reports; by default the file name without its extension.

    Attributes:
        pairs: the `PairList`, in ten consecutive folds of (nearly) equal size. If a fold has only mated or
            only non-mated pairs, ``notes`` says so.

    Raises:
        FileFormatError: the file is not such a pickle; the message states what it contains instead.

    Example:
        >>> from pathlib import Path
        >>> import pickle, tempfile
        >>> from spherecf.data import orl_faces
        >>> images = [orl_faces().read(index) for index in range(20)]
        >>> path = Path(tempfile.mkdtemp()) / "orl.bin"
        >>> _ = path.write_bytes(pickle.dumps((images, [True] * 10)))
        >>> source = PairBin(path)
        >>> len(source), source.keys[-1], len(source.pairs), source.pairs.folds
        (20, 'orl/000019', 10, 10)
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        self.path = Path(path)
        self._images, mated = _checked(self.path, load_plain_pickle(self.path))
        name = name or self.path.stem
        super().__init__(name, np.full(len(self._images), -1, np.int64), [])
        self._keys = [f"{name}/{index:06d}" for index in range(len(self._images))]
        folds = fold_numbers(len(mated))
        self.pairs = PairList(name, self._keys[::2], self._keys[1::2], mated, folds)
        one_sided = np.setxor1d(folds[mated], folds[~mated])
        if len(one_sided):
            self.notes.append(
                f"{len(one_sided)} of {self.pairs.folds} folds have only mated or only non-mated pairs, but "
                "ten-fold accuracy needs both kinds in each fold: write the file with both kinds mixed."
            )

    def __reduce__(self) -> tuple[type["PairBin"], tuple[Path, str]]:
        return type(self), (self.path, self.name)

    @property
    def keys(self) -> list[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return self._images[index]

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return np.fromiter(map(len, self._images), np.int64)


def fold_numbers(pairs: int) -> Int64[np.ndarray, " pairs"]:
    """Fold of each pair for ten consecutive folds; the first folds are larger by one if needed.

    Example:
        >>> fold_numbers(12).tolist()
        [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    sizes = np.full(_FOLDS, pairs // _FOLDS) + (np.arange(_FOLDS) < pairs % _FOLDS)
    return np.repeat(np.arange(_FOLDS, dtype=np.int64), sizes)


def _checked(path: Path, content: Any) -> tuple[list[bytes], Bool[np.ndarray, " pairs"]]:
    expected = "expected a pickle of (list of encoded images, list of bool)"
    if not isinstance(content, tuple | list) or len(content) != 2:
        got = f"{type(content).__name__}{f' of {len(content)}' if isinstance(content, tuple | list) else ''}"
        raise FileFormatError(path, f"{expected}, got {got}. The file is {describe_content(path)}.")
    columns = [column.items() if isinstance(column, PlainArray) else column for column in content]
    if not all(isinstance(column, list | tuple) for column in columns):
        raise FileFormatError(
            path, f"{expected}, got ({', '.join(type(column).__name__ for column in columns)})."
        )
    if len(columns[0]) != 2 * len(columns[1]) or not columns[1]:
        raise FileFormatError(
            path,
            f"expected two images per flag, got {len(columns[0])} images and {len(columns[1])} flags.",
        )
    texts: dict[int, bytes] = {}  # by object id, so that a text listed many times is encoded only once
    images = [
        item if isinstance(item, bytes) else _image(path, index, item, texts)
        for index, item in enumerate(columns[0])
    ]
    flags = [_flag(path, index, item) for index, item in enumerate(columns[1])]
    return images, np.array(flags, bool)


def _image(path: Path, index: int, item: Any, texts: dict[int, bytes]) -> bytes:
    if isinstance(item, PlainArray) and item.dtype is np.uint8 and item.flat:
        return bytes(item.content)
    if isinstance(item, str) and id(item) not in texts:  # Python 2 bytes, unpickled as Latin-1 text
        try:
            texts[id(item)] = item.encode("latin-1")
        except UnicodeEncodeError as error:
            raise FileFormatError(path, f"image {index}: expected encoded bytes, got text.") from error
    if id(item) in texts:
        return texts[id(item)]
    kind = str(item) if isinstance(item, PlainArray) else type(item).__name__
    raise FileFormatError(path, f"image {index}: expected encoded bytes, got {kind}.")


def _flag(path: Path, index: int, item: Any) -> bool:
    if isinstance(item, int | float) and item in (0, 1):
        return bool(item)
    got = repr(item[:40]) if isinstance(item, str) else type(item).__name__
    if isinstance(item, int | float) and abs(item) < 2**63:
        got = str(item)
    raise FileFormatError(path, f"flag {index}: expected True or False, got {got}.")
