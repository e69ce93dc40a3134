"""Files written by SphereCF: named tensors with a JSON header (models, trained networks, prototypes)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spherecf.common.files import SAFETENSORS, describe_content
from spherecf.common.parsing import checked, parse_json
from spherecf.common.tensorfile import open_tensors, write_tensors
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models.checkpoint import DAMAGED, filled
from spherecf.models.network import Network
from spherecf.models.networks import make_backbone
from spherecf.models.preprocessing import Preprocessing

HEADER_KEY = "spherecf"


def write_saved(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Write one safetensors file atomically, with the header in its metadata.

    Raises:
        InputError: the header cannot be written as JSON.
        StorageError: the disk is full or not writable; an older file is kept.
    """
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: facts saved with the tensors must be JSON-serialisable: {error}"
        ) from error
    arrays = {name: _numpy_compatible(tensor.detach().cpu()).numpy() for name, tensor in tensors.items()}
    return write_tensors(path, arrays, {HEADER_KEY: text})


def _numpy_compatible(tensor: Tensor) -> Tensor:
    """The same values in a dtype of NumPy: bfloat16 and 8-bit floats, which it lacks, become float32."""
    numpy_floats = (torch.float16, torch.float32, torch.float64)
    supported = not tensor.is_floating_point() or tensor.dtype in numpy_floats
    return tensor if supported else tensor.float()


def read_saved(
    path: str | Path, kind: str, version: int, facts: type, *, tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file in a given format.

    Args:
        path: the file.
        kind: name of the format, which the header must state.
        version: newest version of the format; the header must state this or an older one.
        facts: dataclass of the fields that the header must contain.
        tensors: False to read the header only.

    Raises:
        FileFormatError: another format or version, a damaged file, or header fields that are missing or of
            the wrong type.
    """
    path = Path(path)
    header, values = _read(path, tensors)
    if header is None:
        raise FileFormatError(path, "a safetensors file, but not one written by SphereCF (it has no header).")
    if not isinstance(header, dict) or header.get("format") != kind:
        stated = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise FileFormatError(path, f"expected the format {kind}, found {stated}.")
    stated = header.get("version")
    if type(stated) is not int or not 1 <= stated <= version:
        newer = type(stated) is int and stated > version
        raise FileFormatError(
            path,
            f"format version {stated}, this spherecf reads {'1' if version == 1 else f'1 to {version}'}.",
            "Update spherecf." if newer else "",
        )
    try:
        checked(facts, header, "its header")
    except InputError as error:
        raise FileFormatError(path, f"{error}.", DAMAGED) from error
    return header, values


def saved_format(path: str | Path) -> str | None:
    """The format stated in a file's header; None if SphereCF did not write the file.

    Raises:
        FileFormatError: a safetensors file that is damaged.
    """
    if describe_content(path) != SAFETENSORS:
        return None
    header, _ = _read(Path(path), tensors=False)
    stated = header.get("format") if isinstance(header, dict) else None
    return stated if isinstance(stated, str) else None


def _read(path: Path, tensors: bool) -> tuple[Any, dict[str, Tensor]]:
    """The header (None if there is none) and copies of the tensors."""
    with open_tensors(path, "a model of SphereCF", DAMAGED, "pt") as stored:
        text = (stored.metadata() or {}).get(HEADER_KEY)
        names = stored.keys() if tensors else ()
        values = {name: stored.get_tensor(name).clone() for name in names}
    if text is not None and text.startswith("embeddings/"):
        raise FileFormatError(path, f"expected a model of SphereCF, found {text[:80]}, an embeddings file.")
    header = None if text is None else parse_json(text, path, "a model of SphereCF", DAMAGED)
    return header, values


BACKBONE, PROTOTYPES, VERSION = "spherecf.backbone", "spherecf.prototypes", 1


@dataclass(frozen=True)
class _Options:
    """Options of `Network` whose types are checked; `make_backbone` checks all others."""

    dim: int = 512
    size: int = 112
    width: float = 1.0
    dropout: float = 0.0
    checkpointing: bool = False


@dataclass(frozen=True)
class _NetworkFacts:
    name: str
    config: _Options


@dataclass(frozen=True)
class _BackboneFacts:
    network: _NetworkFacts
    preprocessing: dict[str, Any]
    record: dict[str, Any]


@dataclass(frozen=True)
class _PrototypesFacts:
    identities: list[str]


def save_backbone(
    path: str | Path, network: Network, preprocessing: Preprocessing, record: dict[str, Any] | None = None
) -> Path:
    """Write a network of `NETWORKS` as one safetensors file, with its architecture and preprocessing.

    Raises:
        InputError: the record cannot be written as JSON.
        StorageError: the disk is full or not writable; an older file is kept.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from spherecf.models import load_backbone
        >>> network = make_backbone("r18", dim=64, size=32, width=0.125)
        >>> path = save_backbone(
        ...     Path(tempfile.mkdtemp()) / "b.safetensors", network, Preprocessing(size=(32, 32))
        ... )
        >>> again = load_backbone(path)
        >>> again.name, again.preprocessing.size
        ('r18', (32, 32))
    """
    header = {
        "format": BACKBONE,
        "version": VERSION,
        "network": {"name": network.name, "config": network.config()},
        "preprocessing": preprocessing.to_dict(),
        "record": record or {},
    }
    return write_saved(path, dict(network.state_dict()), header)


def load_trained(path: str | Path) -> tuple[Network, Preprocessing, dict[str, Any]]:
    """Load a file of `save_backbone`: the network in evaluation mode, its preprocessing and training record.

    Raises:
        FileFormatError: not such a file, or damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "backbone.safetensors"
        >>> network = make_backbone("mbf", dim=64, size=32, width=0.25)
        >>> load_trained(save_backbone(path, network, Preprocessing(size=(32, 32))))[0].dim
        64
    """
    header, tensors = read_saved(path, BACKBONE, VERSION, _BackboneFacts)
    name, config = header["network"]["name"], header["network"]["config"]
    try:
        make = partial(make_backbone, name, **config)
        network = filled(path, make, tensors, f"not the network {name}")
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
    except (TypeError, InputError, ModelError) as error:
        raise FileFormatError(path, f"its backbone cannot be rebuilt: {error}.") from error
    return network, preprocessing, header["record"]


def save_prototypes(path: str | Path, prototypes: Tensor, identities: Sequence[str]) -> Path:
    """Write one row per identity with the identities' names, so that other data sets can match rows by name.

    Raises:
        StorageError: the disk is full or not writable; an older file is kept.

    Example:
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "prototypes.safetensors"
        >>> prototype_identities(save_prototypes(path, torch.eye(2), ["Ann", "Bo"]))
        ['Ann', 'Bo']
    """
    header = {"format": PROTOTYPES, "version": VERSION, "identities": list(identities)}
    return write_saved(path, {"prototypes": prototypes}, header)


def prototype_identities(path: str | Path) -> list[str] | None:
    """Identity of each row of a prototype file; None if the file does not state them.

    Raises:
        FileFormatError: damaged.

    Example:
        >>> prototype_identities("classifier.npy")
    """
    if saved_format(path) != PROTOTYPES:
        return None
    header, _ = read_saved(path, PROTOTYPES, VERSION, _PrototypesFacts, tensors=False)
    identities: list[str] = header["identities"]
    return identities


def is_trained(path: str | Path) -> bool:
    """Whether `save_backbone` wrote this file."""
    return saved_format(path) == BACKBONE
