"""Files of stage 1: a trained network with what it needs to be used, and one prototype per identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models._checkpoint import filled
from spherecf.models._network import Network
from spherecf.models._networks import make_backbone
from spherecf.models._preprocessing import Preprocessing
from spherecf.models._saved import read_saved, saved_format, write_saved

BACKBONE, PROTOTYPES, VERSION = "spherecf.backbone", "spherecf.prototypes", 1


@dataclass(frozen=True)
class _NetworkFacts:
    name: str
    config: dict[str, Any]


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
    """Write a network of `NETWORKS` as one safetensors file that says what it is and what it wants to see.

    Raises:
        InputError: the record cannot be written as JSON.
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
    return write_saved(path, dict(network.state_dict()), header)


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
    header, tensors = read_saved(path, BACKBONE, VERSION, _BackboneFacts)
    name, config = header["network"]["name"], header["network"]["config"]
    try:
        make = partial(make_backbone, name, **config)
        network = filled(path, make, tensors, f"not the network {name}")
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
    except (TypeError, InputError, ModelError) as error:
        raise FileFormatError(path, f"the backbone in it cannot be made again: {error}.") from error
    return network, preprocessing, header["record"]


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
    return write_saved(path, {"prototypes": prototypes}, header)


def prototype_identities(path: str | Path) -> list[str] | None:
    """The names of the rows of a prototype file, None where the file does not say.

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
