"""Migration of Milvus Lite folders, the format of earlier versions, to gallery files."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gallery.conftest import BACKBONE, DIM, MODEL, RADIUS, calibration
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.common.sealing import KEY_FILE, make_key
from spherecf.errors import FileFormatError, InputError, StorageError
from spherecf.gallery import Gallery, migrate, milvus

milvus_lite = pytest.importorskip("milvus_lite", reason="no Milvus Lite")

Open = Callable[..., Gallery]
WHEN = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def old(tmp_path: Path, people: np.ndarray) -> Path:
    """An old folder: Ann with three images in two media, nine others with one, stale rows of a crash."""
    from milvus_lite import CollectionSchema, DataType, FieldSchema, MilvusLite

    text, number = DataType.VARCHAR, DataType.INT32
    fields = [
        FieldSchema("id", text, is_primary=True, max_length=128), FieldSchema("kind", text, max_length=16),
        FieldSchema("owner", text, max_length=64), FieldSchema("identity", text, max_length=2048),
        FieldSchema("direction", DataType.JSON), FieldSchema("kappa", DataType.FLOAT),
        FieldSchema("images", number), FieldSchema("media", number), FieldSchema("facts", DataType.JSON),
        FieldSchema("mu", DataType.FLOAT_VECTOR, dim=2),
    ]  # fmt: skip
    header = {
        "model": MODEL, "backbone": BACKBONE, "dim": DIM, "radius": RADIUS, "salt": "0" * 32, "created": WHEN,
        "spherecf": "0.1.0", "format": "spherecf.gallery", "version": 1,
    }  # fmt: skip

    def facts(i: int) -> dict[str, Any]:
        return {"generation": "cafe", "medium": f"m{i}", "source": f"{i}.jpg", "sources": [f"{i}.jpg"],
                "warnings": [], "enrolled": WHEN, "changed": WHEN, "spherecf": "0.1.0"}  # fmt: skip

    def row(key: str, kind: str, owner: str, identity: str, mu: Any, *rest: Any) -> dict[str, Any]:
        kappa, images, media, facts = rest
        columns = {"identity": identity, "kappa": kappa, "images": images, "media": media}
        return milvus._row(key, kind, owner, facts, mu, **columns) | {"mu": [0.0, 0.0]}

    keys = [f"{i * 16**31 + i:032x}" for i in range(1, 11)]
    rows = [row("header", "header", "header", "", None, 0.0, 0, 0, header)]
    for i, (key, mu) in enumerate(zip(keys, people)):
        images = 1 if i else 3
        name = f"person {i}" if i else "Ann"
        rows.append(row(key, "template", key, name, mu, 300.0 + i, images, min(images, 2), facts(i)))
    for position in range(3):
        image_facts = {"generation": "cafe", "place": position, "medium": "ab"[position // 2]}
        image_facts["source"] = f"{position}.jpg"
        mu = people[20 + position]
        rows.append(row(f"{keys[0]}-cafe-{position}", "image", keys[0], "", mu, 100.0, 1, 1, image_facts))
    stale = {"generation": "dead", "place": 0, "medium": "z", "source": "z.jpg"}
    rows.append(row(f"{keys[0]}-dead-0", "image", keys[0], "", people[30], 1.0, 1, 1, stale))
    with MilvusLite(str(tmp_path / "old")) as lite:
        for name, content in (("spherecf_3", rows), ("spherecf_4", rows[1:3])):
            collection = lite.create_collection(name, CollectionSchema(fields=fields))
            encoded = [row | {n: json.dumps(row[n]) for n in ("facts", "direction")} for row in content]
            collection.insert(encoded)
    return tmp_path / "old"


def test_everything_is_migrated(old: Path, opened: Open, tmp_path: Path, people: np.ndarray) -> None:
    with pytest.raises(FileFormatError, match=f"spherecf gallery migrate {old}"):
        opened(old)
    assert migrate(old, tmp_path / "new") == 10 and not (tmp_path / "new-part").exists()
    gallery = opened(tmp_path / "new", calibration=calibration(), create=False)
    people_listed = gallery.list()
    assert [person.identity for person in people_listed] == ["Ann", *(f"person {i}" for i in range(1, 10))]
    assert [person.template for person in people_listed] == [f"{i * 16**31 + i:032x}" for i in range(1, 11)]
    assert {(person.enrolled, person.changed) for person in people_listed} == {(WHEN, WHEN)}
    assert gallery.sources("Ann") == {"a": "0.jpg", "b": "2.jpg"} and people_listed[0].images == 3
    assert gallery.identify(people[5], 300.0).identity == "person 5"
    enrolment = gallery.enrol("Ann", people[25:26], [100.0], media=["c"], sources=["c"], add=True)
    assert enrolment.images == 4 and enrolment.enrolled == WHEN
    with pytest.raises(InputError, match="exists already"):
        migrate(old, tmp_path / "new")
    result = CliRunner().invoke(app, ["gallery", "migrate", str(old), str(tmp_path / "again")])
    assert result.exit_code == 0 and "".join(result.stderr.split("\n")) == f"{tmp_path / 'again'}: 10 people"


def test_a_failed_rename_is_reported_and_can_be_repeated(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match=r"new: .* could not be renamed \(Input"):
            migrate(old, tmp_path / "new")
    assert migrate(old, tmp_path / "new") == 10


def test_with_a_key_the_new_gallery_is_encrypted(
    old: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "key")
    migrate(old, tmp_path / "plain")
    assert b"person 5" in (tmp_path / "plain").read_bytes()
    monkeypatch.setenv(KEY_FILE, key.origin)
    migrate(old, tmp_path / "new")
    assert b"person 5" not in (tmp_path / "new").read_bytes()
    gallery = opened(tmp_path / "new", create=False)
    assert gallery.info()["encrypted_with"] == key.id
    listed = gallery.list()
    monkeypatch.delenv(KEY_FILE)
    plain = opened(tmp_path / "plain")
    assert plain.info()["encrypted_with"] is None and plain.list() == listed


def test_an_interrupted_migration_continues(
    old: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus, "_LITE_PAGE", 2)
    insert, calls = milvus.Store.insert, []

    def interrupt_after_3(store: milvus.Store, templates: list[Any]) -> list[int]:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(templates))
        return insert(store, templates)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(milvus.Store, "insert", interrupt_after_3)
        migrate(old, tmp_path / "new")
    assert sum(calls) and not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="no gallery"):
        opened(tmp_path / "new", create=False)
    calls[:] = []
    monkeypatch.setattr(
        milvus.Store, "insert", lambda store, new: calls.append(len(new)) or insert(store, new)
    )
    assert migrate(old, tmp_path / "new") == 10 and sum(calls) < 9
    assert len(opened(tmp_path / "new").list()) == 10


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Milvus Lite"):
        migrate(tmp_path, tmp_path / "new")
    (tmp_path / "collections").mkdir()
    with pytest.raises(FileFormatError, match="holds no gallery"):
        migrate(tmp_path, tmp_path / "new")
