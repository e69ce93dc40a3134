"""Read checkpoints of many training codes as plain tensors by dotted name; no code in them is executed."""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickletools import genops, markobject, stackslice
from typing import IO, Any, TypeVar
from zipfile import ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from spherecf.common.files import OLD_TORCH, SAFETENSORS, TORCH, TORCHSCRIPT, describe_content
from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError, ModelError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
CHECKPOINT_SUFFIXES = (".safetensors", *PICKLED)
DAMAGED = "Is it complete? Download or copy it again."
_SAVE_TENSORS = "If you trust its origin, save its tensors alone: torch.save(model.state_dict(), ...)."

Module = TypeVar("Module", bound=nn.Module)

_MAX_DEPTH, _MAX_ITEMS = 50, 1_000_000  # limits for nested dictionaries: a pickle can refer to itself
_MAX_RATIO = 4  # uncompressed size of a zip archive's members over the size of the archive
_BLOCK = 1 << 24  # bytes of an archive read at once
_MAX_NAME = 1_000  # characters in the name of a class or function in a pickle
_MAX_VISITS = 100  # mean number of uses of each value in a pickle; two or three are usual
_OLD_PICKLES = 4  # pickles at the start of a file of torch < 1.6: magic number, version, system, content
_COUNTER = "num_batches_tracked"  # missing in files of torch < 0.4.1, and unused in evaluation
# Prefixes that torch.compile, FSDP and activation checkpointing add to parameter names.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Ignored:
    """Stand-in for a pickled object that is not a weight: accepts any arguments and state, stores none."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Scripted(Ignored):
    """Stand-in for a module of a TorchScript archive: stores its state, without its code."""

    def __setstate__(self, state: object) -> None:
        self.state = state


# Objects that training frameworks save next to the weights: settings, callbacks, paths, NumPy scalars.
# Classes listed here are not imported but replaced by a stand-in.
_STAND_INS = {
    re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.AttributeDict"): dict,
    re.compile(
        r"argparse\.Namespace|pathlib\.(_local\.)?\w*Path|(pytorch_lightning|lightning)\.[\w.]*callbacks\.[\w.]+"
        r"|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|_codecs\.encode|torch\.jit\._pickle\.\w+"
    ): Ignored,
    re.compile(r"__torch__\.[\w.]+"): Scripted,
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a file onto the CPU; keys of nested dictionaries are joined by dots.

    The format is detected from the first bytes, not from the suffix. Prefixes that torch.compile and FSDP add
    to names (``_orig_mod.``, ``_fsdp_wrapped_module.``) are removed.

    Args:
        path: ``.safetensors``, or a torch file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.tar``), which is
            read with ``weights_only=True``; settings and callbacks saved by Lightning or argparse are
            skipped. From a TorchScript archive only the parameters are read, not the code.

    Raises:
        FileFormatError: the file is missing, truncated, or in another format (named in the message: a web
            page, an archive, ...), or it contains objects other than tensors (the first class is named).

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.pt"
        >>> torch.save({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 4)}}, path)
        >>> {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).items()}
        {'state_dict.fc.weight': (2, 4)}
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(path, "no such file.")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise FileFormatError(
            path,
            f"expected one of {', '.join(CHECKPOINT_SUFFIXES)}, got {path.suffix or 'no suffix'}.",
            "Open an ONNX file with FrozenBackbone.from_onnx." if path.suffix == ".onnx" else "",
        )
    content = describe_content(path)
    if content == SAFETENSORS:
        with reading(path, content, DAMAGED):
            return _flat_tensors(path, load_file(path))
    if content not in (TORCH, OLD_TORCH, TORCHSCRIPT):
        raise FileFormatError(
            path, f"not a checkpoint of plain tensors: expected a torch or safetensors file, it is {content}."
        )
    return _flat_tensors(path, _unpickle(path, content))


def _unpickle(path: Path, content: str) -> Any:
    source: Path | io.BytesIO = path
    stand_ins: list[Any] = []
    try:
        if content == OLD_TORCH:  # torch cannot list the classes used in such a file
            with path.open("rb") as file:
                _check_pickles(path, file, _OLD_PICKLES)
        else:
            _check_archive(path)
            source = _without_code(path) if content == TORCHSCRIPT else path
            if path.suffix == ".safetensors":  # torch would choose its reader by the suffix
                source = io.BytesIO(path.read_bytes())
            stand_ins = _stand_ins(source)
        with safe_globals(stand_ins):
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileFormatError:
        raise
    except Exception as error:  # torch.load raises pickle and zip errors of many classes
        # Hide torch's message and traceback: they recommend executing the code in the file.
        raise FileFormatError(path, *_explain(str(error))) from None


def _check_archive(path: Path) -> None:
    with ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > _MAX_RATIO * path.stat().st_size + 2**20:
            raise FileFormatError(
                path,
                f"expected a torch file, got an archive of {path.stat().st_size} bytes that expands to "
                f"{unpacked}; torch does not compress its files.",
                _SAVE_TENSORS,
            )
        for info in archive.infolist():
            has_checksum = info.CRC != 0  # torch writes 0 if it was told not to compute checksums
            if not has_checksum:
                del info.CRC  # the module zipfile then does not check it either
            if info.filename.endswith("/data.pkl"):
                _check_pickles(path, io.BytesIO(archive.read(info)))
            elif has_checksum:  # torch does not check it: damaged weights would load
                with archive.open(info) as member:
                    while member.read(_BLOCK):
                        pass


def _check_pickles(path: Path, file: IO[bytes], pickles: int = 1) -> None:
    """Reject pickles on which torch would spend minutes or hours before it rejects them.

    torch searches its own error message, which quotes an unknown class name or the value that the pickle
    calls as a function (all numbers of a storage, say), in time quadratic in the longest word. Tuples that
    share parts can expand a few bytes to 2^n values when they are hashed.
    """
    problem = ""
    with suppress(ValueError, IndexError):  # malformed: torch stops at the same place
        for _ in range(pickles):
            problem = problem or _problem(file)
    if problem:
        raise FileFormatError(path, problem, _SAVE_TENSORS)


def _problem(file: IO[bytes]) -> str:
    # Size of each value on the pickle machine's stack: the number of values in it, 0 for a class or function
    # name, -1 for a mark.
    stack: list[int] = []
    memo: dict[object, int] = {}
    foreign: list[str] = []  # names outside torch, which torch most probably rejects
    visited = 0
    for count, (code, argument, _) in enumerate(genops(file)):
        if code.name == "GLOBAL":
            name = str(argument)
            if len(name) > _MAX_NAME:
                return f"it contains a name of {len(name):,} characters, which no weight needs."
            if not name.startswith(("torch", "collections ")):
                foreign.append(name.replace(" ", "."))
        if code.name in ("REDUCE", "NEWOBJ") and stack[-2]:
            return _unknown(foreign[0]) if foreign else "its pickle calls a value that is not a function."
        if code.name.endswith("PUT"):
            memo[argument] = stack[-1]
            continue
        popped: list[int] = []
        for kind in reversed(code.stack_before):
            while kind is stackslice and stack[-1] >= 0:
                popped.append(stack.pop())
            if kind is not stackslice:
                popped.append(stack.pop())
        visited += sum(popped)
        if visited > _MAX_VISITS * (count + _MAX_VISITS):
            return "its nested tuples expand to a size larger than the file."
        if code.name.endswith("GET"):
            stack.append(memo.get(argument, 1))
        else:
            size = 0 if code.name == "GLOBAL" else 1 + sum(popped) if "TUPLE" in code.name else 1
            stack.extend(-1 if kind is markobject else size for kind in code.stack_after)
    return ""


def _without_code(path: Path) -> io.BytesIO:
    """Copy a TorchScript archive's parameters, without its code, to a torch file in memory."""
    parameters = io.BytesIO()
    with ZipFile(path) as archive, ZipFile(parameters, "w") as copy:
        for name in archive.namelist():
            if re.fullmatch(r"[^/]+/(data\.pkl|data/\d+|version|byteorder)", name):
                copy.writestr(name, archive.read(name))
    parameters.seek(0)
    return parameters


