"""`spherecf calibrate`: photos or embeddings of known people, the table, and the model that is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.cli.options import open_gallery
from spherecf.data import orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.models import load


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["calibrate", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_photos_that_were_said_to_show_different_people(tmp_path: Path) -> None:
    """Ten photos each of six people, given as sixty people: the rules look broken, and are made stricter."""
    photos = tmp_path / "photos"
    for person in range(1, 7):
        shutil.copytree(orl_faces().root / f"s{person}", photos / f"s{person}")
    saved = tmp_path / "mine.safetensors"
    said = json.loads(run(str(photos), "--one-each", "--save", str(saved), "--draws", "100", "--json"))
    assert said["counts"]["people"] == said["counts"]["images"] == 60 and said["counts"]["mated"] == 0
    assert {rule["verdict"] for rule in said["rules"]} == {"broken"}
    before, after = load(), load(saved)
    assert after.fingerprint() == before.fingerprint()
    for old, new in zip(before.calibration.decisions, after.calibration.decisions, strict=True):
        if "template" in old.score:
            assert new == old
        else:
            assert new.accept is None or new.accept > old.accept
    with pytest.raises(InputError, match="expected at least 50 people, got 6"):
        run(str(photos))


def test_embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    mu = np.eye(60, 128, dtype=np.float32)
    facts = {"model": load().fingerprint(), "radius": 64.0}
    keys, path = [str(i) for i in range(60)], tmp_path / "e.safetensors"
    Embeddings(mu, np.full(60, 5.0), keys, provenance=facts).save(path)
    said = json.loads(run(str(path), "--one-each", "--draws", "50", "--json"))
    assert said["saved"] is None and said["rules"][0]["false_matches"] == 0
    Embeddings(mu, np.full(60, 5.0), keys, provenance={"model": "f" * 64}).save(path)
    with pytest.raises(InputError, match="made by the model ffff"):
        run(str(path), "--one-each")


def test_a_gallery_keeps_the_rules_and_names_their_people(tmp_path: Path) -> None:
    model, place = load(), tmp_path / "people.gallery"
    keys, path = [str(i) for i in range(60)], tmp_path / "visitors.safetensors"
    facts = {"model": model.fingerprint(), "radius": 64.0}
    Embeddings(np.eye(60, 128, dtype=np.float32), np.full(60, 5.0), keys, provenance=facts).save(path)
    with pytest.raises(InputError, match="there is no gallery here"):
        run(str(path), "--one-each", "--gallery", str(place))
    with open_gallery(str(place), model) as gallery:
        gallery.enrol_many(["Ann"], np.eye(1, 128), [150.0])
    said = json.loads(run(str(path), "--one-each", "--gallery", str(place), "--draws", "50", "--json"))
    assert said["gallery"] == str(place) and said["saved"] is None
    assert "counted" in {rule["how"] for rule in said["rules"]}
    with open_gallery(str(place), model) as gallery:
        found = gallery.identify(np.eye(1, 128)[0], 150.0)
    assert found.tested_on == "60 people of visitors.safetensors"
