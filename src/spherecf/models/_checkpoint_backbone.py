"""Recognisers that others trained, known by the keys and shapes of their state dictionaries."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from spherecf.errors import ModelError
from spherecf.models._checkpoint import (
    below,
    differences,
    filled,
    first,
    read_checkpoint,
    stripped,
    without_memory,
)
from spherecf.models._ir import IR
from spherecf.models._iresnet import IResNet
from spherecf.models._mobilefacenet import MobileFaceNet
from spherecf.models._network import Network
from spherecf.models._networks import NETWORKS, make_backbone
from spherecf.models._preprocessing import Preprocessing
from spherecf.models._trained import is_trained, load_trained
from spherecf.models._vit import VisionTransformer

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
        return f"no network SphereCF knows: {len(tensors)} tensors ({first(list(tensors))}); {known}"
    given = {
        max(ends & expected.keys(), key=len, default=name): tensors[name] for name, ends in endings.items()
    }
    return f"no network SphereCF knows; the nearest is {nearest}: {differences(expected, given)}; {known}"
