"""Load published recognisers and prototypes, identified by keys and shapes of the state dictionary."""

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
# CR-FIQA adds a linear layer to an IResNet, from the embedding to an estimate of image quality.
_QUALITY = ("qs.weight", "qs.bias")
_QUALITY_REMARK = (
    "the layer qs, with which CR-FIQA estimates image quality from the embedding, is not part of the network "
    "and was left out; spherecf.models.read_checkpoint reads its tensors"
)
_MIN_SHARED = 0.1  # share of common keys below which no nearest network is named


def load_backbone(
    path: str | Path, network: str = "", preprocessing: Preprocessing | str | None = None
) -> Network:
    """Load a network from a checkpoint of SphereCF or of a repository listed in docs/backbones.md.

    Family, depth, squeeze-and-excitation, embedding dimension and image size are inferred from keys and
    shapes; containers and prefixes (``state_dict``, ``module.``, ``model.``, ``net.``) do not matter.

    Args:
        path: see `read_checkpoint`.
        network: the expected architecture, a name in `NETWORKS`; "" to infer it from the keys.
        preprocessing: the one it was trained with, a `Preprocessing` or the name of a preset.

    Returns:
        The network in evaluation mode, float32, on the CPU. Its ``name`` is the architecture that was
        identified. Its ``preprocessing`` is the given one, else the one in a SphereCF file, else the one that
        the checkpoint's layout implies, else None; it is never guessed. The embedding is raw, also for
        AdaFace, whose code splits it into direction and norm.

    Raises:
        FileFormatError: unreadable, or contains pickled objects.
        ModelError: an unknown architecture (the message names the nearest one and the keys and shapes that
            differ), or none or several networks in the file.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> trained = make_backbone("ir-50", dim=64, size=32, width=0.125)
        >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
        >>> torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
        >>> network = load_backbone(path)
        >>> network.name, network.dim, network.feature_shape, network.preprocessing.std
        ('ir-50', 64, (64, 2, 2), 128.0)
    """
    if is_trained(path):
        loaded, stated, _ = load_trained(path)
        if network not in ("", loaded.name):
            raise ModelError(f"{path}: expected a network {network}, but it contains a {loaded.name}")
        return _with_preprocessing(loaded, preprocessing or stated)
    tensors = read_checkpoint(path)
    matches = find_networks(tensors)
    if len(matches) > 1:
        listing = ", ".join(prefix or "(the top)" for _, prefix in matches)
        raise ModelError(
            f"{path}: contains {len(matches)} networks, under {listing}; save the one you mean alone"
        )
    if not matches:
        raise ModelError(f"{path}: {_unknown(tensors)}")
    family, prefix = matches[0]
    state = stripped(tensors, prefix)
    name, options = _identify(path, family, state, network)
    quality = [state.pop(key) for key in _QUALITY if key in state]
    loaded = filled(
        path, partial(make_backbone, name, **options), state, f"not the network {name} (dim={options['dim']})"
    )
    loaded.remarks = [_QUALITY_REMARK] if quality else []
    return _with_preprocessing(loaded, preprocessing or _implied_preset(loaded, prefix, tensors))


def find_networks(tensors: Mapping[str, Tensor]) -> list[tuple[type[Network], str]]:
    """The known network families in a file, each with the prefix of its keys."""
    return [(family, prefix) for family in FAMILIES for prefix in below(tensors, family.anchor)]


def _identify(
    path: str | Path, family: type[Network], state: Mapping[str, Tensor], network: str
) -> tuple[str, dict[str, Any]]:
    """The network's name, as given or inferred, and its options."""
    for part, reason in family.foreign.items():
        if relatives := [key for key in state if part in key]:
            raise ModelError(f"{path}: not a supported network: {relatives[0]} shows that {reason}")
    try:
        architecture, options = family.measure({key: tuple(t.shape) for key, t in state.items()})
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path}: {_unknown(state)}") from error
    fitting = [name for name, make in NETWORKS.items() if _makes(make, family, architecture)]
    if not network and not fitting:
        listing = ", ".join(f"{k}={v}" for k, v in architecture.items())
        raise ModelError(f"{path}: {family.__name__} with {listing}, which is none of {', '.join(NETWORKS)}")
    return network or fitting[0], options


