"""`spherecf evaluate ijb` and `identification`: from files to a report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.template_sets import template_toy
from typer.testing import CliRunner

from spherecf.cli import evaluate
from spherecf.data import write_ijb
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError, MissingDependencyError

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta files and embeddings of a small set, with detector scores as an extra."""
    path = tmp_path_factory.mktemp("ijb")
    toy = template_toy(pairs=1500)
    write_ijb(path / "IJBC/meta", dataclasses.replace(toy.meta, detector_score=None))
    e = toy.embeddings
    labels = np.array([int(key.split("/")[0]) for key in e.keys])
    e = dataclasses.replace(
        e, extras={**e.extras, "detector_score": np.ones(len(e))}, labels=labels,
        identities=[f"p{i}" for i in range(int(labels.max()) + 1)],
    )  # fmt: skip
    e.save(path / "e.safetensors")
    rng = np.random.default_rng(1)
    others = rng.normal(size=(30, e.dim))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    Embeddings(others, np.zeros(30), [f"x{i}" for i in range(30)]).save(path / "others.safetensors")
    return path


def run(folder: Path, verb: str, *options: str, meta: bool = True) -> Any:
    command = [verb, str(folder / "e.safetensors"), *(["--meta", str(folder / "IJBC")] if meta else [])]
    return runner.invoke(
        evaluate.app, [*command, *(option.replace("FOLDER", str(folder)) for option in options)]
    )


def test_prints_a_line_per_row_and_target(folder: Path) -> None:
    result = run(folder, "ijb", "--draws", "10")
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert len(lines) == 6 * 2  # FMR 1e-1 and 1e-2 for six rows; lower rates are not resolved
    assert lines[0].startswith("[ijbc][N0D0F1K0:cosine]TAR@FAR<=0.1: 0.")
    assert lines[-1].startswith("[ijbc][F1-precision:pfe]TAR@FAR<=0.01: ")
    assert "no report written" in result.stderr and "intervals: subject-10/0" in result.stderr


