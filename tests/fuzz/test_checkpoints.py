"""Torch files, new and old, and TorchScript: an accepted one yields plain tensors of the stated sizes."""

import io
import zipfile
from functools import cache

import torch
from tests.fuzz.harness import fuzz, write
from tests.reference.original_heads import linear_table

from spherecf.errors import SpherecfError
from spherecf.models import (
    load_backbone,
    load_confidence_head,
    load_prototypes,
    make_backbone,
    read_checkpoint,
)

TOKENS = [
    b"torch\nFloatTensor\n",
    b"collections\nOrderedDict\n",
    b"q\x01h\x01",
    b"R",
    b"b",
    b"}",
    b"(",
    b"t.",
]


def network() -> dict[str, torch.Tensor]:
    return make_backbone("r18", dim=4, size=16, width=0.03125).state_dict()


def contents() -> dict[str, object]:
    return {
        "network": network(),
        "transformer": make_backbone("vit_t", dim=4, size=9, width=0.03125).state_dict(),
        "classifier": {"epoch": 3, "arc_face_state_dict": {"weight": torch.randn(5, 4)}},
        "head": {"uncer_net_state_dict": linear_table(512)},
    }


def saved(content: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.PReLU())), stream)
    return stream.getvalue()


def use(data: bytes) -> None:
    """Each loader must open or refuse the file, whatever it contains."""
    path = write("checkpoint.pth", data)
    refusal: SpherecfError | None = None
    try:
        tensors = read_checkpoint(path)
    except SpherecfError as error:
        refusal, tensors = error, {}
    for tensor in tensors.values():
        assert tensor.numel() * tensor.element_size() <= len(data)
    for loader in (load_backbone, load_confidence_head, load_prototypes):
        try:
            value = loader(path)
        except SpherecfError as error:
            assert "weights_only" not in str(error) and "arbitrary code" not in str(error)
        else:
            assert refusal is None
            if isinstance(value, torch.Tensor):
                assert torch.isfinite(value).all()
    if refusal:
        raise refusal


@fuzz(
    lambda: {k: saved(v) for k, v in contents().items()} | {"TorchScript": script()},
    name="torch files",
    tokens=TOKENS,
    share=0.25,
)
def test_files(data: bytes) -> None:
    use(data)


@fuzz(
    lambda: {k: saved(v, zipped=False) for k, v in contents().items()},
    name="torch files before 1.6",
    tokens=TOKENS,
    share=0.25,
)
def test_old_files(data: bytes) -> None:
    use(data)


@cache
def archives() -> list[dict[str, bytes]]:
    """The zip members of several torch files."""
    members = []
    for data in (*map(saved, contents().values()), script()):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members.append({name: archive.read(name) for name in archive.namelist()})
    return members


def pickles() -> dict[str, bytes]:
    """For each file its number as one byte, then its pickle."""
    return {
        str(number): bytes([number]) + content
        for number, members in enumerate(archives())
        for name, content in members.items()
        if name.endswith("/data.pkl")
    }


@fuzz(pickles, name="pickles in torch files", tokens=TOKENS, share=0.25)
def test_pickles(data: bytes) -> None:
    """Mutated pickles in an archive with correct checksums and the storages that they refer to."""
    members = archives()[data[0] % len(archives())] if data else {}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, data[1:] if name.endswith("/data.pkl") else content)
    use(stream.getvalue())
