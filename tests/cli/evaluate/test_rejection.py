"""`spherecf evaluate rejection`: from files to a report."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import evaluate
from spherecf.data import IjbMeta, TemplateList, TemplatePairs, write_ijb
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

runner = CliRunner()
PEOPLE, EACH = 48, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta files of a small IJB-C, a pair list, and embeddings for both."""
    path = tmp_path_factory.mktemp("rejection")
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(PEOPLE), EACH)
    names = [f"p{i // EACH}/{i % EACH}.jpg" for i in range(subjects.size)]
    noise = rng.uniform(0.2, 1.2, subjects.size)
    mu = rng.normal(size=(PEOPLE, 10))[subjects] + noise[:, None] * rng.normal(size=(subjects.size, 10))
    Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(30 / noise**2), names, subjects,
        [f"p{i}" for i in range(PEOPLE)], {"norm": rng.uniform(1, 2, subjects.size)},
    ).save(path / "e.safetensors")  # fmt: skip
    ids = np.arange(subjects.size)
    first = ids[::EACH]
    galleries = {
        "G1": TemplateList(first[:24], subjects[first[:24]]),
        "G2": TemplateList(first[24:], subjects[first[24:]]),
    }
    probes = TemplateList(ids[ids % EACH > 0], subjects[ids % EACH > 0])
    pairs = TemplatePairs(np.array([0, 0]), np.array([1, 3]), np.array([True, False]))
    write_ijb(path / "meta", IjbMeta("ijbc", names, ids, ids, pairs, galleries=galleries, probes=probes))
    lines = ["fold\tleft\tright\tmated"]
    for row in range(120):
        a = rng.integers(PEOPLE)
        b = a if row % 2 else (a + rng.integers(1, PEOPLE)) % PEOPLE
        i, j = rng.choice(EACH, 2, replace=False)
        lines.append(f"{row // 12 + 1}\tp{a}/{i}.jpg\tp{b}/{j}.jpg\t{row % 2}")
    (path / "pairs.txt").write_text("\n".join(lines))
    return path


def rejection(folder: Path, *options: str):
    command = ["rejection", str(folder / "e.safetensors"), "--draws", "0", *options]
    return runner.invoke(evaluate.app, command, env={"COLUMNS": "150"})


def test_galleries_have_tables_and_json(folder: Path) -> None:
    result = rejection(folder, "--meta", str(folder / "meta"), "--fpir", "0.2", "--trials", "6", "--json")
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)["galleries"]
    assert list(facts) == ["G1", "G2"]
    assert {entry["confidence"] for entry in facts["G1"]["prr"]} >= {
        "kappa",
        "norm",
        "mprisk",
        "holue",
        "oracle",
    }
    assert "f1" not in facts["G1"]["prr"][0] and facts["G2"]["points"][0]["fpir_target"] == 0.2
    assert "ijbc/G2: Confidences missing from these probes: precision, detector_score" in result.stderr
    assert "PRR, mean of ijbc/G1, ijbc/G2" in result.stderr and "no report written" in result.stderr


def test_options_reach_the_protocol_and_the_report(folder: Path, tmp_path: Path) -> None:
    result = rejection(
        folder, "--meta", str(folder / "meta"), "--gallery", "G2", "--fpir", "0.2", "--fpir", "0.01",
        "--mode", "N1", "--kappa-gallery", "35", "--beta", "0.3", "--limit", "0.4", "--trials", "4",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))["results"]["G2"]
    assert content["kappa_gallery"] == {"posterior": 35.0, "mutual": 35.0} and content["beta"] == 0.3
    assert "needs at least 100 non-mated probes" in content["points"][1]["unresolved"]
    line = content["prr"][0]["signature"]
    assert "|mode:N1D0F?K0|" in line and "|rejected:0-0.4|" in line and "|kappa-g:35|" in line
    assert "ijbc/G2: PRR at FPIR ≤ 0.2" in (tmp_path / "report.html").read_text("utf-8")


def test_pair_lists_have_json_and_report(folder: Path, tmp_path: Path) -> None:
    result = rejection(folder, "--pairs", str(folder / "pairs.txt"), "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert {entry["confidence"] for entry in facts["rejection"]} == {
        "kappa", "mean_resultant", "norm", "random", "oracle",
    }  # fmt: skip
    assert facts["absent_confidences"] == ["precision", "detector_score", "sharpness"]
    assert Path(facts["report"]).exists() and "area under error versus discard" in result.stderr
    assert facts["name"] == folder.name and facts["condition"] == "unstated/unstated"  # as in `tenfold`
    provenance = json.loads((tmp_path / "report.json").read_text("utf-8"))["provenance"]
    assert {"left", "right", "pairs"} < set(provenance)


def test_pairs_in_one_fold_have_everything_but_an_accuracy(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "pairs.txt").read_text().splitlines()
    one_fold = tmp_path / "one.txt"
    one_fold.write_text("\n".join([lines[0], *(f"1\t{line.split(chr(9), 1)[1]}" for line in lines[1:])]))
    results = [
        rejection(folder, "--pairs", str(path), "--json", "--draws", "5", "--out", str(tmp_path / path.stem))
        for path in (folder / "pairs.txt", one_fold)
    ]
    many, one = (json.loads(result.stdout) for result in results)
    assert one["scores"]["mls"]["accuracy"] is None is one["scores"]["mls"]["tenfold"]
    assert one["edc"] == many["edc"] and "mls-cosine:accuracy" not in one["differences"]
    assert {metric: one["scores"]["mls"][metric] for metric in ("tmr", "eer", "auc")} == {
        metric: many["scores"]["mls"][metric] for metric in ("tmr", "eer", "auc")
    }
    assert "no accuracy, because all pairs are in one fold" in (tmp_path / "one/report.md").read_text("utf-8")
    refused = runner.invoke(
        evaluate.app, ["tenfold", str(folder / "e.safetensors"), "--pairs", str(one_fold), "--draws", "0"]
    )
    with pytest.raises(InputError, match="its pairs are in one fold"):
        raise refused.exception


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --meta"),
        (["--meta", "FOLDER/meta", "--pairs", "FOLDER/pairs.txt"], "give either --meta"),
        (
            ["--meta", "FOLDER/meta", "--right", "FOLDER/e.safetensors"],
            "--right can only be used with --pairs",
        ),
        (["--meta", "FOLDER/none"], "ijbc_face_tid_mid.txt"),
        (["--meta", "FOLDER/meta", "--kappa-gallery", "mean"], "expected a number or one of"),
        (["--meta", "FOLDER/meta", "--gallery", "G9"], "gallery 'G9' unknown, expected any of G1, G2"),
        (
            ["--pairs", "FOLDER/pairs.txt", "--beta", "0.1", "--trials", "9"],
            "--beta and --trials can only be used with",
        ),
        (["--pairs", "FOLDER/none.txt"], "none.txt"),
        (["--pairs", "FOLDER/pairs.txt", "--fpir", "0.1"], "--fpir can only be used with --meta"),
    ],
)
def test_invalid_options_are_refused(folder: Path, options: list[str], message: str) -> None:
    result = rejection(folder, *(option.replace("FOLDER", str(folder)) for option in options))
    assert result.exit_code == 1
    with pytest.raises(ValueError, match=message):
        raise result.exception


def test_help_ends_with_an_example() -> None:
    help_text = runner.invoke(evaluate.app, ["rejection", "--help"]).stdout.rstrip()
    assert "Example: spherecf evaluate rejection" in " ".join(help_text.splitlines()[-3:])
