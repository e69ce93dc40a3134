"""Files that SphereCF writes: tensors by name, with a JSON header that says what they are."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from spherecf.common.files import SAFETENSORS, describe_content, write_atomically
from spherecf.common.parsing import checked, parse_json, reading
from spherecf.errors import FileFormatError, InputError
from spherecf.models._checkpoint import DAMAGED

HEADER_KEY = "spherecf"


def write_saved(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """One safetensors file with the header in its metadata, whole or not at all.

    Raises:
        InputError: the header cannot be written as JSON.
        StorageError: the disk is full or not writable; an older file is intact.
    """
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: what is saved with the tensors must be JSON-able: {error}") from error
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = to_bytes(plain, {HEADER_KEY: text})
    return write_atomically(path, lambda stream: stream.write(content))


def read_saved(
    path: str | Path, kind: str, version: int, facts: type, *, tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of this kind.

    Args:
        path: the file.
        kind: its format, as the header says it.
        version: of the format, the newest that can be read.
        facts: a dataclass of what its header must hold.
        tensors: False for the header alone.

    Raises:
        FileFormatError: another kind, a newer version, damaged, or a header with fields that are missing or
            of another type.
    """
    path = Path(path)
    header, values = _read(path, tensors)
    if header is None:
        raise FileFormatError(path, "a safetensors file, but not one SphereCF wrote (no header in it).")
    if not isinstance(header, dict) or header.get("format") != kind:
        stated = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise FileFormatError(path, f"expected the format {kind}, found {stated}.")
    if type(header.get("version")) is not int or header["version"] != version:
        newer = type(header.get("version")) is int and header["version"] > version
        raise FileFormatError(
            path,
            f"format version {header.get('version')}, this spherecf reads {version}.",
            "Update spherecf." if newer else "",
        )
    try:
        checked(facts, header, "its header")
    except InputError as error:
        raise FileFormatError(path, f"{error}.", DAMAGED) from error
    return header, values


def saved_format(path: str | Path) -> str | None:
    """The format that a file's header states; None for a file that SphereCF did not write.

    Raises:
        FileFormatError: a safetensors file that is damaged.
    """
    if describe_content(path) != SAFETENSORS:
        return None
    header, _ = _read(Path(path), tensors=False)
    stated = header.get("format") if isinstance(header, dict) else None
    return stated if isinstance(stated, str) else None


def _read(path: Path, tensors: bool) -> tuple[Any, dict[str, Tensor]]:
    """The header, None where there is none, and copies of the tensors."""
    if not path.exists():
        raise FileFormatError(path, "no such file.")
    content = describe_content(path)
    if content != SAFETENSORS:
        raise FileFormatError(path, f"not a readable model of SphereCF: it is {content}.")
    with reading(path, "a model of SphereCF", DAMAGED), safe_open(path, "pt") as stored:
        text = (stored.metadata() or {}).get(HEADER_KEY)
        names = stored.keys() if tensors else ()
        values = {name: stored.get_tensor(name).clone() for name in names}
    header = None if text is None else parse_json(text, path, "a model of SphereCF", DAMAGED)
    return header, values
