"""Confidence heads as the SCF reference and TFace save them, and our own, both ways."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models._artefact import saved_head
from spherecf.models._checkpoint import below, filled, read_checkpoint, stripped, without_memory
from spherecf.models._heads import ConfidenceHead, ConvHead, LinearHead
from spherecf.models._saved import saved_format

_DENSE = "_log_kappa.0.weight"
_CONVOLUTION = "conv_.0.weight"
_CHANNELS = 512  # of every map the reference's heads were made for
# Ours by the original's; convolutions, norms and layers are counted alike, only the names differ.
_LINEAR_NAMES = {"hidden.1.": "_log_kappa.0.", "hidden.3.": "_log_kappa.2.", "final.": "_log_kappa.4."}
_CONV_NAMES = {
    "convolutions.": "conv_.",
    "hidden.0.": "_log_kappa.0.",
    "hidden.2.": "_log_kappa.2.",
    "final.": "_log_kappa.4.",
}


def load_confidence_head(
    path: str | Path, *, feature_shape: tuple[int, int, int] | None = None
) -> ConfidenceHead:
    """A trained head: the reference's linear one, TFace's convolutions, or one that SphereCF saved.

    The originals give log(1e-6 + kappa), ours log(kappa) itself: they differ by 1e-6 / kappa.

    Args:
        path: a checkpoint (``uncer_net_state_dict`` or ``state_dict`` of the originals, or the bare state
            dictionary), or a file of `ConfidenceModel.save`.
        feature_shape: (C, H, W) of the maps. A linear head's file holds only their product, taken as 512
            channels of a square; convolutions do not say a size at all, taken as 7x7.

    Returns:
        A `LinearHead`, a `ConvHead` or whatever was saved, in evaluation mode.

    Raises:
        FileFormatError: unreadable, or no such head in it.
        ModelError: tensors that do not fit the head (which is said).
        InputError: maps of another size than the head's.

    Example:
        >>> import tempfile, torch
        >>> head = LinearHead(512, 1, 1)
        >>> path = Path(tempfile.mkdtemp()) / "ckpt_e30.pt"
        >>> torch.save({"epoch": 29, "uncer_net_state_dict": original_head_state(head)}, path)
        >>> load_confidence_head(path).feature_shape
        (512, 1, 1)
    """
    path = Path(path)
    tensors = read_checkpoint(path)
    prefixes = below(tensors, _DENSE)
    if len(prefixes) == 1:
        return _original(path, stripped(tensors, prefixes[0]), feature_shape)
    if saved_format(path) is None:
        raise FileFormatError(
            path,
            f"expected one head of the SCF reference or of TFace (the key {_DENSE}), found {len(prefixes)};",
            f"its first keys are {', '.join(list(tensors)[:3]) or 'none'}.",
        )
    head = saved_head(path)
    if feature_shape not in (None, head.feature_shape):
        raise InputError(f"{path}: a head for maps {head.feature_shape}, asked for {feature_shape}")
    return head


def original_head_state(head: ConfidenceHead) -> dict[str, Tensor]:
    """The head's tensors by the names the reference and TFace read.

    Raises:
        ModelError: a kind that they do not have.

    Example:
        >>> list(original_head_state(LinearHead(8, 2, 2)))[:2]
        ['_log_kappa.0.weight', '_log_kappa.0.bias']
    """
    names = {"linear": _LINEAR_NAMES, "conv": _CONV_NAMES}.get(head.kind)
    if names is None:
        raise ModelError(f"a {head.kind} head has no original form; those of kind linear and conv have one")
    return {
        key.replace(ours, theirs, 1): tensor
        for key, tensor in head.state_dict().items()
        for ours, theirs in names.items()
        if key.startswith(ours)
    }


def _original(
    path: Path, state: dict[str, Tensor], feature_shape: tuple[int, int, int] | None
) -> ConfidenceHead:
    if state[_DENSE].ndim != 2 or state.get(_CONVOLUTION, state[_DENSE]).ndim not in (2, 4):
        raise FileFormatError(path, f"expected a matrix {_DENSE}, got {tuple(state[_DENSE].shape)}.")
    make: Callable[[], ConfidenceHead]
    if _CONVOLUTION in state:
        make = partial(ConvHead, *(feature_shape or (len(state[_CONVOLUTION]), 7, 7)))
    else:
        size = state[_DENSE].shape[1]
        side = round((size / _CHANNELS) ** 0.5)
        channels, height, width = feature_shape or (_CHANNELS, side, side)
        if channels * height * width != size:
            raise InputError(
                f"{path}: a head for maps of {size} values, which {(channels, height, width)} are not; "
                f"pass feature_shape="
            )
        make = partial(LinearHead, channels, height, width)
    with without_memory():
        head = make()
    theirs = dict(zip(original_head_state(head), head.state_dict(), strict=True))
    renamed = {theirs.get(key, key): tensor for key, tensor in state.items()}
    return filled(path, make, renamed, f"its tensors do not fit a {head.kind} head")
