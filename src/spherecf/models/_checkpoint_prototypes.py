"""A trained classifier's matrix as prototypes, from one file or one per rank."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.files import NUMPY, describe_content
from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError
from spherecf.models._checkpoint import DAMAGED, read_checkpoint
from spherecf.models._checkpoint_backbone import find_networks, is_magface

# Endings of the names under which classifiers keep a matrix (identities, dim); "weight" counts only on top.
KEYS = ("arc_face_state_dict.weight", "state_dict_softmax_fc.weight", "prototypes")
# Those whose matrix is (dim, identities): AdaFace, and TFace's classifiers on one device.
TRANSPOSED = ("kernel",)
# One file per rank, as arcface_torch writes and wrote them.
SHARDS = tuple(
    re.compile(rf"{before}(\d+){after}\.pt")
    for before, after in (("checkpoint_gpu_", ""), ("softmax_fc_gpu_", ""), ("rank[_:]", "_softmax_weight"))
)


def load_prototypes(
    path: str | Path | Sequence[str | Path], *, key: str | None = None
) -> Float[Tensor, "identities dim"]:
    """A classifier's matrix as unit prototypes (identities, dim).

    Reads ``.npy`` and what `read_checkpoint` reads (nothing in a file is executed). The matrix is found by
    the name its maker gives it (`KEYS`, `TRANSPOSED`, MagFace's ``fc.weight``), or is the only one beside a
    network. A kernel (dim, identities) is transposed by its name, not by its shape.

    Args:
        path: the file. Of a classifier in one file per rank (arcface_torch's ``checkpoint_gpu_0.pt``,
            ``softmax_fc_gpu_0.pt``, ``rank_0_softmax_weight.pt``): any of them, their folder, or a list;
            rows are joined by rank.
        key: dotted name of the matrix, where it is not found by itself.

    Raises:
        FileFormatError: unreadable, no matrix or several, NaN or zero rows, a rank missing or of another
            dimension.
        InputError: an empty list.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "classifier.npy"
        >>> np.save(path, np.array([[3.0, 4.0], [0.0, 2.0]]))
        >>> load_prototypes(path).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """
    files = _files(path)
    parts = [_matrix(file, key) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise FileFormatError(
                file,
                f"its rows have {part.shape[1]} dimensions, those of {files[0]} {parts[0].shape[1]}:",
                "not parts of one classifier.",
            )
    prototypes: Tensor = torch.cat(parts)
    return prototypes


def _matrix(path: Path, key: str | None) -> Tensor:
    matrix = _pick(path, _read(path), key)
    if matrix.is_complex():
        raise FileFormatError(path, f"expected prototypes of real numbers, got {matrix.dtype}.")
    matrix = matrix.float()
    norms = torch.linalg.vector_norm(matrix, dim=1)
    bad = int((~torch.isfinite(norms) | (norms == 0)).sum())
    if bad or not len(matrix):
        raise FileFormatError(path, f"{bad} of {len(matrix)} prototypes are not finite or zero.")
    result: Tensor = matrix / norms[:, None]
    return result


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files to join, by rank where their names tell it."""
    if not isinstance(path, str | Path):
        files = [Path(p) for p in path]
        if not files:
            raise InputError("prototypes: expected at least one file, got an empty list")
        return _by_rank(files) if all(_rank(f) is not None for f in files) else files
    path = Path(path)
    if not path.is_dir() and _rank(path) is None:
        return [path]
    folder = path if path.is_dir() else path.parent
    patterns = [p for p in SHARDS if path.is_dir() or p.fullmatch(path.name)]
    found = [[f for f in sorted(folder.iterdir()) if p.fullmatch(f.name)] for p in patterns]
    found = [files for files in found if files]
    if len(found) != 1:
        listing = ", ".join(files[0].name for files in found) or "none"
        raise FileFormatError(
            path, f"expected one classifier in files by rank, such as checkpoint_gpu_0.pt, found {listing}."
        )
    return _by_rank(found[0])


def _rank(path: Path) -> int | None:
    matches = [m for p in SHARDS if (m := p.fullmatch(path.name))]
    return int(matches[0][1]) if matches else None


def _by_rank(files: list[Path]) -> list[Path]:
    ranks = {_rank(f): f for f in files}
    for rank in range(len(files)):
        if rank not in ranks:
            have = ", ".join(f.name for f in files)
            raise FileFormatError(
                files[0].parent, f"the file of rank {rank} is missing, there are {have};", "copy it here."
            )
    return [ranks[rank] for rank in range(len(files))]


def _read(path: Path) -> dict[str, Tensor]:
    """The matrices of a file, without those of a network in it."""
    if path.suffix == ".npy":
        return {"": _array(path)}
    tensors = read_checkpoint(path)
    networks = tuple(prefix for _, prefix in find_networks(tensors))
    magface = any(map(is_magface, networks))
    return {
        # MagFace's matrix beside its network is (dim, identities), and is called so here.
        re.sub(r"\bfc\.weight$", "fc.kernel", name) if magface else name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and not (networks and name.startswith(networks))
    }


def _array(path: Path) -> Tensor:
    content = describe_content(path)
    if content != NUMPY:
        raise FileFormatError(path, f"expected {NUMPY}, it is {content}.")
    with reading(path, NUMPY, DAMAGED):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # no larger than the file, no objects
        return torch.from_numpy(np.array(mapped))


def _pick(path: Path, tables: dict[str, Tensor], key: str | None) -> Tensor:
    named = [n for n in tables if f".{n}".endswith(tuple(f".{k}" for k in (*KEYS, *TRANSPOSED)))]
    names = [key] if key else [n for n in tables if n == "weight"] or named or list(tables)
    if len(names) == 1 and names[0] in tables and tables[names[0]].ndim == 2:
        matrix = tables[names[0]]
        return matrix.T if f".{names[0]}".endswith(tuple(f".{k}" for k in TRANSPOSED)) else matrix
    listing = ", ".join(f"{n or '(the array)'} {tuple(t.shape)}" for n, t in tables.items()) or "none"
    raise FileFormatError(
        path, f"expected one matrix (identities, dim), found {listing};", "pass key= with its name."
    )