def test_json_and_report(folder: Path, tmp_path: Path) -> None:
    result = run(
        folder, "ijb", "--mode", "K1", "--score", "mls", "--score", "cosine", "--fmr", "0.1", "--json",
        "--out", str(tmp_path), "--draws", "5", "--radius", "8",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert [r["score"] for r in facts["results"]] == ["mls", "cosine"] and "det" not in facts["results"][0]
    assert (
        "|mode:N0D0F1K1|" in facts["results"][0]["signature"] and "|r:8|" in facts["results"][0]["signature"]
    )
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert content["results"]["ijb"]["results"][0]["tmr"] == facts["results"][0]["tmr"]
    page = Path(facts["report"]).read_text("utf-8")
    assert "<svg" in page and "TMR minus that of kappa, mls" in page and "ijbc/1:1|meta:sha256:" in page


@pytest.mark.parametrize("skipped", [True, False])
def test_failures_and_repetitions_are_noted(tmp_path: Path, skipped: bool) -> None:
    """An enrolled template and a probe have no image left; a pair is listed twice."""
    toy = template_toy(pairs=1500)
    pairs, probes, enrolled = toy.meta.pairs, toy.meta.probes, toy.meta.galleries["G1"]
    emptied = {int(enrolled.templates[0]), int(probes.templates[0])}
    lost = {f for f, t in zip(toy.meta.files, toy.meta.templates.tolist()) if t in emptied}
    twice = type(pairs)(*(np.append(column, column[-1:]) for column in pairs))
    write_ijb(tmp_path / "IJBC/meta", dataclasses.replace(toy.meta, pairs=twice, detector_score=None))
    e = toy.embeddings.select([row for row, key in enumerate(toy.embeddings.keys) if key not in lost])
    e = dataclasses.replace(e, skipped=[(key, "truncated") for key in sorted(lost)] if skipped else [])
    e.save(tmp_path / "e.safetensors")
    affected = np.isin(pairs.left, [*emptied]) | np.isin(pairs.right, [*emptied])
    first = f"the first is {min(lost)}: " + ("truncated" if skipped else "not among the embeddings")
    shown = {}
    for verb in ("ijb", "identification"):
        result = run(tmp_path, verb, "--mode", "K1", "--draws", "0", "--out", str(tmp_path / verb))
        assert result.exit_code == 0, result.exception
        (section,) = json.loads((tmp_path / verb / "report.json").read_text("utf-8"))["sections"]
        shown[verb] = " ".join(section["notes"])
        assert f"{len(lost)} images could not be embedded (failures to acquire, not scored)" in shown[verb]
        assert f"2 templates without any image: {', '.join(map(str, sorted(emptied)))}." in shown[verb]
        assert first.split(":")[1] in shown[verb]
    assert f"{affected.sum()} pairs are left out because a template has no usable image." in shown["ijb"]
    assert "1 pairs repeat an earlier pair of the list; every occurrence counts." in shown["ijb"]
    assert "1 probes and 1 enrolled templates have no usable image" in shown["identification"]


def test_groups_from_a_file_and_from_an_extra(folder: Path, tmp_path: Path) -> None:
    people = sorted(
        {line.split(",")[1].strip() for line in (folder / "IJBC/meta/ijbc_1N_probe_mixed.csv").open()}
    )[:-1]
    (tmp_path / "g.csv").write_text("subject,group\n" + "".join(f"{p},{'AB'[int(p) % 2]}\n" for p in people))
    options = ["--mode", "N0", "--fmr", "0.1", "--json", "--draws", "0", "--groups"]
    result = run(folder, "ijb", *options, str(tmp_path / "g.csv"))
    assert result.exit_code == 0, result.exception
    assert [g["group"] for g in json.loads(result.stdout)["results"][0]["groups"]["groups"]][:2] == ["A", "B"]
    assert "By group: mean, cosine" in result.stderr
    refused = run(folder, "ijb", *options, "extras:detector_score")
    assert isinstance(refused.exception, InputError)
    assert "at least two, the pairs are of ['1']" in str(refused.exception)


def test_identification_table_json_and_report(folder: Path, tmp_path: Path) -> None:
    options = [
        "--mode",
        "K1",
        "--json",
        "--draws",
        "5",
        "--fpir",
        "0.1",
        "--max-rank",
        "5",
        "--out",
        str(tmp_path),
    ]
    result = run(folder, "identification", *options)
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert [g["gallery"] for g in facts["results"][0]["galleries"]] == ["G1", "G2"] and facts["max_rank"] == 5
    assert "Gallery G1:" in result.stderr and "cmc" not in facts["results"][0]["galleries"][0]
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert len(content["results"]["identification"]["results"][0]["galleries"][0]["cmc"]) == 14
    assert Path(facts["report"]).read_text("utf-8").count("<svg") == 4


@pytest.mark.parametrize(
    ("verb", "options", "meta", "error", "message"),
    [
        (
            "ijb",
            ["--set", "ijbb"],
            True,
            FileFormatError,
            "no such file, neither here nor in the sub-folder meta",
        ),
        ("ijb", ["--set", "ijba"], True, InputError, "expected one of ijbb, ijbc"),
        ("ijb", ["--mode", "F0"], True, InputError, "F0 needs embeddings without"),
        ("ijb", ["--fmr", "0"], True, InputError, "FMR target"),
        ("ijb", ["--groups", "FOLDER/none.csv"], True, FileFormatError, "cannot read"),
        ("ijb", ["--groups", "extras:age"], True, InputError, "no extra 'age'"),
        ("identification", ["--max-rank", "0"], True, InputError, "max_rank: expected at least 1"),
    ],
)
def test_invalid_options_are_refused(
    folder: Path, verb: str, options: list[str], meta: bool, error: type[Exception], message: str
) -> None:
    result = run(folder, verb, *options, meta=meta)
    assert result.exit_code == 1
    with pytest.raises(error, match=message):
        raise result.exception


def test_a_truncated_embeddings_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes((folder / "e.safetensors").read_bytes()[:-100])
    result = runner.invoke(
        evaluate.app, ["ijb", str(tmp_path / "e.safetensors"), "--meta", str(folder / "IJBC")]
    )
    assert isinstance(result.exception, FileFormatError) and "truncated" in str(result.exception)


def test_missing_matplotlib_is_reported_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    for verb in ("ijb", "identification"):
        result = runner.invoke(
            evaluate.app, [verb, "none", "--meta", "none", "--out", str(folder / "report")]
        )
        assert isinstance(result.exception, MissingDependencyError)
    assert run(folder, "ijb", "--mode", "N0", "--draws", "0").exit_code == 0  # numbers need no plots


@pytest.mark.parametrize("verb", ["ijb", "identification"])
def test_help_ends_with_an_example(verb: str) -> None:
    help_text = runner.invoke(evaluate.app, [verb, "--help"]).stdout.rstrip()
    assert f"Example: spherecf evaluate {verb}" in " ".join(help_text.splitlines()[-3:])


@pytest.mark.parametrize("verb", ["ijb", "identification"])
def test_json_can_be_written_to_a_file(folder: Path, verb: str) -> None:
    file = folder / "numbers" / f"{verb}.json"
    printed = run(folder, verb, "--draws", "0", "--json")
    saved = run(folder, verb, "--draws", "0", "--json", str(file))
    assert saved.stdout == "" and json.loads(file.read_text()) == json.loads(printed.stdout)


def test_a_file_without_json_has_a_hint(folder: Path) -> None:
    result = run(folder, "ijb", "numbers.json")
    assert result.exit_code == 1
    assert "use --json numbers.json" in str(result.exception)
