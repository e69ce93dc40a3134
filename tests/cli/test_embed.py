"""`spherecf embed`: options, report, and refusals."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.tiny import oblong_model, spoil, tiny_model, write_people
from typer.testing import CliRunner, Result

from spherecf.cli import app
from spherecf.data import IdentityFolder, View, orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.extract import embed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``model.safetensors`` for ``tiny.onnx``, and ``people/`` with nine usable images out of twelve."""
    tiny_model(tmp_path).save(tmp_path / "model.safetensors")
    spoil(write_people(tmp_path))
    return tmp_path


def call(folder: Path, *options: str, source: str = "people") -> Result:
    """`spherecf embed` with the tiny model."""
    paths = [str(folder / name) for name in ("model.safetensors", source, "out.safetensors")]
    return CliRunner().invoke(app, ["embed", *paths, "--backbone", str(folder / "tiny.onnx"), *options])


def test_writes_the_file_and_reports_as_json(folder: Path) -> None:
    result = call(folder)
    report = json.loads(result.stdout)
    written = Embeddings.load(folder / "out.safetensors")
    assert report["images"] == len(written) == 9 and report["dim"] == 48
    assert report["written"] == str(folder / "out.safetensors")
    assert report["fingerprint"] == written.fingerprint() and report["images_per_second"] > 0
    assert [item["key"] for item in report["skipped"]] == ["p0/1.png", "p1/0.png", "p3/2.png"]
    assert "truncated" in report["skipped"][0]["reason"]
    assert (report["view"], report["flip"], report["alignment"]) == ("clean", "none", "as-given")
    assert "9 of 12 images" in result.stderr and "p3/2.png: expected an image of 16x16" in result.stderr


def test_command_equals_the_python_function(folder: Path) -> None:
    model, source = tiny_model(folder), IdentityFolder(folder / "people")
    expected = embed(model, source, folder / "python.safetensors")
    call(folder)
    assert Embeddings.load(folder / "out.safetensors").fingerprint() == expected.fingerprint()


def test_options_change_view_and_flip(folder: Path) -> None:
    fingerprints, views = [], []
    for options in ([], ["--flip"], ["--degrade", "cross"], ["--degrade", "cross", "--seed", "3"]):
        report = json.loads(call(folder, *options).stdout)
        fingerprints.append(report["fingerprint"])
        views.append((report["view"], report["flip"]))
    assert len(set(fingerprints)) == 4
    assert views == [("clean", "none"), ("clean", "sum"), ("cross-v1/0", "none"), ("cross-v1/3", "none")]
    with_one, with_many = (call(folder, "--batch-size", size).stdout for size in ("1", "64"))
    assert json.loads(with_one)["images"] == json.loads(with_many)["images"] == 9
    assert json.loads(call(folder, "--engine", "onnxruntime").stdout)["images"] == 9


def test_align_accepts_photos(folder: Path) -> None:
    photos = folder / "photos" / "s1"
    photos.mkdir(parents=True)
    for index in range(3):
        cv2.imwrite(str(photos / f"{index}.png"), orl_faces().image(index))
    cv2.imwrite(str(photos / "wall.png"), np.full((120, 120, 3), 90, np.uint8))
    assert isinstance(call(folder, source="photos").exception, InputError)  # no image has the right size
    report = json.loads(call(folder, "--align", source="photos").stdout)
    assert report["images"] == 3 and report["alignment"].startswith("arcface16+yunet-")
    assert [(item["key"], item["reason"][:13]) for item in report["skipped"]] == [
        ("s1/wall.png", "no face found")
    ]


def test_paths_of_a_list_are_relative_to_the_root(folder: Path) -> None:
    (folder / "list.txt").write_text("p0/0.png ann\np2/1.png bob\n")
    report = json.loads(call(folder, "--root", str(folder / "people"), source="list.txt").stdout)
    assert report["images"] == 2
    assert list(Embeddings.load(folder / "out.safetensors").subjects()) == ["ann", "bob"]


@pytest.mark.parametrize(
    ("options", "source", "error"),
    [
        (["--degrade", "nonsense"], "people", InputError),
        (["--seed", "3"], "people", InputError),
        (["--batch-size", "0"], "people", InputError),
        (["--engine", "abacus"], "people", InputError),
        ([], "nobody", FileFormatError),
    ],
)
def test_invalid_options_are_refused(folder: Path, options: list[str], source: str, error: type) -> None:
    result = call(folder, *options, source=source)
    assert isinstance(result.exception, error) and result.stdout == ""
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("option", [["--align"], ["--meta", "."]])
def test_crops_are_made_for_square_recognisers_only(folder: Path, option: list[str]) -> None:
    oblong_model(folder).save(folder / "model.safetensors")
    result = call(folder, *option, "--backbone", str(folder / "oblong.onnx"))
    assert isinstance(result.exception, InputError) and result.stdout == ""
    assert str(result.exception) == f"{option[0]} makes square crops, but this recogniser takes 8x32"


def test_another_backbone_is_refused(folder: Path) -> None:
    (folder / "tiny.onnx").write_bytes((folder / "tiny.onnx").read_bytes() + b"\0")
    assert isinstance(call(folder).exception, ModelError)


def test_failure_is_one_message_and_exit_code_1(folder: Path) -> None:
    command = [sys.executable, "-c", "from spherecf.cli import main; main()", "embed"]
    completed = subprocess.run(
        [*command, str(folder / "none"), str(folder / "people"), str(folder / "out.safetensors")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert completed.returncode == 1 and completed.stdout == ""
    assert "no such file" in completed.stderr and "Traceback" not in completed.stderr


def test_help_ends_with_an_example() -> None:
    help_text = CliRunner().invoke(app, ["embed", "--help"]).stdout.rstrip()
    assert help_text.splitlines()[-1].strip().startswith("Example: spherecf embed model.safetensors")


def test_options_select_the_view() -> None:
    from spherecf.cli.embed import _view

    assert _view("", 0) is None
    assert isinstance(view := _view("cross", 2), View) and view.signature == "cross-v1/2"


def test_loose_crops_of_ijb_are_aligned_with_the_meta_files(folder: Path) -> None:
    names = [f"people/p{person}/{image}.png" for person, image in ((0, 0), (1, 1), (1, 1), (2, 0))]
    lines = [f"{name} {row // 2 + 1} {row}" for row, name in enumerate(names)]
    (folder / "ijbb_face_tid_mid.txt").write_text("\n".join([*lines[:2], lines[3]]))
    eyes = "5 5 11 5 8 8 5 11 11 11 0.9"
    (folder / "ijbb_name_5pts_score.txt").write_text("".join(f"{name} {eyes}\n" for name in {*names}))
    report = json.loads(call(folder, "--meta", str(folder), "--set", "ijbb", source=".").stdout)
    assert report["images"] == 3 and report["alignment"] == "arcface16+given-points"
    assert call(folder, "--meta", str(folder), "--align").exit_code == 1
