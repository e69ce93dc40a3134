"""`spherecf key`, and the global option --key-file."""

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
    """Remove the environment variables that --key-file sets after each test."""
    for name in (KEY_FILE, KEY):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_files_can_be_encrypted_used_rekeyed_and_decrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mu = load(), np.eye(128, dtype=np.float32)
    hashes = {"model": model.fingerprint(), "backbone": model.backbone.sha256}
    with Gallery.open(tmp_path / "g", dim=128, radius=model.radius, **hashes) as gallery:
        gallery.enrol("Ann", mu[:1], [300.0], media=["a"], sources=["ann.jpg"])
    Embeddings(mu[:2], np.full(2, 5.0), ["ann.jpg", "bob.jpg"]).save(tmp_path / "e")
    for name in ("1", "2"):
        assert f"{tmp_path / name}: created the key " in run("key", "make", tmp_path / name).stderr
    files = tmp_path / "g", tmp_path / "e"
    for message in (": encrypted", ": already encrypted"):
        assert run("--key-file", tmp_path / "1", "key", "encrypt", *files).stderr.count(message) == 2
    assert not any(b"Ann" in file.read_bytes() or b"ann.jpg" in file.read_bytes() for file in files)
    listing = run("--key-file", tmp_path / "1", "gallery", "list", tmp_path / "g", "--json")
    assert json.loads(listing.stdout)["identity"] == "Ann"
    run("--key-file", tmp_path / "1", "key", "change", *files, "--to", tmp_path / "2")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "1"))
    with pytest.raises(InputError, match="encrypted with the key"):
        run("gallery", "list", tmp_path / "g")
    monkeypatch.delenv(KEY_FILE)
    monkeypatch.setenv(KEY, (tmp_path / "2").read_text())
    assert json.loads(run("gallery", "list", tmp_path / "g", "--json").stdout)["identity"] == "Ann"
    run("key", "decrypt", *files)
    monkeypatch.delenv(KEY)
    assert json.loads(run("gallery", "list", tmp_path / "g", "--json").stdout)["identity"] == "Ann"
    assert sealed_with(tmp_path / "e") is None
    assert Embeddings.load(tmp_path / "e").keys == ["ann.jpg", "bob.jpg"]


def test_encryption_needs_a_key_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no key file given"):
        run("key", "encrypt", tmp_path / "e")
