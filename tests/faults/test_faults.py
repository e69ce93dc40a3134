"""A short run of the fault-injection harness, in its own process; `make faults` is the long form."""

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


def run_harness(trials: int, *jobs: str, attacks: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    options = [f"--job={job}" for job in jobs] + [f"--attack={attack}" for attack in attacks]
    command = [sys.executable, "-m", "tests.faults.harness", f"--trials={trials}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@linux
@pytest.mark.slow
def test_no_attack_breaks_a_command() -> None:
    completed = run_harness(
        4, "embed", "gallery enrol --folders", "bulk enrolment", "gallery remove", "gallery compact",
        "quality --resume", "report",
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stdout.count("| power |") == 7


@linux
@pytest.mark.slow
def test_no_attack_breaks_a_training() -> None:
    jobs = ("cache pass", "cache pass, 2 ranks", "stage 1", "stage 1, 2 ranks", "stage 2", "stage 2, 2 ranks")
    completed = run_harness(2, *jobs, attacks=("kill", "signal", "full", "power"))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stdout.count("| kill |") == 6


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "problem"),
    [("kill", "another result"), ("power", "acknowledged and lost"), ("full", "ends with 99")],
)
def test_a_careless_command_fails(attack: str, problem: str) -> None:
    completed = run_harness(16, "careless", attacks=(attack,))
    assert completed.returncode == 1 and problem in completed.stdout, completed.stdout + completed.stderr


def run_on_mount(options: str, script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in ``folder``, with a file system mounted at ``disk`` in a private mount namespace."""
    (folder / "disk").mkdir(exist_ok=True)
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", folder / "disk"]).returncode:
        pytest.skip("no permission to mount a file system here (user namespaces)")
    start = "import subprocess, sys\nfrom pathlib import Path\nfrom tests.faults.test_faults import *\n"
    mount = f'mount {options} disk && exec {sys.executable} -c "$SCRIPT"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"SCRIPT": start + textwrap.dedent(script), "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
    )  # fmt: skip


MODEL, DIM, COLUMNS = "m" * 64, 64, {"x": ((), "float32")}


def directions(count: int) -> np.ndarray:
    mu = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    unit: np.ndarray = mu / np.linalg.norm(mu, axis=1, keepdims=True)
    return unit


def open_gallery(path: Path) -> Gallery:
    return Gallery.open(path, model=MODEL, dim=DIM, radius=1.0)


def enrol(path: Path, count: int) -> int:
    """Enrol people one by one; returns their number afterwards."""
    with open_gallery(path) as opened:
        for number in range(count):
            if f"person {number}" not in opened:
                mu = directions(count)[number : number + 1]
                opened.enrol(f"person {number}", mu, [300.0], media=["a"], sources=["a.jpg"])
        return len(opened)


def assert_refused(work: Callable[[], object], reason: str) -> None:
    with pytest.raises(StorageError, match=reason):
        work()


@linux
@pytest.mark.slow
def test_finished_work_can_be_read_from_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    assert enrol(disk / "people", 20) == 20
    write_list(disk / "names.txt", ["a.jpg"])
    Embeddings(directions(20), np.zeros(20), [str(n) for n in range(20)]).save(disk / "faces.safetensors")
    store = RowStore(disk / "rows", 2, COLUMNS, {})
    store.append({"x": np.ones(2, np.float32)})
    with Journal(disk / "done.jsonl", "m") as journal:
        journal.add(PhotoFile("a", disk, disk), {"photo": "a"}, ("a", 1, 1))
    script = """
        disk = Path("disk")
        with open_gallery(disk / "people") as opened:
            assert len(opened.list()) == 20
            assert opened.search(directions(1), [200.0])[0][0].identity == "person 0"
            assert_refused(lambda: opened.remove("person 1"), "Read-only file system")
        assert len(Embeddings.load(disk / "faces.safetensors")) == 20
        assert RowStore(disk / "rows", 2, COLUMNS, {}).arrays["x"].tolist() == [1, 1]
        assert_refused(lambda: RowStore(disk / "rows", 3, COLUMNS, {}), "Read-only file system")
        with Journal(disk / "done.jsonl", "m") as journal:
            assert journal.find(("a", 1, 1)) == {"photo": "a"}
            photo = PhotoFile("b", disk, disk)
            assert_refused(lambda: journal.add(photo, {}, ("b", 1, 1)), "Read-only file system")
        assert_refused(lambda: write_list(disk / "names.txt", ["b.jpg"]), "Read-only file system")
        assert_refused(lambda: open_gallery(disk / "new"), "Read-only file system")
    """
    completed = run_on_mount("--bind disk disk && mount -o remount,ro,bind", script, tmp_path)
    assert completed.returncode == 0, completed.stderr


@linux
@pytest.mark.slow
def test_work_goes_on_after_a_full_disk_is_enlarged(tmp_path: Path) -> None:
    script = """
        disk = Path("disk")
        assert_refused(lambda: enrol(disk / "people", 400), "full")
        with open_gallery(disk / "people") as opened:
            assert 0 < len(opened) < 400 and len(opened.list()) == len(opened)
        assert_refused(lambda: RowStore(disk / "rows", 10**6, COLUMNS, {}), "No space left")
        assert_refused(lambda: write_list(disk / "names.txt", ["a.jpg" * 10**6]), "No space left")
        left = {path.name for path in disk.iterdir()}
        assert left <= {"people", "people-wal", "people-shm"}, left  # SQLite keeps its log for now
        subprocess.run(["mount", "-o", "remount,size=16m", "disk"], check=True)
        assert enrol(disk / "people", 400) == 400
        assert [path.name for path in disk.iterdir()] == ["people"]
    """
    completed = run_on_mount("-t tmpfs -o size=300k x", script, tmp_path)
    assert completed.returncode == 0, completed.stderr
