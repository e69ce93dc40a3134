"""`spherecf evaluate tenfold`: from files to a report."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import evaluate
from spherecf.cli.evaluate import _list_name
from spherecf.data import ImageSource, PairList
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, MissingDependencyError

runner = CliRunner()
PEOPLE, EACH = 12, 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Faces, a CFP-like pair list, clean and degraded embeddings."""
    rng = np.random.default_rng(0)
    keys = [f"{p:03d}/{i}.png" for p in range(PEOPLE) for i in range(EACH)]
    for key in keys:
        path = tmp_path / "faces" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", rng.integers(0, 256, (112, 112, 3), np.uint8))[1].tobytes())
    labels = np.repeat(np.arange(PEOPLE), EACH)
    centres = rng.normal(size=(PEOPLE, 8))
    for name, noise, view in (("clean", 0.4, "clean"), ("degraded", 1.0, "cross-v1/0")):
        mu = centres[labels] + noise * rng.normal(size=(len(keys), 8))
        Embeddings(
            mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(rng.uniform(5, 500, len(keys))), keys,
            labels, [f"{p:03d}" for p in range(PEOPLE)],
            provenance={"view": view, "backbone": "b" * 64, "data": "d" * 64, "radius": 32.0},
        ).save(tmp_path / f"{name}.safetensors")  # fmt: skip
    lines = ["fold\tleft\tright\tmated"]
    for row in range(80):
        a, b = rng.choice(PEOPLE, 2, replace=False)
        b = a if row % 2 else b
        i, j = rng.choice(EACH, 2, replace=False)
        lines.append(f"{row // 8 + 1}\t{a:03d}/{i}.png\t{b:03d}/{j}.png\t{row % 2}")
    (tmp_path / "cfp").mkdir()
    (tmp_path / "cfp/pairs_FP.txt").write_text("\n".join(lines))
    return tmp_path


def tenfold(folder: Path, *options: str):
    command = [
        "tenfold",
        str(folder / "clean.safetensors"),
        "--pairs",
        str(folder / "cfp/pairs_FP.txt"),
        *options,
    ]
    return runner.invoke(evaluate.app, command)


def test_prints_accuracy_lines_in_the_usual_format(folder: Path) -> None:
    result = tenfold(folder, "--draws", "10")
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[cfp_fp][0]Accuracy-Flip: 0.") and lines[1].startswith(
        "[cfp_fp:mls][0]Accuracy-Flip: "
    )
    assert "80 pairs (40 mated, 40 non-mated)" in result.stderr and "no report written" in result.stderr


