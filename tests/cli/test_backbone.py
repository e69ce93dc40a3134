"""The option --backbone accepts checkpoints of known networks."""

from pathlib import Path

import pytest
import torch

from spherecf.cli.options import open_backbone
from spherecf.errors import ModelError
from spherecf.models import make_backbone


def test_a_checkpoint_is_accepted_as_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("r18", "tface-ir-18"):
        state = make_backbone(name, dim=16, size=32, width=0.125).state_dict()
        torch.save(state, tmp_path / f"{name}.pth")
    backbone = open_backbone(tmp_path / "r18.pth", "")
    assert (backbone.name, backbone.dim, backbone.preprocessing.size) == ("r18", 16, (32, 32))
    assert "r18.pth: r18, Preprocessing(color='rgb', mean=127.5" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match="pass preprocessing="):
        open_backbone(tmp_path / "tface-ir-18.pth", "")
    assert open_backbone(tmp_path / "tface-ir-18.pth", "adaface").preprocessing.color == "bgr"
