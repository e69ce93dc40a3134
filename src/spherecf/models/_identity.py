"""What a recogniser is known by: one hash over everything that its results depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.common.files import sha256_file
from spherecf.errors import ModelError
from spherecf.models._checkpoint import SUFFIXES
from spherecf.models._onnx_file import read_onnx


@dataclass(frozen=True)
class Identity:
    """The hash of a recogniser.

    Attributes:
        sha256: of an ONNX file its bytes, with weights kept beside it (see `OnnxFile.sha256`); of a
            checkpoint its bytes; of a module its tensors.
        former: what stood for it before the hash covered all of that; "" where the two are the same.
    """

    sha256: str
    former: str = ""

    def require(self, sha256: str, name: str, given: str, head: str = "this head") -> None:
        """Refuse a recogniser that is not the one with this hash.

        Args:
            sha256: of the recogniser that a head was trained on.
            name: its name.
            given: what the recogniser at hand is called.
            head: what the error calls the head.

        Raises:
            ModelError: it is another, or the hash cannot tell; both hashes are named.
        """
        if sha256 == self.sha256:
            return
        if sha256 == self.former:
            raise ModelError(
                f"{head} belongs to the backbone {name} with sha256 {sha256}. {given} has it only without "
                f"the weights kept beside its graph (or beside a module's state), which the hash did not "
                f"cover when the head was saved; with them it is {self.sha256}. If you know that these are "
                f"the weights the head was trained on, save it again with the whole hash: "
                f"spherecf.load(head, backbone, migrate=True).save(head)"
            )
        raise ModelError(
            f"{head} belongs to the backbone {name} with sha256 {sha256}, got {given} with sha256 "
            f"{self.sha256}: a head means nothing on another backbone; pass backbone= with the right file"
        )


def file_identity(path: str | Path) -> Identity:
    """Of an ONNX file or a torch checkpoint.

    Raises:
        ModelError: an ONNX file that cannot be read, or weights beside it that are missing.
    """
    if Path(path).suffix in SUFFIXES:
        return Identity(sha256_file(path))
    file = read_onnx(path)
    return Identity(file.sha256, file.former_sha256)


def module_identity(module: nn.Module) -> Identity:
    """Over names, types, shapes and bytes of all tensors that a module keeps; its code is not covered.

    The former identity was over its state alone, without buffers that are not saved and plain attributes.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = module_identity(layer)
        >>> layer.scale = torch.ones(1)
        >>> module_identity(layer).former == before.sha256, before.former
        (True, '')
    """
    digest, state = hashlib.sha256(), module.state_dict()
    _add_tensors(digest, state)
    former = digest.hexdigest()
    beside = {
        f"{part}.{key}".lstrip("."): value
        for part, layer in module.named_modules()
        for key, value in [*layer.named_buffers(recurse=False), *vars(layer).items()]
        if isinstance(value, Tensor)
    }
    beside = {name: value for name, value in beside.items() if name not in state}
    if not beside:
        return Identity(former)
    digest.update(b"beside the state;")
    _add_tensors(digest, beside)
    return Identity(digest.hexdigest(), former)


def _add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
