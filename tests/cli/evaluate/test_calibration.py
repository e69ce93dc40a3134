"""`spherecf evaluate calibration`: from files to a calibrated model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_model
from typer.testing import CliRunner

import spherecf
from spherecf.cli import evaluate
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, ModelError

runner = CliRunner()
PEOPLE, EACH, PAIRS = 60, 4, 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, embeddings attributed to it, and a pair list."""
    root = tmp_path_factory.mktemp("calibration")
    model = tiny_model(root)
    model.save(root / "head.safetensors")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(PEOPLE), EACH)
    mu = rng.normal(size=(PEOPLE, 8))[labels] + 0.5 * rng.normal(size=(labels.size, 8))
    keys = [f"{p:03d}/{i}.png" for p in range(PEOPLE) for i in range(EACH)]
    Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.normal(3, 1, labels.size), keys, labels,
        [f"{p:03d}" for p in range(PEOPLE)],
        provenance={"view": "clean", "model": model.fingerprint(), "backbone": model.backbone.sha256},
    ).save(root / "e.safetensors")  # fmt: skip
    lines = ["fold\tleft\tright\tmated"]
    for row in range(PAIRS):
        a, b = rng.choice(PEOPLE, 2, replace=False)
        b = a if row % 2 else b
        i, j = rng.choice(EACH, 2, replace=False)
        lines.append(f"{row // 120 + 1}\t{a:03d}/{i}.png\t{b:03d}/{j}.png\t{row % 2}")
    (root / "pairs.txt").write_text("\n".join(lines))
    return root


def calibrate(folder: Path, *options: str, embeddings: str = "e.safetensors"):
    files = [
        str(folder / embeddings),
        "--pairs",
        str(folder / "pairs.txt"),
        "--draws",
        "10",
        "--alpha",
        "0.2",
    ]
    return runner.invoke(evaluate.app, ["calibration", *files, *options])


def test_json_and_report_are_written(folder: Path, tmp_path: Path) -> None:
    result = calibrate(folder, "--json", "--out", str(tmp_path / "report"))
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert set(facts["scores"]) == {"cosine", "mls"} and facts["counts"]["people"] == PEOPLE
    assert "Thresholds" in result.stderr and "Scale of kappa" in result.stderr
    page = Path(facts["report"]).read_text("utf-8")
    assert page.count("<svg") == 5 and "_: calibration, clean" not in page and "calibration, clean" in page
    content = json.loads((tmp_path / "report/report.json").read_text("utf-8"))
    assert content["results"]["calibration"]["calibration"]["format"] == "spherecf.calibration"


def test_rules_are_fitted_for_several_rates(folder: Path) -> None:
    result = calibrate(folder, "--json", "--score", "mls", "--alpha", "0.3")  # in addition to 0.2
    assert result.exit_code == 0, result.exception
    rules = [check["rule"] for check in json.loads(result.stdout)["scores"]["mls"]["decisions"]]
    assert [rule["alpha"] for rule in rules] == [0.2] * 4 + [0.3] * 4


def test_calibration_is_saved_with_the_model(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "calibrated.safetensors"
    result = calibrate(
        folder, "--model", str(folder / "head.safetensors"), "--save", str(saved), "--score", "cosine",
        "--backbone", str(folder / "tiny.onnx"), "--method", "isotonic", "--disjoint",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert result.stdout == "" and "no report written" in result.stderr
    calibration = spherecf.load(saved, folder / "tiny.onnx").calibration
    assert calibration is not None and list(calibration.likelihood) == ["cosine"]
    assert calibration.llr("cosine", [-1.0, 1.0])[0] < 0 < calibration.llr("cosine", [1.0])[0]
    assert calibration.kappa.iso([1e9, float("nan")]).tolist() == [100, -1]


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    e = Embeddings.load(folder / "e.safetensors")
    for name, facts in (("other", {"model": "x" * 64}), ("silent", {"model": ""})):
        dataclasses.replace(e, mu=np.array(e.mu), provenance={**e.provenance, **facts}).save(
            tmp_path / f"{name}.safetensors"
        )
    saving = ["--model", str(folder / "head.safetensors"), "--save", str(tmp_path / "x.safetensors")]
    saving += ["--backbone", str(folder / "tiny.onnx")]
    result = calibrate(folder, *saving, embeddings=str(tmp_path / "other.safetensors"))
    assert isinstance(result.exception, ModelError) and "x" * 64 in str(result.exception)
    result = calibrate(folder, *saving, embeddings=str(tmp_path / "silent.safetensors"))
    assert isinstance(result.exception, InputError) and "which model computed them" in str(result.exception)
    assert not (tmp_path / "x.safetensors").exists()


def test_invalid_options_are_refused(folder: Path) -> None:
    for options, match in (
        (["--save", "x"], "must be given together"),
        (["--method", "magic"], "expected logistic or isotonic"),
        (["--score", "pfe"], "pfe"),
        (["--alpha", "2"], "alpha"),
        (["--seed", "-1"], "seed: expected 0 or more, got -1"),
        (["--draws", "-1"], "draws: expected 0 or more, got -1"),
    ):
        result = calibrate(folder, *options)
        assert isinstance(result.exception, InputError) and match in str(result.exception)
