import argparse
import pickle
import sys
import time
import traceback
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spherecf.errors import FileFormatError
from spherecf.models import CHECKPOINT_SUFFIXES, read_checkpoint

WEIGHT = torch.arange(6.0).reshape(2, 3)


def invented(module: str, name: str, base: type = object) -> type:
    """A class of a package that is not installed."""
    return type(name, (base,), {"__module__": module, "__qualname__": name})


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A Lightning checkpoint: settings as a dict subclass, settings with state, classes as keys."""
    settings = invented("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    callback = invented("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    for name in ("", ".utilities", ".callbacks", ".utilities.parsing", ".callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, f"pytorch_lightning{name}", types.ModuleType(name))
    for cls in (settings, callback):
        setattr(sys.modules[cls.__module__], cls.__name__, cls)
    return {
        "epoch": 25,
        "hyper_parameters": settings(arch="ir_50", args=argparse.Namespace(lr=0.1, path=Path("a"))),
        "callbacks": {callback: {"best_model_score": np.float64(0.5)}},
        "state_dict": OrderedDict({"model.fc.weight": WEIGHT}),
    }


def test_lightning_settings_are_skipped_without_import(
    tmp_path: Path, lightning: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(lightning, tmp_path / "last.ckpt")
    for name in [n for n in sys.modules if n.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    tensors = read_checkpoint(tmp_path / "last.ckpt")
    assert list(tensors) == ["state_dict.model.fc.weight"]
    assert torch.equal(tensors["state_dict.model.fc.weight"], WEIGHT)
    assert not any(n.startswith("pytorch_lightning") for n in sys.modules)


def test_paths_pickled_by_python_3_13_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pathlib._local")  # where that version defines its paths
    module.PosixPath = invented("pathlib._local", "PosixPath")
    monkeypatch.setitem(sys.modules, "pathlib._local", module)
    torch.save({"path": module.PosixPath(), "weight": WEIGHT}, tmp_path / "a.ckpt")
    assert list(read_checkpoint(tmp_path / "a.ckpt")) == ["weight"]


@pytest.mark.parametrize("suffix", CHECKPOINT_SUFFIXES)
def test_checkpoints_with_every_suffix_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file({"a.weight": WEIGHT}, path)
    else:
        torch.save({"a": {"weight": torch.nn.Parameter(WEIGHT)}}, path)
    tensors = read_checkpoint(path)
    assert torch.equal(tensors["a.weight"], WEIGHT) and not tensors["a.weight"].requires_grad


def test_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHT}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pth")["weight"], WEIGHT)


class Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("owned"),))


class Whole(torch.nn.Module):
    """A module that is pickled as a whole instead of its state dictionary."""


def test_unsafe_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Hostile()}, "evil.pt")
    torch.save(Whole(), "whole.pth")
    torch.save(WEIGHT, "good.pt")
    Path("short.pt").write_bytes(Path("good.pt").read_bytes()[:200])
    Path("text.pth").write_text("this is text")
    Path("text.safetensors").write_text("this is text")
    Path("empty.pt").touch()
    for name, message in {
        "evil.pt": "which is not unpickled",
        "whole.pth": r"a pickled object of .*Whole.* save its tensors alone: torch.save\(model.state_dict",
        "short.pt": "not a checkpoint of plain tensors",
        "text.pth": "a text file beginning with 'this is text'",
        "text.safetensors": "a text file beginning with 'this is text'",
        "empty.pt": "an empty file",
        "absent.pt": "no such file",
        "w.onnx": "no such file",
    }.items():
        with pytest.raises(FileFormatError, match=f"{name}: .*{message}"):
            read_checkpoint(name)
    Path("w.onnx").touch()
    with pytest.raises(
        FileFormatError, match=r"expected one of \.safetensors, .*, got \.onnx\. Open .*from_onnx"
    ):
        read_checkpoint("w.onnx")
    assert not Path("owned").exists()


def test_one_wrong_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    """Torch does not check the checksums that it writes."""
    path, weight = tmp_path / "net.pt", torch.linspace(0, 1, 1000)
    torch.save({"weight": weight}, path)
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 4 * 500 + 3] ^= 0x40
    path.write_bytes(data)
    assert torch.load(path)["weight"][500] > 1e30
    with pytest.raises(FileFormatError, match="damaged"):
        read_checkpoint(path)


def test_files_saved_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "net.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "net.pt")["weight"].tolist() == [1, 1, 1]


def test_the_format_is_detected_from_content_not_suffix(tmp_path: Path) -> None:
    save_file({"a.weight": WEIGHT}, tmp_path / "safetensors.pth")
    torch.save({"a": {"weight": WEIGHT}}, tmp_path / "torch.safetensors")
    for name in ("safetensors.pth", "torch.safetensors"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a.weight"], WEIGHT)


def test_files_that_are_not_checkpoints_are_identified(tmp_path: Path) -> None:
    contents = {
        "HTML page": b"<!DOCTYPE html><html>virus scan warning</html>",
        "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "error message from a file server": b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
        "JSON": b'{"message": "not found"}',
        "gzip": b"\x1f\x8b\x08" + bytes(40),
        "a pickle": pickle.dumps({"weight": [1.0]}),
        "truncated or damaged zip archive": b"PK\x03\x04" + bytes(40),
        "ONNX": b"\x08\x07\x12\x07pytorch",
        "beginning with the bytes 01 02": b"\x01\x02\xf0\xf1",
    }
    for name, content in contents.items():
        (tmp_path / "model.pth").write_bytes(content)
        with pytest.raises(FileFormatError, match=name) as caught:
            read_checkpoint(tmp_path / "model.pth")
        assert "weights_only" not in str(caught.value)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileFormatError, match="a folder"):
        read_checkpoint(tmp_path / "folder.pth")


def test_messages_never_advise_unsafe_loading(tmp_path: Path) -> None:
    """Checks the message and the chained traceback."""
    path = tmp_path / "whole.pth"
    for content in (Whole(), {"a": Hostile()}, {"f": torch.nn.functional.relu}):
        torch.save(content, path)
        with pytest.raises(FileFormatError) as caught:
            read_checkpoint(path)
        output = "".join(traceback.format_exception(caught.value))
        assert "set to `False`" not in output and "add_safe_globals" not in output


def test_prefixes_of_wrappers_are_removed(tmp_path: Path) -> None:
    table = {"module._orig_mod.fc._fsdp_wrapped_module.weight": WEIGHT, "_orig_mod_.bias": WEIGHT}
    torch.save(table, tmp_path / "w.pth")
    assert list(read_checkpoint(tmp_path / "w.pth")) == ["module.fc.weight", "_orig_mod_.bias"]
    torch.save({"_orig_mod.fc.weight": WEIGHT, "fc.weight": WEIGHT}, tmp_path / "both.pth")
    with pytest.raises(FileFormatError, match=r"two tensors are called fc\.weight"):
        read_checkpoint(tmp_path / "both.pth")
    torch.save({"_fsdp_wrapped_module._flat_param": WEIGHT}, tmp_path / "shard.pth")
    with pytest.raises(FileFormatError, match="an FSDP shard"):
        read_checkpoint(tmp_path / "shard.pth")


def test_recursive_and_expanded_files_are_refused(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    with pytest.raises(FileFormatError, match="nested"):
        read_checkpoint(tmp_path / "loop.pt")
    torch.save({"wide": torch.ones(1).expand(10**9)}, tmp_path / "wide.pt")
    with pytest.raises(FileFormatError, match="larger than the file"):
        read_checkpoint(tmp_path / "wide.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/more", bytes(2**25))
    with pytest.raises(FileFormatError, match="bytes that expands to 3355"):
        read_checkpoint(tmp_path / "bomb.pt")


WORD = b"x" * 1_000_000
# A storage of 2^28 numbers, declared but not present.
STORAGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\0\0\0\x10"


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"c" + WORD + b"\nname\n", "a name of 1,000,00. characters"),
        (b"X\x40\x42\x0f\0" + WORD + b")R", "calls a value that is not a function"),
        (STORAGE + b"tQt)R", "calls a value that is not a function"),
        (STORAGE + b"NtQ)\x81", "calls a value that is not a function"),
        (b")" + b"q\xffh\xff\x86" * 60 + b")R", "larger than the file"),
        (b"}(" + b")" + b"q\xffh\xff\x86" * 60 + b"Nu", "larger than the file"),
        (b"})" + b"q\xff(h\xffh\xffh\xfft" * 60 + b"Ns", "larger than the file"),
    ],
    ids=["name", "word", "storage", "new object", "tuples", "keys", "key"],
)
def test_pickles_that_would_take_torch_hours_are_refused_quickly(
    tmp_path: Path, zip_format: bool, payload: bytes, match: str
) -> None:
    path, mark = tmp_path / "long.pt", "MARK" * 10
    torch.save({"note": mark, "weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=zip_format)
    text = b"X" + len(mark).to_bytes(4, "little") + mark.encode()
    assert text in path.read_bytes()
    if zip_format:
        with zipfile.ZipFile(path) as stored:
            members = {name: stored.read(name).replace(text, payload) for name in stored.namelist()}
        with zipfile.ZipFile(path, "w") as rewritten:
            for name, content in members.items():
                rewritten.writestr(name, content)
    else:
        path.write_bytes(path.read_bytes().replace(text, payload))
    start = time.process_time()
    with pytest.raises(FileFormatError, match=match):
        read_checkpoint(path)
    assert time.process_time() - start < 30


def test_long_texts_and_shared_tuples_are_read(tmp_path: Path) -> None:
    names = tuple(f"person {i}" for i in range(10_000))
    content = {"notes": "x" * 100_000, "names": names, "again": [names] * 5, names[:3]: 1, "w": torch.ones(2)}
    torch.save(content, tmp_path / "notes.pt")
    assert list(read_checkpoint(tmp_path / "notes.pt")) == ["w"]
