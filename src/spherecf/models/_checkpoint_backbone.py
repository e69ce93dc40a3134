"""Recognisers that others trained, known by the keys and shapes of their state dictionaries."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spherecf.errors import ModelError
from spherecf.models._checkpoint import below, read_checkpoint, stripped
from spherecf.models._ir import IR
from spherecf.models._iresnet import IResNet
from spherecf.models._mobilefacenet import MobileFaceNet
from spherecf.models._network import Network, Shapes
from spherecf.models._networks import NETWORKS, make_backbone
from spherecf.models._preprocessing import Preprocessing
from spherecf.models._trained import is_trained, load_trained
from spherecf.models._vit import VisionTransformer

FAMILIES: tuple[type[Network], ...] = (IResNet, IR, MobileFaceNet, VisionTransformer)
_COUNTER = "num_batches_tracked"  # absent from files of torch before 0.4.1, and of no use in evaluation
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
    made = _make(path, family, state, network)
    _load(path, made, state)
    return _with(made, preprocessing or _known_for(made, prefix, tensors))


def find_networks(tensors: Mapping[str, Tensor]) -> list[tuple[type[Network], str]]:
    """The known families in a file and the prefixes they stand under."""
    return [(family, prefix) for family in FAMILIES for prefix in below(tensors, family.anchor)]


def _make(path: str | Path, family: type[Network], state: Mapping[str, Tensor], network: str) -> Network:
    """An empty network on no device, of the name asked for or measured."""
    for part, reason in family.foreign.items():
        if relatives := [key for key in state if part in key]:
            raise ModelError(f"{path}: no network SphereCF knows: {relatives[0]} says that {reason}")
    try:
        architecture, options = family.measure(_shapes(state))
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: {_unknown(state)}") from error
    fitting = [name for name, make in NETWORKS.items() if _is(make, family, architecture)]
    if not network and not fitting:
        said = ", ".join(f"{k}={v}" for k, v in architecture.items())
        raise ModelError(f"{path}: {family.__name__} with {said}, which is none of {', '.join(NETWORKS)}")
    with torch.device("meta"):
        return make_backbone(network or fitting[0], **options)


def _is(make: object, family: type[Network], architecture: dict[str, Any]) -> bool:
    return isinstance(make, partial) and make.func is family and make.keywords == architecture


def _load(path: str | Path, made: Network, state: dict[str, Tensor]) -> None:
    expected = made.state_dict()
    needed = {name: t for name, t in expected.items() if name in state or name not in made.training_only}
    differences = _differences(_shapes(needed), _shapes(state))
    if differences:
        raise ModelError(f"{path}: not the network {made.name} (dim={made.dim}): {differences}")
    full = {
        name: state[name].float() if expected[name].is_floating_point() else state[name]
        for name in expected
        if name in state
    }
    counters = {name: torch.zeros_like(t, device="cpu") for name, t in expected.items() if name not in state}
    made.load_state_dict(full | counters, assign=True)


def _with(made: Network, preprocessing: Preprocessing | str) -> Network:
    if isinstance(preprocessing, Preprocessing):
        made.preprocessing = preprocessing
    elif preprocessing:
        made.preprocessing = replace(Preprocessing.preset(preprocessing), size=(made.size, made.size))
    return made.eval()


def _known_for(made: Network, prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The preset of a layout; "" where several trainers with different pixels share one."""
    if not isinstance(made, IR):
        return "magface" if prefix.endswith("features.module.") else "insightface"
    if prefix.endswith("model.") and f"{prefix.removesuffix('model.')}head.kernel" in tensors:
        return "adaface"
    return "scf" if made.name.startswith("ir-") else ""


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@cache
def _shapes_of(name: str) -> Shapes:
    """Of a network at full size; making one takes a while even without memory."""
    with torch.device("meta"):
        return _shapes(make_backbone(name).state_dict())


def _differences(expected: Shapes, given: Shapes) -> str:
    missing = [k for k in expected if k not in given and not k.endswith(_COUNTER)]
    surplus = [k for k in given if k not in expected and not k.endswith(_COUNTER)]
    other = [
        f"{k} {given[k]} and not {expected[k]}" for k in expected if k in given and given[k] != expected[k]
    ]
    kinds = (("missing", missing), ("unexpected", surplus), ("of another shape", other))
    return "; ".join(f"{len(keys)} keys {kind} ({_first(keys)})" for kind, keys in kinds if keys)


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def _unknown(tensors: Mapping[str, Tensor]) -> str:
    """Why no family was found: the network with the most keys in common, and what differs from it."""
    if not tensors:
        return "no tensors in it; expected the state dictionary of a network"
    endings = {name: {name.split(".", i)[i] for i in range(name.count(".") + 1)} for name in tensors}
    best, nearest = 0.0, ""
    expected: Shapes = {}
    everything = set().union(*endings.values())
    for name in NETWORKS:
        shapes = _shapes_of(name)
        alike = len(everything & shapes.keys()) / max(len(shapes), len(tensors))
        if alike > best:
            best, nearest, expected = alike, name, shapes
    known = f"known are {', '.join(NETWORKS)}"
    if best < _ALIKE:
        return f"no network SphereCF knows: {len(tensors)} tensors ({_first(list(tensors))}); {known}"
    given = {
        max(ends & expected.keys(), key=len, default=name): tuple(tensors[name].shape)
        for name, ends in endings.items()
    }
    return f"no network SphereCF knows; the nearest is {nearest}: {_differences(expected, given)}; {known}"
