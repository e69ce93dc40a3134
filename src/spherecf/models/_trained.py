"""Files of stage 1: a trained network with what it needs to be used, and one prototype per identity."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from spherecf._files import write_atomically
from spherecf.errors import FileFormatError
from spherecf.models._network import Network
from spherecf.models._networks import make_backbone
from spherecf.models._preprocessing import Preprocessing

BACKBONE, PROTOTYPES, VERSION = "spherecf.backbone", "spherecf.prototypes", 1
HEADER_KEY = "spherecf"


def save_backbone(
    path: str | Path, network: Network, preprocessing: Preprocessing, record: dict[str, Any] | None = None
) -> Path:
    """Write a network of `NETWORKS` as one safetensors file that says what it is and what it wants to see.

    Raises:
        StorageError: the disk is full or not writable; an older file is intact.

    Example:
        >>> import tempfile
        >>> network = make_backbone("r18", dim=64, size=32, width=0.125)
        >>> path = save_backbone(
        ...     Path(tempfile.mkdtemp()) / "b.safetensors", network, Preprocessing(size=(32, 32))
        ... )
        >>> again, preprocessing, record = load_trained(path)
        >>> again.name, preprocessing.size, record
        ('r18', (32, 32), {})
    """
    header = {
        "format": BACKBONE,
        "version": VERSION,
        "network": {"name": network.name, "config": network.config()},
        "preprocessing": preprocessing.to_dict(),
        "record": record or {},
    }
    return _write(path, dict(network.state_dict()), header)


def load_trained(path: str | Path) -> tuple[Network, Preprocessing, dict[str, Any]]:
    """Undo `save_backbone`: the network in evaluation mode, its preprocessing, the record of its training.

    Raises:
        FileFormatError: not such a file, or damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "backbone.safetensors"
        >>> network = make_backbone("mbf", dim=64, size=32, width=0.25)
        >>> load_trained(save_backbone(path, network, Preprocessing(size=(32, 32))))[0].dim
        64
    """
    header, tensors = read_tagged(path, BACKBONE)
    try:
        network = make_backbone(header["network"]["name"], **header["network"]["config"])
        network.load_state_dict(tensors)
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise FileFormatError(path, f"the backbone in it cannot be made again: {error}") from error
    return network.eval(), preprocessing, header["record"]


def save_prototypes(path: str | Path, prototypes: Tensor, identities: Sequence[str]) -> Path:
    """Write one row per identity, with the identities' names, by which other data sets find theirs.

    Raises:
        StorageError: the disk is full or not writable; an older file is intact.

    Example:
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "prototypes.safetensors"
        >>> prototype_identities(save_prototypes(path, torch.eye(2), ["Ann", "Bo"]))
        ['Ann', 'Bo']
    """
    header = {"format": PROTOTYPES, "version": VERSION, "identities": list(identities)}
    return _write(path, {"prototypes": prototypes}, header)


def prototype_identities(path: str | Path) -> list[str] | None:
    """The names of the rows of a prototype file, None where the file does not say.

    Example:
        >>> prototype_identities("classifier.npy")
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    header, _ = _read(path, tensors=False)
    return list(header["identities"]) if header.get("format") == PROTOTYPES else None


def is_trained(path: str | Path) -> bool:
    """Whether `save_backbone` wrote this file."""
    path = Path(path)
    return (
        path.suffix == ".safetensors"
        and path.is_file()
        and _read(path, tensors=False)[0].get("format") == BACKBONE
    )


def read_tagged(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of this kind.

    Raises:
        FileFormatError: another kind, a newer version, or damaged.
    """
    header, tensors = _read(Path(path))
    if header.get("format") != kind or header.get("version") != VERSION:
        found = f"{header.get('format', 'no header of SphereCF')}, version {header.get('version', '-')}"
        raise FileFormatError(path, f"expected {kind}, version {VERSION}, got {found}.")
    return header, tensors


def _write(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = to_bytes(plain, {HEADER_KEY: json.dumps(header, allow_nan=False)})
    return write_atomically(path, lambda stream: stream.write(content))


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as stored:
            header = json.loads((stored.metadata() or {}).get(HEADER_KEY, "{}"))
            names = stored.keys() if tensors else ()
            return header, {name: stored.get_tensor(name) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise FileFormatError(path, f"unreadable: {error}") from error
