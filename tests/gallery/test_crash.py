"""After kill -9, a full disk or a truncated log, acknowledged changes are kept and others fully absent."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.gallery.conftest import BACKBONE, DIM, MODEL, RADIUS

from spherecf.errors import StorageError
from spherecf.gallery import Gallery
from spherecf.gallery.store import Store

pytestmark = pytest.mark.slow  # every test starts processes

START = f"""
import os, resource, signal, sys
import numpy as np
from spherecf.errors import StorageError
from spherecf.gallery import Gallery
from tests.gallery.conftest import near
people = np.eye({DIM}, dtype=np.float32)
gallery = Gallery.open(sys.argv[1], model="{MODEL}", backbone="{BACKBONE}", dim={DIM}, radius={RADIUS})
def enrol(i, n=3):
    mu = np.concatenate([near(people[i : i + 1], seed) for seed in range(n)])
    gallery.enrol(f"person {{i}}", mu, np.full(n, 300.0), media=[str(j) for j in range(n)], sources=[""] * n)
"""


def run(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", START + script, str(folder)], capture_output=True, text=True, timeout=300
    )


def reopened(folder: Path) -> Gallery:
    return Gallery.open(folder, model=MODEL, backbone=BACKBONE, dim=DIM, radius=RADIUS, create=False)


def test_kill_9_loses_no_acknowledged_enrolment(tmp_path: Path) -> None:
    completed = run(
        "for i in range(6):\n    enrol(i)\n    print(i, flush=True)\nos.kill(os.getpid(), 9)", tmp_path / "g"
    )
    assert completed.returncode == -9 and completed.stdout.split() == list("012345")
    with reopened(tmp_path / "g") as gallery:
        assert [person.identity for person in gallery.list()] == [f"person {i}" for i in range(6)]
        assert {person.images for person in gallery.list()} == {3}
        enrolment = gallery.enrol("person 0", np.eye(DIM)[:1], [300.0], media=["x"], sources=["x"], add=True)
        assert enrolment.images == 4


def test_an_enrolment_truncated_in_the_log_is_absent(tmp_path: Path) -> None:
    run("enrol(0)\nenrol(1, 8)\nos.kill(os.getpid(), 9)", tmp_path / "g")
    log = tmp_path / "g-wal"
    content = log.read_bytes()
    log.write_bytes(content[: len(content) - 900])
    with reopened(tmp_path / "g") as gallery:
        assert [person.identity for person in gallery.list()] == ["person 0"]


@pytest.mark.parametrize("statement", ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"])
def test_kill_9_during_compaction(tmp_path: Path, statement: str) -> None:
    completed = run(
        "enrol(0)\nenrol(1)\nask = gallery._store._ask\n"
        "def stop(sql, values=()):\n"
        f"    if sql == '{statement}':\n        os.kill(os.getpid(), 9)\n    return ask(sql, values)\n"
        "gallery.remove('person 1', erase=False)\ngallery._store._ask = stop\ngallery.compact()",
        tmp_path / "g",
    )
    assert completed.returncode == -9, completed.stderr
    with reopened(tmp_path / "g") as gallery:
        assert [person.identity for person in gallery.list()] == ["person 0"]
        gallery.compact()
    assert {file.name for file in tmp_path.iterdir()} <= {"g", "g-search"}
    assert not any(b"person 1" in file.read_bytes() for file in tmp_path.iterdir())


def test_a_full_disk_refuses_one_enrolment_and_keeps_the_others(tmp_path: Path) -> None:
    completed = run(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "enrol(0)\n"
        "limit = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limit[1]))\n"
        "try:\n    enrol(1, 20)\nexcept StorageError as error:\n    print('refused:', error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, limit)\n"
        "enrol(2)\n"
        "gallery.close()",
        tmp_path / "g",
    )
    (refused,) = completed.stdout.splitlines()
    assert "the gallery cannot be read or written" in refused and "Traceback" not in completed.stderr
    with reopened(tmp_path / "g") as gallery:
        assert [person.identity for person in gallery.list()] == ["person 0", "person 2"]


def test_normal_use_prints_nothing(tmp_path: Path) -> None:
    completed = run("enrol(0)\ngallery.remove('person 0')\ngallery.close()", tmp_path / "g")
    assert (completed.stdout, completed.stderr) == ("", "")


@pytest.mark.parametrize("statement", ["PRAGMA journal_mode = WAL", "COMMIT"])
def test_kill_9_during_creation(tmp_path: Path, statement: str) -> None:
    script = (
        "import os, sys\nfrom spherecf.gallery.store import Store\nstore = Store(sys.argv[1], 2)\n"
        "ask = store._ask\ndef stop(sql, values=()):\n"
        f"    if sql == '{statement}':\n        os.kill(os.getpid(), 9)\n    return ask(sql, values)\n"
        "store._ask = stop\nstore.create({})"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "g")]).returncode == -9
    with Gallery.open(tmp_path / "g", model=MODEL, dim=DIM, radius=RADIUS) as gallery:
        assert len(gallery) == 0


def test_a_path_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("")
    with pytest.raises(StorageError, match=r"inside: cannot be written \(.*g is not a folder\)"):
        Store(str(tmp_path / "g" / "inside"), DIM)
