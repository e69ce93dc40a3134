"""One direction per identity: from a classifier's weights, or from the training images themselves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import FileFormatError, InputError

KEYS = ("weight", "arc_face_state_dict.weight", "kernel", "prototypes")  # where classifiers keep their matrix


def class_mean_prototypes(
    mu: Float[Tensor, "n dim"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "identities dim"]:
    """The normalised mean direction of each identity.

    Args:
        mu: unit directions (n, dim).
        labels: identity of each, 0 .. identities - 1, each at least once.

    Raises:
        InputError: labels that do not fit, or an identity without images.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> class_mean_prototypes(mu, torch.tensor([0, 1, 1])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    sums, counts = _sums(mu, labels)
    if bool((counts == 0).any()):
        empty = torch.nonzero(counts == 0).flatten().tolist()
        raise InputError(
            f"labels: {len(empty)} identities have no image, the first is {empty[0]}; number them 0, 1, ..."
        )
    return normalize(sums, dim=1).to(mu.dtype)


def leave_one_out_prototypes(
    mu: Float[Tensor, "n dim"], labels: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "n dim"], Bool[Tensor, "n"]]:
    """For each sample the normalised mean direction of the *other* samples of its identity.

    With the sample itself in the mean its cosine is inflated and kappa comes out too sure.

    Args:
        mu: unit directions (n, dim).
        labels: identity of each sample, any non-negative integers.

    Returns:
        The prototypes (n, dim), zero where there are none, and a mask (n,) of usable samples: False for the
        only image of an identity, ``(~usable).sum()`` counts them.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> prototypes, usable = leave_one_out_prototypes(mu, torch.tensor([0, 0, 1]))
        >>> prototypes.tolist(), usable.tolist()
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [True, True, False])
    """
    sums, counts = _sums(mu, labels)
    usable = counts[labels] > 1
    rest = torch.where(usable[:, None], sums[labels] - mu.double(), 0.0)
    return normalize(rest, dim=1).to(mu.dtype), usable


def _sums(mu: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not len(mu):
        raise InputError("prototypes: expected at least one sample, got none")
    if int(labels.min()) < 0:
        raise InputError(f"labels: expected identities from 0 on, got {int(labels.min())}")
    if not bool(torch.isfinite(mu).all()):
        bad = int((~torch.isfinite(mu)).any(1).sum())
        raise InputError(f"mu: {bad} of {len(mu)} directions are not finite; leave these samples out")
    labels = labels.long()
    sums = torch.zeros(int(labels.max()) + 1, mu.shape[1], dtype=torch.float64, device=mu.device)
    sums.index_add_(0, labels, mu.double())
    return sums, torch.bincount(labels, minlength=len(sums))


def load_prototypes(path: str | Path, *, key: str | None = None) -> Float[Tensor, "identities dim"]:
    """A classifier's matrix as unit prototypes (identities, dim).

    Reads ``.npy``, ``.safetensors`` and ``.pt``/``.pth`` (weights only, nothing in the file is executed); in
    nested dictionaries the matrix is looked for under `KEYS`, or is the only matrix there.

    Args:
        path: the file.
        key: dotted name of the matrix, where it is not found by itself.

    Raises:
        FileFormatError: unreadable, no matrix or several, NaN or zero rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "classifier.npy"
        >>> np.save(path, np.array([[3.0, 4.0], [0.0, 2.0]]))
        >>> load_prototypes(path).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """
    path = Path(path)
    content = _read(path)
    tables = {name: t for name, t in _flatten(content) if t.ndim == 2}
    matrix = _pick(path, tables, key).float()
    norms = torch.linalg.vector_norm(matrix, dim=1)
    bad = int((~torch.isfinite(norms) | (norms == 0)).sum())
    if bad or not len(matrix):
        raise FileFormatError(path, f"{bad} of {len(matrix)} prototypes are not finite or zero.")
    prototypes: Tensor = matrix / norms[:, None]
    return prototypes


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileFormatError(path, "no such file.")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth", ".bin"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, TypeError, EOFError, OSError, SafetensorError) as error:
        raise FileFormatError(path, f"unreadable: {error}") from error
    except Exception as error:  # torch.load: pickle and zip errors of many classes
        raise FileFormatError(
            path, f"not a checkpoint of plain tensors: {str(error).splitlines()[0]}"
        ) from error
    raise FileFormatError(
        path, f"expected .npy, .safetensors, .pt or .pth, got {path.suffix or 'no suffix'}."
    )


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


def _pick(path: Path, tables: dict[str, Tensor], key: str | None) -> Tensor:
    names = [key] if key else [*KEYS, *(n for n in tables if len(tables) == 1)]
    for name in names:
        if name in tables:
            return tables[name]
    listing = ", ".join(f"{n or '(the array)'} {tuple(t.shape)}" for n, t in tables.items()) or "none"
    raise FileFormatError(
        path, f"expected one matrix (identities, dim), found {listing};", "pass key= with its name."
    )