def test_json_and_the_cross_quality_report_with_faces(folder: Path) -> None:
    result = tenfold(
        folder, "--right", str(folder / "degraded.safetensors"), "--faces", str(folder / "faces"),
        "--out", str(folder / "report"), "--json", "--draws", "10", "--seed", "3", "--name", "mine",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert (
        facts["name"] == "mine"
        and facts["condition"] == "clean/degraded"
        and facts["resampling"] == "subject-10/3"
    )
    assert "|view:clean+cross-v1/0|" in facts["scores"]["mls"]["signature"]
    assert "|r:32|" in facts["scores"]["mls"]["signature"]
    page = Path(facts["report"]).read_text("utf-8")
    assert page.count("data:image/png;base64,") == 28 + 32
    assert "right (cross-v1/0): by increasing kappa" in page
    assert "mls: the non-mated pairs with the highest scores" in page and "cosine: the mated" not in page
    content = json.loads((folder / "report/report.json").read_text("utf-8"))
    assert content["reports"][0]["scores"]["mls"]["accuracy"] == facts["scores"]["mls"]["accuracy"]
    assert content["provenance"]["right"]["view"] == "cross-v1/0"


def test_nearest_adds_the_rates_of_old_papers(folder: Path) -> None:
    options = ["--draws", "0", "--json", "--out", str(folder / "report")]
    result = tenfold(folder, *options, "--nearest")
    facts = json.loads(result.stdout)
    points = facts["scores"]["cosine"]["nearest"]
    assert [point["target"] for point in points] == [0.1, 0.01, 0.001] and "nearest" in result.stderr
    assert all(point["excess"] == point["fmr"] - point["target"] for point in points)
    page = (folder / "report/report.html").read_text("utf-8")
    assert "Comparing with old papers" in page and "|fmr:nearest|" in page
    plain = tenfold(folder, *options)
    assert json.loads(plain.stdout)["scores"]["cosine"]["nearest"] == []
    assert "Comparing" not in (folder / "report/report.md").read_text("utf-8")


def test_pairs_with_missing_images_are_skipped_in_the_report(folder: Path) -> None:
    (folder / "faces/003/0.png").unlink()
    options = ["--faces", str(folder / "faces"), "--out", str(folder / "report"), "--draws", "0"]
    assert tenfold(folder, *options).exit_code == 0


def test_photos_are_aligned_again_for_the_strips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned_names = []

    def aligned(source: ImageSource) -> ImageSource:
        aligned_names.append(source.name)
        return source

    monkeypatch.setattr("spherecf.faces.AlignedFaces", aligned)
    e = Embeddings.load(folder / "clean.safetensors")
    e = dataclasses.replace(e, mu=np.array(e.mu), provenance={**e.provenance, "alignment": "yunet"})
    (folder / "clean.safetensors").unlink()
    e.save(folder / "clean.safetensors")
    options = ["--faces", str(folder / "faces"), "--out", str(folder / "report"), "--draws", "0"]
    assert tenfold(folder, *options).exit_code == 0 and aligned_names == ["faces"]
    assert tenfold(folder, "--draws", "0", "--json").stdout.count("align:yunet") == 2


def test_faces_of_an_unknown_view_are_refused(folder: Path) -> None:
    e = Embeddings.load(folder / "clean.safetensors")
    e = dataclasses.replace(e, mu=np.array(e.mu), provenance={**e.provenance, "view": "fog-v9/0"})
    (folder / "clean.safetensors").unlink()
    e.save(folder / "clean.safetensors")
    options = ["--faces", str(folder / "faces"), "--out", str(folder / "report"), "--draws", "0"]
    error = tenfold(folder, *options).exception
    assert isinstance(error, InputError) and "fog-v9" in str(error)
    assert str(error).endswith("; leave out --faces") and not (folder / "report").exists()


def test_the_same_file_on_both_sides_is_read_as_one(folder: Path) -> None:
    path = str(folder / "clean.safetensors")
    result = tenfold(folder, "--right", path, "--draws", "0", "--json", "--radius", "8")
    facts = json.loads(result.stdout)
    assert facts["condition"] == "clean/clean" and facts["counts"]["images"] <= PEOPLE * EACH
    assert (
        "|r:8|" in facts["scores"]["mls"]["signature"] and "|ci:none|" in facts["scores"]["mls"]["signature"]
    )


def test_rates_are_reported_by_group(folder: Path) -> None:
    lines = [f"{person:03d},{'AB'[person % 2]}" for person in range(PEOPLE)]
    (folder / "groups.csv").write_text("\n".join(["subject,group", *lines]))
    options = ["--groups", str(folder / "groups.csv"), "--draws", "0", "--json", "--out", str(folder)]
    result = tenfold(folder, *options)
    assert result.exit_code == 0, result.exception
    groups = json.loads(result.stdout)["groups"]["mls"]
    assert [group["group"] for group in groups["groups"]] == ["A", "B", "(between groups)"]
    assert "By group: cosine" in (folder / "report.html").read_text("utf-8")
    assert "By group: mls" in result.stderr


def test_groups_from_an_extra_need_a_single_file(folder: Path) -> None:
    result = tenfold(
        folder, "--right", str(folder / "degraded.safetensors"), "--groups", "extras:age", "--draws", "0"
    )
    assert result.exit_code == 1
    with pytest.raises(InputError, match="extras:age needs a single file; with --right, use a CSV"):
        raise result.exception


def test_failures_to_acquire_are_counted(folder: Path) -> None:
    path = folder / "clean.safetensors"
    e = Embeddings.load(path)
    remaining = dataclasses.replace(e.select(np.arange(1, len(e))), skipped=[(e.keys[0], "truncated")])
    path.unlink()
    remaining.save(path)
    facts = json.loads(tenfold(folder, "--draws", "0", "--json").stdout)
    assert facts["failures"] == [[e.keys[0], "truncated"]] and facts["counts"]["failed_pairs"] > 0
    assert facts["counts"]["pairs"] + facts["counts"]["failed_pairs"] == 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--faces", "FOLDER/faces"], "needs --out"),
        (["--right", "FOLDER/none.safetensors"], "no such file"),
        (["--faces", "FOLDER/other", "--out", "FOLDER/report"], "none of the .* images to show is in"),
        (["--draws", "-1"], "draws: expected 0"),
        (["--radius", "0"], "radius"),
    ],
)
def test_invalid_options_are_refused(folder: Path, options: list[str], message: str) -> None:
    (folder / "other/x").mkdir(parents=True)
    (folder / "other/x/1.png").write_bytes((folder / "faces/000/0.png").read_bytes())
    result = tenfold(folder, *(option.replace("FOLDER", str(folder)) for option in options))
    assert result.exit_code == 1 and not (folder / "report").exists()
    with pytest.raises(ValueError, match=message):
        raise result.exception


