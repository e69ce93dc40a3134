"""The harness in short, in a process of its own; the long form is `make faults`."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spherecf.common.rowstore import RowStore
from spherecf.embeddings import Embeddings
from spherecf.errors import StorageError
from spherecf.gallery import Gallery
from spherecf.photos import write_list
from spherecf.photos.files import Journal, PhotoFile

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which(os.environ.get("CC", "cc")),
    reason="faults are injected by a preloaded library, which needs Linux and a C compiler",
)


def attacked(trials: int, *jobs: str, attacks: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    options = [f"--job={job}" for job in jobs] + [f"--attack={attack}" for attack in attacks]
    command = [sys.executable, "-m", "tests.faults.harness", f"--trials={trials}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@linux
@pytest.mark.slow
def test_no_attack_breaks_a_command() -> None:
    done = attacked(
        4, "embed", "gallery enrol --folders", "bulk enrolment", "gallery remove", "gallery compact",
        "quality --resume", "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| power |") == 7


@linux
@pytest.mark.slow
def test_no_attack_breaks_a_training() -> None:
    jobs = ("cache pass", "cache pass, 2 ranks", "stage 1", "stage 1, 2 ranks", "stage 2", "stage 2, 2 ranks")
    done = attacked(2, *jobs, attacks=("kill", "signal", "full", "power"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| kill |") == 6


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "said"),
    [("kill", "another result"), ("power", "acknowledged and lost"), ("full", "ends with 99")],
)
def test_a_careless_command_is_found_out(attack: str, said: str) -> None:
    done = attacked(16, "careless", attacks=(attack,))
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr


def mounted(options: str, script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in ``folder`` with a disk of its own mounted at ``disk``, as nobody else sees it."""
    (folder / "disk").mkdir(exist_ok=True)
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", folder / "disk"]).returncode:
        pytest.skip("no right to mount a disk of one's own here (user namespaces)")
    start = "import subprocess, sys\nfrom pathlib import Path\nfrom tests.faults.test_faults import *\n"
    mount = f'mount {options} disk && exec {sys.executable} -c "$SCRIPT"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"SCRIPT": start + textwrap.dedent(script), "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
    )  # fmt: skip


MODEL, DIM, COLUMNS = "m" * 64, 64, {"x": ((), "float32")}


def people(count: int) -> np.ndarray:
    mu = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    unit: np.ndarray = mu / np.linalg.norm(mu, axis=1, keepdims=True)
    return unit


def gallery(path: Path) -> Gallery:
    return Gallery.open(path, model=MODEL, dim=DIM, radius=1.0)


def enrol(path: Path, count: int) -> int:
    """Enrol people one by one; how many are there afterwards."""
    with gallery(path) as opened:
        for number in range(count):
            if f"person {number}" not in opened:
                mu = people(count)[number : number + 1]
                opened.enrol(f"person {number}", mu, [300.0], media=["a"], sources=["a.jpg"])
        return len(opened)


def refused(work: Callable[[], object], reason: str) -> None:
    with pytest.raises(StorageError, match=reason):
        work()


@linux
@pytest.mark.slow
def test_what_is_finished_can_be_read_from_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    assert enrol(disk / "people", 20) == 20
    write_list(disk / "names.txt", ["a.jpg"])
    Embeddings(people(20), np.zeros(20), [str(n) for n in range(20)]).save(disk / "faces.safetensors")
    store = RowStore(disk / "rows", 2, COLUMNS, {})
    store.append({"x": np.ones(2, np.float32)})
    with Journal(disk / "done.jsonl", "m") as journal:
        journal.add(PhotoFile("a", disk, disk), {"photo": "a"}, ("a", 1, 1))
    script = """
        disk = Path("disk")
        with gallery(disk / "people") as opened:
            assert len(opened.list()) == 20 and opened.search(people(1), [200.0])[0][0].identity == "person 0"
            refused(lambda: opened.remove("person 1"), "Read-only file system")
        assert len(Embeddings.load(disk / "faces.safetensors")) == 20
        assert RowStore(disk / "rows", 2, COLUMNS, {}).arrays["x"].tolist() == [1, 1]
        refused(lambda: RowStore(disk / "rows", 3, COLUMNS, {}), "Read-only file system")
        with Journal(disk / "done.jsonl", "m") as journal:
            assert journal.find(("a", 1, 1)) == {"photo": "a"}
            refused(lambda: journal.add(PhotoFile("b", disk, disk), {}, ("b", 1, 1)), "Read-only file system")
        refused(lambda: write_list(disk / "names.txt", ["b.jpg"]), "Read-only file system")
        refused(lambda: gallery(disk / "new"), "Read-only file system")
    """
    done = mounted("--bind disk disk && mount -o remount,ro,bind", script, tmp_path)
    assert done.returncode == 0, done.stderr


@linux
@pytest.mark.slow
def test_a_disk_that_is_really_full_and_then_larger(tmp_path: Path) -> None:
    script = """
        disk = Path("disk")
        refused(lambda: enrol(disk / "people", 400), "full")
        with gallery(disk / "people") as opened:
            assert 0 < len(opened) < 400 and len(opened.list()) == len(opened)
        refused(lambda: RowStore(disk / "rows", 10**6, COLUMNS, {}), "No space left")
        refused(lambda: write_list(disk / "names.txt", ["a.jpg" * 10**6]), "No space left")
        left = {path.name for path in disk.iterdir()}
        assert left <= {"people", "people-wal", "people-shm"}, left  # SQLite keeps its log for now
        subprocess.run(["mount", "-o", "remount,size=16m", "disk"], check=True)
        assert enrol(disk / "people", 400) == 400
        assert [path.name for path in disk.iterdir()] == ["people"]
    """
    done = mounted("-t tmpfs -o size=300k x", script, tmp_path)
    assert done.returncode == 0, done.stderr
