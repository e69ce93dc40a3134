"""The backbones that can be trained here, by name."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from spherecf.errors import ModelError
from spherecf.models._ir import IR
from spherecf.models._iresnet import IResNet
from spherecf.models._mobilefacenet import MobileFaceNet
from spherecf.models._network import Network
from spherecf.models._vit import TRANSFORMERS, VisionTransformer

_DEPTHS = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}  # fmt: skip
_TFACE = {**_DEPTHS, 101: _DEPTHS[100], 200: (3, 24, 36, 3)}  # it counts the same network as 101


def _tface(layers: int, se: bool) -> Callable[..., Network]:
    block = "normed" if layers <= 101 else "bottleneck"
    return partial(IR, depths=_TFACE[layers], block=block, se=se)


NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"r{n}": partial(IResNet, depths=_DEPTHS[n], se=False) for n in (18, 34, 50, 100, 200)},
    **{f"r{n}-se": partial(IResNet, depths=_DEPTHS[n], se=True) for n in (18, 34, 50, 100, 200)},
    "mbf": partial(MobileFaceNet, depths=(1, 4, 6, 2), scale=2),
    "mbf-large": partial(MobileFaceNet, depths=(2, 8, 12, 4), scale=4),
    **{f"ir-{n}": partial(IR, depths=_DEPTHS[n], block="plain", se=False) for n in (18, 34, 50, 100, 152)},
    **{f"ir-se-{n}": partial(IR, depths=_DEPTHS[n], block="plain", se=True) for n in (50, 100, 152)},
    **{f"tface-ir-{n}": _tface(n, se=False) for n in (18, 34, 50, 101, 152, 200)},
    **{f"tface-ir-se-{n}": _tface(n, se=True) for n in (50, 101, 152, 200)},
    **{name: partial(VisionTransformer, **arguments) for name, arguments in TRANSFORMERS.items()},
}
"""What makes each network: ``r*``, ``mbf*`` and ``vit_*`` are insightface's arcface_torch, ``ir-*`` the SCF
reference, ``tface-ir-*`` TFace, AdaFace and CVLface (which write ``ir_*``), ``transface_*`` TransFace, and
``cvlface_*`` CVLface's transformers."""


def make_backbone(name: str, dim: int = 512, **options: Any) -> Network:
    """A new network by name, with the original's initialisation and names of parameters.

    Args:
        name: one of `NETWORKS`.
        dim: length of the embedding.
        options: ``dropout``, ``checkpointing``, ``size`` (of the images, 112) and ``width``, see `Network`;
            of transformers also ``drop_path`` and ``mask``, see `VisionTransformer`.

    Returns:
        A module in training mode that maps pixels (n, 3, size, size) to (embedding (n, dim), last map (n, C,
        H, W)).

    Raises:
        ModelError: unknown name (near ones are told), or options it does not take.
        InputError: an option out of range.

    Example:
        >>> import torch
        >>> network = make_backbone("r18", dim=64, size=32, width=0.125)
        >>> embedding, features = network(torch.zeros(2, 3, 32, 32))
        >>> tuple(embedding.shape), tuple(features.shape)
        ((2, 64), (2, 64, 2, 2))
    """
    if name not in NETWORKS:
        known = {n.replace("_", "-"): n for n in NETWORKS}
        wanted = name.lower().replace("_", "-")
        alike = [n for n in known if n.endswith(wanted)] or difflib.get_close_matches(wanted, known)
        near = [known[n] for n in alike]
        hint = f"did you mean {' or '.join(near)}? All" if near else "there"
        raise ModelError(f"unknown network {name!r}; {hint} are {', '.join(NETWORKS)}")
    try:
        network = NETWORKS[name](dim=dim, **options)
    except TypeError as error:
        raise ModelError(f"network {name}: options {options} do not fit: {error}") from error
    network.name = name
    return network
