import argparse
import sys
import types
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
    """A class of a package that is not installed here."""
    return type(name, (base,), {"__module__": module, "__qualname__": name})


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What Lightning leaves beside the weights: settings with items, settings with state, classes as keys."""
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


def test_lightnings_settings_are_skipped_not_imported(
    tmp_path: Path, lightning: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(lightning, tmp_path / "last.ckpt")
    for name in [n for n in sys.modules if n.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    tensors = read_checkpoint(tmp_path / "last.ckpt")
    assert list(tensors) == ["state_dict.model.fc.weight"]
    assert torch.equal(tensors["state_dict.model.fc.weight"], WEIGHT)
    assert not any(n.startswith("pytorch_lightning") for n in sys.modules)


@pytest.mark.parametrize("suffix", CHECKPOINT_SUFFIXES)
def test_every_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file({"a.weight": WEIGHT}, path)
    else:
        torch.save({"a": {"weight": torch.nn.Parameter(WEIGHT)}}, path)
    tensors = read_checkpoint(path)
    assert torch.equal(tensors["a.weight"], WEIGHT) and not tensors["a.weight"].requires_grad


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHT}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pth")["weight"], WEIGHT)


class Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("owned"),))


class Whole(torch.nn.Module):
    """Somebody saved the module and not its tensors."""


def test_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Hostile()}, "evil.pt")
    torch.save(Whole(), "whole.pth")
    torch.save(WEIGHT, "good.pt")
    Path("short.pt").write_bytes(Path("good.pt").read_bytes()[:200])
    Path("text.pth").write_text("this is text")
    Path("text.safetensors").write_text("this is text")
    Path("empty.pt").touch()
    for name, why in {
        "evil.pt": "which is not unpickled",
        "whole.pth": r"a pickled object of .*Whole.* save its tensors alone: torch.save\(model.state_dict",
        "short.pt": "not a checkpoint of plain tensors",
        "text.pth": "a text beginning with 'this is text'",
        "text.safetensors": "a text beginning with 'this is text'",
        "empty.pt": "an empty file",
        "absent.pt": "no such file",
        "w.onnx": "no such file",
    }.items():
        with pytest.raises(FileFormatError, match=f"{name}: .*{why}"):
            read_checkpoint(name)
    Path("w.onnx").touch()
    with pytest.raises(FileFormatError, match=r"expected one of \.safetensors, .*, got \.onnx"):
        read_checkpoint("w.onnx")
    assert not Path("owned").exists()