def _makes(make: object, family: type[Network], architecture: dict[str, Any]) -> bool:
    return isinstance(make, partial) and make.func is family and make.keywords == architecture


def _with_preprocessing(network: Network, preprocessing: Preprocessing | str) -> Network:
    if isinstance(preprocessing, Preprocessing):
        network.preprocessing = preprocessing
    elif preprocessing:
        size = (network.size, network.size)
        network.preprocessing = replace(Preprocessing.preset(preprocessing), size=size)
    return network.eval()


def _implied_preset(network: Network, prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The preset that a checkpoint's layout implies; "" if codes with different presets share the layout.

    Published checkpoints differ in their keys: an IResNet without a prefix is in insightface's layout, and
    the projects that adopted it (CR-FIQA, ElasticFace) use insightface's preprocessing.
    """
    if is_magface(prefix):
        return "magface" if isinstance(network, IResNet) else ""
    if prefix.endswith("model.") and f"{prefix.removesuffix('model.')}head.kernel" in tensors:
        return "adaface"
    if not isinstance(network, IR):
        return "insightface"
    return "scf" if network.name.startswith("ir-") else ""


def is_magface(prefix: str) -> bool:
    """Whether the prefix is MagFace's, ``features``, with or without the ``module`` of data parallelism.

    The prefix does not include the network's parameter names, of which insightface's also has ``features``.
    """
    names = [name for name in prefix.split(".") if name not in ("", "module")]
    return names[-1:] == ["features"]


@cache
def _original_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of a network with its original options, on torch's meta device."""
    with without_memory():
        return make_backbone(name).state_dict()


def _unknown(tensors: Mapping[str, Tensor]) -> str:
    """Explain why no family was found: the network with the most common keys, and how it differs."""
    if not tensors:
        return "no tensors in it; expected the state dictionary of a network"
    endings = {name: {name.split(".", i)[i] for i in range(name.count(".") + 1)} for name in tensors}
    best, nearest = 0.0, ""
    expected: dict[str, Tensor] = {}
    all_endings = set().union(*endings.values())
    for name in NETWORKS:
        state = _original_state(name)
        shared = len(all_endings & state.keys()) / max(len(state), len(tensors))
        if shared > best:
            best, nearest, expected = shared, name, state
    listing = f"known networks are {', '.join(NETWORKS)}"
    if best < _MIN_SHARED:
        return f"not a supported network: {len(tensors)} tensors ({shorten(list(tensors))}); {listing}"
    given = {
        max(ends & expected.keys(), key=len, default=name): tensors[name] for name, ends in endings.items()
    }
    return f"not a supported network; the nearest is {nearest}: {differences(expected, given)}; {listing}"


# Name endings of a classifier's matrix (identities, dim); "weight" counts only at the top level.
KEYS = ("arc_face_state_dict.weight", "state_dict_softmax_fc.weight", "prototypes")
# Name endings of a matrix (dim, identities): AdaFace, and TFace's classifiers on a single device.
TRANSPOSED = ("kernel",)
# One file per rank, as current and earlier versions of arcface_torch write them.
SHARDS = tuple(
    re.compile(rf"{prefix}(\d+){suffix}\.pt")
    for prefix, suffix in (("checkpoint_gpu_", ""), ("softmax_fc_gpu_", ""), ("rank[_:]", "_softmax_weight"))
)


def load_prototypes(
    path: str | Path | Sequence[str | Path], *, key: str | None = None
) -> Float[Tensor, "identities dim"]:
    """Load a classifier's weight matrix as unit prototypes (identities, dim).

    Reads ``.npy`` files and the formats of `read_checkpoint`; no code in a file is executed. The matrix is
    found by the name that known training codes use (`KEYS`, `TRANSPOSED`, MagFace's ``fc.weight``), or
    because it is the only one outside the network. Whether it is (dim, identities) follows from its name, not
    its shape.

    Args:
        path: the file. For a classifier saved as one file per rank (arcface_torch's ``checkpoint_gpu_0.pt``,
            ``softmax_fc_gpu_0.pt``, ``rank_0_softmax_weight.pt``): any of these files, their folder, or a
            list; rows are joined in rank order.
        key: dotted name of the matrix, if it is not found automatically.

    Raises:
        FileFormatError: unreadable, no matrix or several, rows that are zero or contain NaN, or the file of a
            rank that is missing or of another dimension.
        InputError: an empty list.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "classifier.npy"
        >>> np.save(path, np.array([[3.0, 4.0], [0.0, 2.0]]))
        >>> load_prototypes(path).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """
    files = _files(path)
    shards = [_matrix(file, key) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if shard.shape[1] != shards[0].shape[1]:
            raise FileFormatError(
                file,
                f"its rows have {shard.shape[1]} dimensions, those of {files[0]} {shards[0].shape[1]}:",
                "not parts of one classifier.",
            )
    prototypes: Tensor = torch.cat(shards)
    return prototypes


def _matrix(path: Path, key: str | None) -> Tensor:
    matrix = _pick(path, _read(path), key)
    if matrix.is_complex():
        raise FileFormatError(path, f"expected prototypes of real numbers, got {matrix.dtype}.")
    matrix = matrix.float()
    norms = torch.linalg.vector_norm(matrix, dim=1)
    bad = int((~torch.isfinite(norms) | (norms == 0)).sum())
    if bad or not len(matrix):
        raise FileFormatError(path, f"{bad} of {len(matrix)} prototypes are zero or not finite.")
    result: Tensor = matrix / norms[:, None]
    return result


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files to join, in rank order if their names include ranks."""
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
    sets = [[f for f in sorted(folder.iterdir()) if p.fullmatch(f.name)] for p in patterns]
    sets = [files for files in sets if files]
    if len(sets) != 1:
        listing = ", ".join(files[0].name for files in sets) or "none"
        raise FileFormatError(
            path, f"expected one classifier in files by rank, such as checkpoint_gpu_0.pt, found {listing}."
        )
    return _by_rank(sets[0])


def _rank(path: Path) -> int | None:
    matches = [m for p in SHARDS if (m := p.fullmatch(path.name))]
    return int(matches[0][1]) if matches else None


def _by_rank(files: list[Path]) -> list[Path]:
    ranks = {_rank(f): f for f in files}
    for rank in range(len(files)):
        if rank not in ranks:
            present = ", ".join(f.name for f in files)
            raise FileFormatError(
                files[0].parent, f"the file of rank {rank} is missing, there are {present};", "copy it here."
            )
    return [ranks[rank] for rank in range(len(files))]


def _read(path: Path) -> dict[str, Tensor]:
    """The matrices in a file, except those of a network."""
    if path.suffix == ".npy":
        return {"": _array(path)}
    tensors = read_checkpoint(path)
    networks = tuple(prefix for _, prefix in find_networks(tensors))
    magface = any(map(is_magface, networks))
    return {
        # MagFace's classifier is (dim, identities): rename it to a key in `TRANSPOSED`.
        re.sub(r"\bfc\.weight$", "fc.kernel", name) if magface else name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and not (networks and name.startswith(networks))
    }


def _array(path: Path) -> Tensor:
    content = describe_content(path)
    if content != NUMPY:
        raise FileFormatError(path, f"expected {NUMPY}, it is {content}.")
    with reading(path, NUMPY, DAMAGED):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # bounded by the file's size; no pickles
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
