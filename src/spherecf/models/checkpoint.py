"""Checkpoint files of many makers as plain tensors by dotted name; nothing in them is executed."""

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
_SAVE_TENSORS = "Where you trust it, save its tensors alone: torch.save(model.state_dict(), ...)."

Module = TypeVar("Module", bound=nn.Module)

_MAX_DEPTH, _MAX_ITEMS = 50, 1_000_000  # of nested dictionaries: a pickle can refer to itself
_MAX_RATIO = 4  # of the bytes in a zip archive to its own
_LONGEST_NAME = 1_000  # of a class or function in a pickle
_MAX_VISITS = 100  # of each value in a pickle: two or three are usual
_OLD_PICKLES = 4  # a file of torch before 1.6 begins with them: magic number, version, system, content
_COUNTER = "num_batches_tracked"  # absent from files of torch before 0.4.1, and of no use in evaluation
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Ignored:
    """Stands for a pickled object that is no weight: takes any arguments and state, and keeps none."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Scripted(Ignored):
    """Stands for a module of a TorchScript archive: keeps what it holds, without its code."""

    def __setstate__(self, state: object) -> None:
        self.state = state


# What trainers put beside the weights: settings, callbacks, paths, numbers of NumPy. A name listed here is
# not imported but replaced.
_STAND_INS = {
    re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.AttributeDict"): dict,
    re.compile(
        r"argparse\.Namespace|pathlib\.\w*Path|(pytorch_lightning|lightning)\.[\w.]*callbacks\.[\w.]+"
        r"|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|_codecs\.encode|torch\.jit\._pickle\.\w+"
    ): Ignored,
    re.compile(r"__torch__\.[\w.]+"): Scripted,
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by dotted name, on the CPU; nested dictionaries are joined by dots.

    What a file is, its first bytes say and not its suffix. What torch.compile and FSDP add to names
    (``_orig_mod.``, ``_fsdp_wrapped_module.``) is left out.

    Args:
        path: ``.safetensors``, or a torch file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.tar``), which is
            read with weights only; settings and callbacks that Lightning and argparse leave are skipped. Of a
            TorchScript archive the parameters are read, its code is not.

    Raises:
        FileFormatError: absent, truncated, of another kind (which is named: a web page, an archive, ...), or
            it holds objects that only its own code could read (the first class is named).

    Example:
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
            path, f"expected one of {', '.join(CHECKPOINT_SUFFIXES)}, got {path.suffix or 'no suffix'}."
        )
    content = describe_content(path)
    if content == SAFETENSORS:
        with reading(path, content, DAMAGED):
            return _named(path, load_file(path))
    if content not in (TORCH, OLD_TORCH, TORCHSCRIPT):
        raise FileFormatError(
            path, f"not a checkpoint of plain tensors: expected a torch or safetensors file, it is {content}."
        )
    return _named(path, _unpickled(path, content))


def _unpickled(path: Path, content: str) -> Any:
    source: Path | io.BytesIO = path
    stand_ins: list[Any] = []
    try:
        if content == OLD_TORCH:  # of which torch does not list what it refers to
            with path.open("rb") as file:
                _check_pickles(path, file, _OLD_PICKLES)
        else:
            _check_archive(path)
            source = _without_code(path) if content == TORCHSCRIPT else path
            if path.suffix == ".safetensors":  # by which torch goes
                source = io.BytesIO(path.read_bytes())
            stand_ins = _stand_ins(source)
        with safe_globals(stand_ins):
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileFormatError:
        raise
    except Exception as error:  # torch.load: pickle and zip errors of many classes
        # Neither torch's words nor its traceback: they recommend to execute what is in the file.
        raise FileFormatError(path, *_why(str(error))) from None


def _check_archive(path: Path) -> None:
    with ZipFile(path) as archive:
        claimed = sum(info.file_size for info in archive.infolist())
        if claimed > _MAX_RATIO * path.stat().st_size + 2**20:  # torch does not compress
            raise ValueError("a few bytes that claim to be many")
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                _check_pickles(path, io.BytesIO(archive.read(name)))


def _check_pickles(path: Path, file: IO[bytes], pickles: int = 1) -> None:
    """Refuse at once what torch would refuse in minutes or hours: it searches its own message, which quotes
    a name that it does not know, and the value of what is called where that is no name (all numbers of a
    storage, say), in a time that grows with the square of the longest word. And tuples that share parts, so
    that a few bytes are 2^n values when they become a key.
    """
    problem = ""
    with suppress(ValueError, IndexError):  # torch stops where this reader does
        for _ in range(pickles):
            problem = problem or _problem(file)
    if problem:
        raise FileFormatError(path, problem, _SAVE_TENSORS)


def _problem(file: IO[bytes]) -> str:
    # Of each value how many it consists of, and 0 for what a name stands for; -1 is a mark.
    stack: list[int] = []
    memo: dict[object, int] = {}
    others: list[str] = []  # names at which torch stops already, most probably
    visited = 0
    for count, (code, argument, _) in enumerate(genops(file)):
        if code.name == "GLOBAL":
            name = str(argument)
            if len(name) > _LONGEST_NAME:
                return f"it holds a name of {len(name):,} characters, which is none of a weight."
            if not name.startswith(("torch", "collections ")):
                others.append(name.replace(" ", "."))
        if code.name in ("REDUCE", "NEWOBJ") and stack[-2]:
            return _unknown(others[0]) if others else "it calls what is no function."
        if code.name.endswith("PUT"):
            memo[argument] = stack[-1]
            continue
        taken: list[int] = []
        for kind in reversed(code.stack_before):
            while kind is stackslice and stack[-1] >= 0:
                taken.append(stack.pop())
            if kind is not stackslice:
                taken.append(stack.pop())
        visited += sum(taken)
        if visited > _MAX_VISITS * (count + _MAX_VISITS):
            return "its tuples share parts so that they are larger than the file."
        if code.name.endswith("GET"):
            stack.append(memo.get(argument, 1))
        else:
            size = 0 if code.name == "GLOBAL" else 1 + sum(taken) if "TUPLE" in code.name else 1
            stack.extend(-1 if kind is markobject else size for kind in code.stack_after)
    return ""


def _without_code(path: Path) -> io.BytesIO:
    """The parameters of a TorchScript archive as a torch file."""
    plain = io.BytesIO()
    with ZipFile(path) as archive, ZipFile(plain, "w") as copy:
        for name in archive.namelist():
            if re.fullmatch(r"[^/]+/(data\.pkl|data/\d+|version|byteorder)", name):
                copy.writestr(name, archive.read(name))
    plain.seek(0)
    return plain


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
    return f"it holds a pickled object of {name}, which is not unpickled."


def _why(message: str) -> tuple[str, str]:
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return _unknown(found[1]), _SAVE_TENSORS
    return "not a checkpoint of plain tensors: a torch file that is damaged or cut short.", DAMAGED


def _named(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, each with no more values than a file of this size can hold."""
    size = path.stat().st_size
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flatten(path, content):
        if name in tensors:
            raise FileFormatError(
                path, f"two tensors are called {name}, once with torch.compile's _orig_mod."
            )
        if tensor.numel() * tensor.element_size() > size:
            raise FileFormatError(path, f"{name} {tuple(tensor.shape)} is larger than the file.", DAMAGED)
        tensors[name] = tensor
    if flat := next((name for name in tensors if name.endswith("_flat_param")), ""):
        raise FileFormatError(
            path,
            f"a shard of FSDP ({flat}), not a whole network.",
            "Save it with StateDictType.FULL_STATE_DICT.",
        )
    return tensors


