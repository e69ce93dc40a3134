"""`spherecf key`, and the option --key-file of all commands."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from spherecf.cli import app
from spherecf.common.sealing import KEY, KEY_FILE, sealed_with
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.gallery import Gallery
from spherecf.models import load


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --key-file sets goes with the test."""
    for name in (KEY_FILE, KEY):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(*words: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_encrypt_use_change_and_decrypt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mu = load(), np.eye(128, dtype=np.float32)
    hashes = {"model": model.fingerprint(), "backbone": model.backbone.sha256}
    with Gallery.open(tmp_path / "g", dim=128, radius=model.radius, **hashes) as gallery:
        gallery.enrol("Ann", mu[:1], [300.0], media=["a"], sources=["ann.jpg"])
    Embeddings(mu[:2], np.full(2, 5.0), ["ann.jpg", "bob.jpg"]).save(tmp_path / "e")
    for name in ("1", "2"):
        assert f"{tmp_path / name}: created the key " in run("key", "make", tmp_path / name).stderr
    both = tmp_path / "g", tmp_path / "e"
    for said in (": encrypted", ": already encrypted"):
        assert run("--key-file", tmp_path / "1", "key", "encrypt", *both).stderr.count(said) == 2
    assert not any(b"Ann" in file.read_bytes() or b"ann.jpg" in file.read_bytes() for file in both)
    listed = run("--key-file", tmp_path / "1", "gallery", "list", tmp_path / "g", "--json")
    assert json.loads(listed.stdout)["identity"] == "Ann"
    run("--key-file", tmp_path / "1", "key", "change", *both, "--to", tmp_path / "2")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "1"))
    with pytest.raises(InputError, match="encrypted with the key"):
        run("gallery", "list", tmp_path / "g")
    monkeypatch.delenv(KEY_FILE)
    monkeypatch.setenv(KEY, (tmp_path / "2").read_text())
    assert json.loads(run("gallery", "list", tmp_path / "g", "--json").stdout)["identity"] == "Ann"
    run("key", "decrypt", *both)
    monkeypatch.delenv(KEY)
    assert json.loads(run("gallery", "list", tmp_path / "g", "--json").stdout)["identity"] == "Ann"
    assert sealed_with(tmp_path / "e") is None
    assert Embeddings.load(tmp_path / "e").keys == ["ann.jpg", "bob.jpg"]


def test_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no key file given"):
        run("key", "encrypt", tmp_path / "e")
