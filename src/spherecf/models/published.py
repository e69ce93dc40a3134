"""Recognisers and prototypes that others trained, known by keys and shapes of the state dictionary."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.files import NUMPY, describe_content
from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models.checkpoint import (
    DAMAGED,
    below,
    differences,
    filled,
    read_checkpoint,
    shorten,
    stripped,
    without_memory,
)
from spherecf.models.network import Network
from spherecf.models.networks import IR, NETWORKS, IResNet, MobileFaceNet, make_backbone
from spherecf.models.preprocessing import Preprocessing
from spherecf.models.saved import is_trained, load_trained
from spherecf.models.transformer import VisionTransformer

FAMILIES: tuple[type[Network], ...] = (IResNet, IR, MobileFaceNet, VisionTransformer)
# Beside an IResNet: one linear layer from its embedding to CR-FIQA's estimate of the image's quality.
_QUALITY = ("qs.weight", "qs.bias")
_QUALITY_REMARK = (
    "the layer qs, CR-FIQA's quality of an image by its embedding, is no part of the network and was left "
    "out; spherecf.models.read_checkpoint has its tensors"
)
_ALIKE = 0.1  # share of keys in common below which naming a nearest network helps nobody


def load_backbone(
    path: str | Path, network: str = "", preprocessing: Preprocessing | str | None = None
) -> Network:
    """A network from a checkpoint of our own, or of one of the repositories listed in docs/backbones.md.

    Family, depth, squeeze-and-excitation, embedding length and image size are read from keys and shapes;
    containers and prefixes (``state_dict``, ``module.``, ``model.``, ``net.``) do not matter.

    Args:
        path: see `read_checkpoint`.
        network: a name in `NETWORKS`, to insist on it; by default what the keys say.
        preprocessing: what it was trained with, a `Preprocessing` or a preset's name.

    Returns:
        The network in evaluation mode, float32, on the CPU. Its ``name`` says what it was recognised as. Its
        ``preprocessing`` is as given, else what our own file says, else what that layout is known for, else
        None: nothing is guessed. The embedding is raw also where the original (AdaFace) splits it into
        direction and norm.

    Raises:
        FileFormatError: unreadable, or pickled objects in it.
        ModelError: another architecture (the nearest is named, and which keys and shapes differ), none, or
            several in one file.

    Example:
        >>> import tempfile
        >>> trained = make_backbone("ir-50", dim=64, size=32, width=0.125)
        >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
        >>> torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
        >>> network = load_backbone(path)
        >>> network.name, network.dim, network.feature_shape, network.preprocessing.std
        ('ir-50', 64, (64, 2, 2), 128.0)
    """
    if is_trained(path):
        made, stated, _ = load_trained(path)
        if network not in ("", made.name):
            raise ModelError(f"{path}: expected a network {network}, it holds a {made.name}")
        return _with(made, preprocessing or stated)
    tensors = read_checkpoint(path)
    found = find_networks(tensors)
    if len(found) > 1:
        listing = ", ".join(prefix or "(the top)" for _, prefix in found)
        raise ModelError(f"{path}: holds {len(found)} networks, under {listing}; save the one you mean alone")
    if not found:
        raise ModelError(f"{path}: {_unknown(tensors)}")
    family, prefix = found[0]
    state = stripped(tensors, prefix)
    name, options = _recognised(path, family, state, network)
    quality = [state.pop(key) for key in _QUALITY if key in state]
    made = filled(
        path, partial(make_backbone, name, **options), state, f"not the network {name} (dim={options['dim']})"
    )
    made.remarks = [_QUALITY_REMARK] if quality else []
    return _with(made, preprocessing or _known_for(made, prefix, tensors))


def find_networks(tensors: Mapping[str, Tensor]) -> list[tuple[type[Network], str]]:
    """The known families in a file and the prefixes they stand under."""
    return [(family, prefix) for family in FAMILIES for prefix in below(tensors, family.anchor)]


def _recognised(
    path: str | Path, family: type[Network], state: Mapping[str, Tensor], network: str
) -> tuple[str, dict[str, Any]]:
    """The name asked for or measured, and the options."""
    for part, reason in family.foreign.items():
        if relatives := [key for key in state if part in key]:
            raise ModelError(f"{path}: no network SphereCF knows: {relatives[0]} says that {reason}")
    try:
        architecture, options = family.measure(_shapes(state))
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path}: {_unknown(state)}") from error
    fitting = [name for name, make in NETWORKS.items() if _is(make, family, architecture)]
    if not network and not fitting:
        said = ", ".join(f"{k}={v}" for k, v in architecture.items())
        raise ModelError(f"{path}: {family.__name__} with {said}, which is none of {', '.join(NETWORKS)}")
    return network or fitting[0], options


def _is(make: object, family: type[Network], architecture: dict[str, Any]) -> bool:
    return isinstance(make, partial) and make.func is family and make.keywords == architecture


def _with(made: Network, preprocessing: Preprocessing | str) -> Network:
    if isinstance(preprocessing, Preprocessing):
        made.preprocessing = preprocessing
    elif preprocessing:
        made.preprocessing = replace(Preprocessing.preset(preprocessing), size=(made.size, made.size))
    return made.eval()


def _known_for(made: Network, prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The preset of a layout; "" where several trainers with different pixels share one.

    Decided by how the keys were published: an IResNet without a name before it is insightface's, and those
    who trained it like that (CR-FIQA, ElasticFace) took its pixels.
    """
    if is_magface(prefix):
        return "magface" if isinstance(made, IResNet) else ""
    if prefix.endswith("model.") and f"{prefix.removesuffix('model.')}head.kernel" in tensors:
        return "adaface"
    if not isinstance(made, IR):
        return "insightface"
    return "scf" if made.name.startswith("ir-") else ""


def is_magface(prefix: str) -> bool:
    """Whether a network stands where MagFace keeps it, under ``features``, whatever was run in parallel.

    The prefix ends before the network's own names, of which insightface's last layer is ``features`` too.
    """
    names = [name for name in prefix.split(".") if name not in ("", "module")]
    return names[-1:] == ["features"]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@cache
def _original_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of a network as its makers publish it, without memory."""
    with without_memory():
        return make_backbone(name).state_dict()


def _unknown(tensors: Mapping[str, Tensor]) -> str:
    """Why no family was found: the network with the most keys in common, and what differs from it."""
    if not tensors:
        return "no tensors in it; expected the state dictionary of a network"
    endings = {name: {name.split(".", i)[i] for i in range(name.count(".") + 1)} for name in tensors}
    best, nearest = 0.0, ""
    expected: dict[str, Tensor] = {}
    everything = set().union(*endings.values())
    for name in NETWORKS:
        state = _original_state(name)
        alike = len(everything & state.keys()) / max(len(state), len(tensors))
        if alike > best:
            best, nearest, expected = alike, name, state
    known = f"known are {', '.join(NETWORKS)}"
    if best < _ALIKE:
        return f"no network SphereCF knows: {len(tensors)} tensors ({shorten(list(tensors))}); {known}"
    given = {
        max(ends & expected.keys(), key=len, default=name): tensors[name] for name, ends in endings.items()
    }
    return f"no network SphereCF knows; the nearest is {nearest}: {differences(expected, given)}; {known}"


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