def test_missing_matplotlib_is_reported_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = runner.invoke(
        evaluate.app, ["tenfold", "none.safetensors", "--pairs", "none.txt", "--out", str(folder / "report")]
    )
    assert isinstance(result.exception, MissingDependencyError)
    assert tenfold(folder, "--draws", "0").exit_code == 0  # numbers need no plots


@pytest.mark.parametrize(
    ("stem", "path", "name"),
    [
        ("pairs", "lfw/pairs.txt", "lfw"),
        ("pairs_FP", "CFP/pairs_FP.txt", "cfp_fp"),
        ("lfw", "x/lfw.bin", "lfw"),
    ],
)
def test_pair_lists_are_named_after_their_file_or_folder(
    tmp_path: Path, stem: str, path: str, name: str
) -> None:
    pairs = PairList(stem, ["a"], ["b"], np.array([True]), np.array([0]))
    assert _list_name(pairs, tmp_path / path) == name


def test_help_ends_with_an_example() -> None:
    help_text = runner.invoke(evaluate.app, ["tenfold", "--help"]).stdout.rstrip()
    assert "Example: spherecf evaluate tenfold" in " ".join(help_text.splitlines()[-3:])


@pytest.mark.slow
def test_lfw_pairs_with_random_embeddings(shared: Path, tmp_path: Path) -> None:
    from spherecf.data import open_pairs

    pairs = open_pairs(shared / "data/lfw/pairs.txt")
    keys = sorted({*pairs.left, *pairs.right})
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(len(keys), 16))
    e = Embeddings(mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.normal(5, 1, len(keys)), keys)
    e.save(tmp_path / "e.safetensors")
    options = [
        "--pairs",
        str(shared / "data/lfw/pairs.txt"),
        "--faces",
        str(shared / "data/lfw"),
        "--out",
        str(tmp_path),
    ]
    result = runner.invoke(
        evaluate.app, ["tenfold", str(tmp_path / "e.safetensors"), *options, "--draws", "50"]
    )
    assert result.exit_code == 0 and result.stdout.startswith("[lfw][0]Accuracy-Flip: 0.")
    assert "6,000 pairs (3,000 mated, 3,000 non-mated)" in (tmp_path / "report.html").read_text("utf-8")
