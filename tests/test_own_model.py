"""The commands of docs/own-model.md, with a recogniser that SphereCF does not ship."""

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
PAIRS = 40  # mated pairs, and as many non-mated ones
CHANGES = {  # so few pairs support only weaker bounds than those on the page
    "evaluate calibration": ["--alpha", "0.1", "--draws", "0"],
    "compare": ["--max-fmr", "0.1"],
    "gallery identify": ["--max-fpir", "0.1"],
}


def commands() -> list[list[str]]:
    """The page's commands in order, without the leading word spherecf."""
    text = PAGE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("spherecf ")]
    return [shlex.split(line)[1:] for line in lines]


def run(command: list[str]) -> Result:
    options = next((v for k, v in CHANGES.items() if " ".join(command).startswith(k)), [])
    return CliRunner().invoke(app, [*command, *options], catch_exceptions=False)


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small versions of all files that the page names."""
    lfw = open_source(shared / "data" / "lfw")
    lines = (shared / "data" / "lfw" / "pairs.txt").read_text().splitlines()
    half = int(lines[0].split()[1])
    pair_lines = [lines[1 + i] for start in (0, half) for i in range(start, start + PAIRS)]
    (tmp_path / "pairs.txt").write_text("\n".join([f"1\t{PAIRS}", *pair_lines]) + "\n")
    rows = np.unique(np.concatenate(open_pairs(tmp_path / "pairs.txt").rows(lfw.keys)))
    write_records(lfw.subset(rows), tmp_path / "test")
    counts, test_labels = np.bincount(lfw.labels), set(lfw.labels[rows].tolist())
    candidates = np.flatnonzero((counts >= 2) & (counts <= 4))
    train_labels = [label for label in candidates if label not in test_labels][:20]
    write_records(lfw.subset(np.flatnonzero(np.isin(lfw.labels, train_labels))), tmp_path / "faces")
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
def test_every_command_of_the_page_works(folder: Path) -> None:
    stdout = {}
    for command in commands():
        result = run(command)
        assert result.exit_code == 0, (command, result.stderr)
        stdout[command[0]] = result.stdout
    assert [json.loads(line)["failure"] for line in stdout["quality"].splitlines()] == [None, None]
    assert json.loads(stdout["compare"])["decision"] in ("match", "non_match", "undecided")
    assert json.loads(stdout["gallery"])["answer"] in ("identified", "unknown", "undecided")
    assert json.loads(stdout["export"])["parity"]["log_kappa"] < 1e-3
    session = onnxruntime.InferenceSession(folder / "own-confident.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["embedding", "log_kappa", "kappa_percentile"]