def _flatten(path: Path, content: Any) -> Iterator[tuple[str, Tensor]]:
    pending, items = [("", content, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        items += 1
        if depth > _MAX_DEPTH or items > _MAX_ITEMS:
            raise FileFormatError(path, f"dictionaries nested more than {_MAX_DEPTH} deep, or without end.")
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
    """The prefixes under which a key stands: ``["state_dict.model."]`` for ``state_dict.model.<anchor>``."""
    return [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def filled(
    path: str | Path, make: Callable[[], Module], tensors: Mapping[str, Tensor], verdict: str
) -> Module:
    """The module that ``make`` gives with a file's tensors, in its own types and evaluation mode.

    It is first made without memory, so that a size which no tensor has costs nothing.

    Args:
        path: of the file, for messages.
        make: of any module.
        tensors: its state dictionary.
        verdict: what to say where they do not fit: "not the network r18".

    Raises:
        FileFormatError: NaN or infinite numbers.
        ModelError: keys, shapes or types that differ (the first are named); or what ``make`` refuses.
    """
    try:
        with reading(path, "a network", DAMAGED), without_memory():
            module = make()
    except (InputError, ModelError) as error:
        raise ModelError(f"{path}: {error}") from error
    expected = module.state_dict()
    optional = getattr(module, "training_only", ())
    needed = {name: like for name, like in expected.items() if name in tensors or name not in optional}
    if problems := differences(needed, tensors):
        raise ModelError(f"{path}: {verdict}: {problems}")
    state = {name: torch.zeros_like(t, device="cpu") for name, t in expected.items() if name not in tensors}
    for name, like in expected.items():
        if name in tensors:
            state[name] = tensors[name].to(like.dtype)
            if like.is_floating_point() and not _is_finite(state[name]):
                raise FileFormatError(path, f"NaN or infinite numbers in {name}.", DAMAGED)
    module.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in module.buffers()):  # those that no file holds
        module = make()
        module.load_state_dict(state)
    return module.eval()


class _Unfilled(TorchFunctionMode):
    """Leaves out first values: torch imports its compiler to draw them for a tensor without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in here have names, shapes and types, but no values."""
    with torch.device("meta"), _Unfilled():
        yield


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Which keys are missing, unexpected, of another shape or type, in one line; "" for none."""
    shared = [(k, expected[k], given[k]) for k in expected if k in given and not k.endswith(_COUNTER)]
    kinds = {
        "missing": [k for k in expected if k not in given and not k.endswith(_COUNTER)],
        "unexpected": [k for k in given if k not in expected and not k.endswith(_COUNTER)],
        "of another shape": [
            f"{k} {tuple(b.shape)} and not {tuple(a.shape)}" for k, a, b in shared if a.shape != b.shape
        ],
        "of another type": [
            f"{k} {b.dtype} and not {a.dtype}"
            for k, a, b in shared
            if a.dtype != b.dtype and not (a.is_floating_point() and b.is_floating_point())
        ],
    }
    return "; ".join(f"{len(keys)} keys {kind} ({shorten(keys)})" for kind, keys in kinds.items() if keys)


def shorten(keys: list[str], count: int = 3) -> str:
    """The first few of many names, for messages."""
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