def _stand_ins(source: Path | io.BytesIO) -> list[Any]:
    names = get_unsafe_globals_in_checkpoint(str(source) if isinstance(source, Path) else source)
    if not isinstance(source, Path):
        source.seek(0)
    return [
        (stand_in, name)
        for name in names
        for pattern, stand_in in _STAND_INS.items()
        if pattern.fullmatch(name)
    ]


def _unknown(name: str) -> str:
    return f"it contains a pickled object of class {name}, which is not unpickled."


def _explain(message: str) -> tuple[str, str]:
    """Problem and hint for an error message of torch.load."""
    if match := re.search(r"GLOBAL ([\w.]+)", message):
        return _unknown(match[1]), _SAVE_TENSORS
    return "not a checkpoint of plain tensors: a torch file that is damaged or truncated.", DAMAGED


def _flat_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of nested dictionaries by dotted name; none may be larger than the file."""
    size = path.stat().st_size
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flatten(path, content):
        if name in tensors:
            raise FileFormatError(
                path, f"two tensors are called {name}, one of them with torch.compile's prefix _orig_mod."
            )
        if tensor.numel() * tensor.element_size() > size:
            raise FileFormatError(path, f"{name} {tuple(tensor.shape)} is larger than the file.", DAMAGED)
        tensors[name] = tensor
    if flat := next((name for name in tensors if name.endswith("_flat_param")), ""):
        raise FileFormatError(
            path,
            f"an FSDP shard ({flat}), not a complete network.",
            "Save it with StateDictType.FULL_STATE_DICT.",
        )
    return tensors


def _flatten(path: Path, content: Any) -> Iterator[tuple[str, Tensor]]:
    pending, items = [("", content, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        items += 1
        if depth > _MAX_DEPTH or items > _MAX_ITEMS:
            raise FileFormatError(
                path, f"dictionaries nested more than {_MAX_DEPTH} levels deep, or recursively."
            )
        if isinstance(value, Scripted):
            value = getattr(value, "state", None)
        if isinstance(value, Mapping):
            parts = [
                (f"{name}.{key}" if name else str(key), part, depth + 1)
                for key, part in value.items()
                if isinstance(part, Tensor | Mapping | Scripted)
            ]
            pending.extend(reversed(parts))
        elif isinstance(value, Tensor) and _is_plain(value):
            yield _WRAPPERS.sub("", name), value.detach()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def below(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    """All prefixes of a key ``anchor``, such as ``"state_dict.model."`` in ``state_dict.model.<anchor>``."""
    return [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by their names without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def filled(
    path: str | Path, make: Callable[[], Module], tensors: Mapping[str, Tensor], verdict: str
) -> Module:
    """Build a module and load a file's tensors into it, converted to its dtypes; in evaluation mode.

    The module is built on torch's meta device: a size that does not match the file allocates no memory.

    Args:
        path: of the file, for messages.
        make: builds the module.
        tensors: its state dictionary.
        verdict: start of the message if they do not fit: "not the network r18".

    Raises:
        FileFormatError: NaN or infinite values.
        ModelError: keys, shapes or types differ (the first ones are named), or ``make`` raises an error.
    """
    try:
        with reading(path, "a network", DAMAGED), without_memory():
            module = make()
    except (InputError, ModelError) as error:
        raise ModelError(f"{path}: {error}") from error
    expected = module.state_dict()
    optional = getattr(module, "training_only", ())
    needed = {name: tensor for name, tensor in expected.items() if name in tensors or name not in optional}
    if problems := differences(needed, tensors):
        raise ModelError(f"{path}: {verdict}: {problems}")
    state = {name: torch.zeros_like(t, device="cpu") for name, t in expected.items() if name not in tensors}
    for name, reference in expected.items():
        if name in tensors:
            state[name] = tensors[name].to(reference.dtype)
            if reference.is_floating_point() and not _is_finite(state[name]):
                raise FileFormatError(path, f"NaN or infinite values in {name}.", DAMAGED)
    module.load_state_dict(state, assign=True)
    return module.eval()


class _SkipInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights: on the meta device torch would import its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules on torch's meta device: with names, shapes and dtypes, but without values or memory.

    They are of float32, also if torch's default type is another one.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("meta"), _SkipInitialisation():
            yield
    finally:
        torch.set_default_dtype(default)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """One line on keys that are missing, unexpected, or of the wrong shape or type; "" if none are."""
    shared = [(k, expected[k], given[k]) for k in expected if k in given and not k.endswith(_COUNTER)]
    kinds = {
        "missing": [k for k in expected if k not in given and not k.endswith(_COUNTER)],
        "unexpected": [k for k in given if k not in expected and not k.endswith(_COUNTER)],
        "of the wrong shape": [
            f"{k} {tuple(b.shape)} instead of {tuple(a.shape)}" for k, a, b in shared if a.shape != b.shape
        ],
        "of the wrong type": [
            f"{k} {b.dtype} instead of {a.dtype}"
            for k, a, b in shared
            if a.dtype != b.dtype and not (a.is_floating_point() and b.is_floating_point())
        ],
    }
    return "; ".join(f"{len(keys)} keys {kind} ({shorten(keys)})" for kind, keys in kinds.items() if keys)


def shorten(keys: list[str]) -> str:
    """The first few names of a list, for messages."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
