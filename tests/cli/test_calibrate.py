"""`spherecf calibrate`: photos or embeddings of known people, the table of rules, and the saved model."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.cli.calibrate import calibrate
from spherecf.cli.options import open_gallery
from spherecf.data import encode_image, orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, StorageError
from spherecf.models import ConfidenceModel, load
from spherecf.photos import FaceAssessor


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["calibrate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_rules_broken_by_mislabelled_photos_are_made_stricter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten photos each of six people, labelled as sixty people, break the rules, which are made stricter."""
    photos = tmp_path / "photos"
    for person in range(1, 7):
        shutil.copytree(orl_faces().root / f"s{person}", photos / f"s{person}")
    saved = tmp_path / "mine.safetensors"
    report = json.loads(run(str(photos), "--one-each", "--save", str(saved), "--draws", "100", "--json"))
    assert report["counts"]["people"] == report["counts"]["images"] == 60 and report["counts"]["mated"] == 0
    assert {rule["verdict"] for rule in report["rules"]} == {"broken"}
    before, after = load(), load(saved)
    assert after.fingerprint() == before.fingerprint()
    for old, new in zip(before.calibration.decisions, after.calibration.decisions, strict=True):
        if "template" in old.score:
            assert new == old
        else:
            assert new.accept is None or new.accept > old.accept
    monkeypatch.setattr(FaceAssessor, "stream", None)  # refused before the photos are assessed
    with pytest.raises(InputError, match="expected at least 50 people, got 6"):
        run(str(photos))


def test_what_the_folder_has_besides_photos_of_people_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in ("s1", "s2"):
        (tmp_path / person).mkdir()
        shutil.copy(orl_faces().root / person / "1.pgm", tmp_path / person)
    (tmp_path / "locked").mkdir()
    (tmp_path / "s1" / "notes.txt").write_text("?")
    shutil.copy(orl_faces().root / "s3" / "1.pgm", tmp_path / "loose.pgm")

    def scandir(folder: Path) -> object:  # tests may run as root, who can read every folder
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real_scandir(folder)

    real_scandir = os.scandir
    monkeypatch.setattr("spherecf.photos.files.os.scandir", scandir)
    with pytest.raises(InputError, match="expected at least 50 people, got 2"):
        calibrate(tmp_path)
    messages = capsys.readouterr().err
    assert f"folders that cannot be read: 1\n  {tmp_path / 'locked'}: Permission denied\n" in messages
    assert f"files ignored because they are not photos: 1\n  {tmp_path / 's1/notes.txt'}\n" in messages
    assert f"in no sub-folder of {tmp_path}: 1\n" in messages


def test_photos_without_a_face_are_listed(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.png").write_bytes(encode_image(np.full((9, 9, 3), number, np.uint8)))
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--one-each"])
    assert isinstance(result.exception, InputError) and result.stdout == ""
    assert str(result.exception) == f"{tmp_path}: no photo shows a usable face"
    assert "photos without a usable face: 50\n" in result.stderr and "... and 40 more\n" in result.stderr
    assert f"  {tmp_path / '0.png'}: no face found in 9x9 px" in " ".join(result.stderr.split("\n"))


def test_a_model_without_rules_is_refused(tmp_path: Path) -> None:
    ConfidenceModel((shipped := load()).backbone, shipped.head).save(tmp_path / "raw.safetensors")
    with pytest.raises(InputError, match="no decision rules to test; create them with `spherecf evaluate"):
        run(str(tmp_path), "--model", str(tmp_path / "raw.safetensors"))


def test_the_number_of_images_left_out_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.evaluation.people._IMAGES", 55)
    facts, path = {"model": load().fingerprint(), "radius": 64.0}, tmp_path / "e.safetensors"
    Embeddings(
        np.eye(60, 128, dtype=np.float32), np.full(60, 5.0), list(map(str, range(60))), provenance=facts
    ).save(path)
    result = CliRunner().invoke(app, ["calibrate", str(path), "--one-each", "--draws", "9"])
    assert result.exit_code == 0 and "55 people, 55 images" in result.stderr
    assert "5 randomly chosen images were left out" in " ".join(result.stderr.split())


def test_embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    mu = np.eye(60, 128, dtype=np.float32)
    facts = {"model": load().fingerprint(), "radius": 64.0}
    keys, path = [str(i) for i in range(60)], tmp_path / "e.safetensors"
    Embeddings(mu, np.full(60, 5.0), keys, provenance=facts).save(path)
    report = json.loads(run(str(path), "--one-each", "--draws", "50", "--json"))
    assert report["saved"] is None and report["rules"][0]["false_matches"] == 0
    Embeddings(mu, np.full(60, 5.0), keys, provenance={"model": "f" * 64}).save(path)
    with pytest.raises(InputError, match="made by the model ffff"):
        run(str(path), "--one-each")


def test_a_gallery_stores_the_rules_and_their_test_set(tmp_path: Path) -> None:
    model, gallery_path = load(), tmp_path / "people.gallery"
    keys, path = [str(i) for i in range(60)], tmp_path / "visitors.safetensors"
    facts = {"model": model.fingerprint(), "radius": 64.0}
    Embeddings(np.eye(60, 128, dtype=np.float32), np.full(60, 5.0), keys, provenance=facts).save(path)
    with pytest.raises(InputError, match="there is no gallery here"):
        run(str(path), "--one-each", "--gallery", str(gallery_path))
    with open_gallery(str(gallery_path), model) as gallery:
        gallery.enrol_many(["Ann"], np.eye(1, 128), [150.0])
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):  # at once
            run(str(tmp_path / "nobody"), "--gallery", str(gallery_path))
    options = ["--one-each", "--gallery", str(gallery_path), "--draws", "50", "--json"]
    report = json.loads(run(str(path), *options))
    assert report["gallery"] == str(gallery_path) and report["saved"] is None
    assert "counted" in {rule["how"] for rule in report["rules"]}
    with open_gallery(str(gallery_path), model) as gallery:
        result = gallery.identify(np.eye(1, 128)[0], 150.0)
    assert result.tested_on == "60 people of visitors.safetensors"
