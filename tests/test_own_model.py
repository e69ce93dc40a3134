"""The page docs/own-model.md, command by command, with a recogniser that SphereCF does not ship."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner, Result

from spherecf.cli import app
from spherecf.data import open_pairs, open_source, orl_faces, write_records

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-model.md"
RECIPE = "[views]\ndegraded = 1\n[fit]\nepochs = 4\nbatch_size = 64\nheld_out = 0.2\n"
PAIRS = 40  # of each kind
CHANGES = {  # so few promise less than the page's own
    "evaluate calibration": ["--alpha", "0.1", "--draws", "0"],
    "compare": ["--max-fmr", "0.1"],
    "gallery identify": ["--max-fpir", "0.1"],
}


def commands() -> list[list[str]]:
    """The page's commands, in order, without the word spherecf."""
    text = PAGE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("spherecf ")]
    return [shlex.split(line)[1:] for line in lines]


def run(command: list[str]) -> Result:
    more = next((v for k, v in CHANGES.items() if " ".join(command).startswith(k)), [])
    return CliRunner().invoke(app, [*command, *more], catch_exceptions=False)


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything the page names, in small."""
    lfw = open_source(shared / "data" / "lfw")
    lines = (shared / "data" / "lfw" / "pairs.txt").read_text().splitlines()
    half = int(lines[0].split()[1])
    kept = [lines[1 + i] for start in (0, half) for i in range(start, start + PAIRS)]
    (tmp_path / "pairs.txt").write_text("\n".join([f"1\t{PAIRS}", *kept]) + "\n")
    rows = np.unique(np.concatenate(open_pairs(tmp_path / "pairs.txt").rows(lfw.keys)))
    write_records(lfw.subset(rows), tmp_path / "test")
    counts, busy = np.bincount(lfw.labels), set(lfw.labels[rows].tolist())
    free = [label for label in np.flatnonzero((counts >= 2) & (counts <= 4)) if label not in busy][:20]
    write_records(lfw.subset(np.flatnonzero(np.isin(lfw.labels, free))), tmp_path / "faces")
    shutil.copy(shared / "models" / "mobilefacenet-512.onnx", tmp_path / "own.onnx")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "confidence.toml").write_text(RECIPE)
    orl = orl_faces()
    for name, index in (
        ("photos/a", 0),
        ("photos/b", 10),
        ("anna/a", 0),
        ("anna/b", 1),
        ("one", 0),
        ("other", 1),
    ):
        path = tmp_path / f"{name}.pgm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(orl.read(index))
    for name in ("one", "other"):
        (tmp_path / f"{name}.pgm").rename(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page(folder: Path) -> None:
    said = {}
    for command in commands():
        done = run(command)
        assert done.exit_code == 0, (command, done.stderr)
        said[command[0]] = done.stdout
    assert [json.loads(line)["failure"] for line in said["quality"].splitlines()] == [None, None]
    assert json.loads(said["compare"])["decision"] in ("match", "non_match", "undecided")
    assert json.loads(said["gallery"])["answer"] in ("identified", "unknown", "undecided")
    assert json.loads(said["export"])["parity"]["log_kappa"] < 1e-3
    session = onnxruntime.InferenceSession(folder / "own-confident.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["embedding", "log_kappa", "kappa_percentile"]
