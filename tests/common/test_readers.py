"""Readers: whatever the number of processes, the same results in the same order, and nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spherecf.common import readers
from spherecf.common.readers import Readers, count_cores, empty, reading_processes
from spherecf.data import ImageError
from spherecf.errors import FileFormatError, InputError, SpherecfError

ROW = 1000  # bytes of one row of a result


def table(offset: np.ndarray, count: int) -> tuple[int, np.ndarray, np.ndarray, str]:
    """A result with a large array where `empty` puts it, a small one from elsewhere, and other things."""
    made = empty((count, ROW))
    made[:] = (offset[:ROW] + count) % 251
    return os.getpid(), made[: max(0, count - 1)], np.arange(count), f"{count} rows"


class Odd(Exception):
    """Cannot be pickled: it is made again without its argument."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


ERRORS: dict[int, Exception] = {
    1: InputError("one"),
    2: ImageError("lfw:anna", "is grey.", "Copy it again."),
    3: KeyError("three"),
    4: Odd(4, 4),
    5: FileFormatError("some.rec", "is short."),
}


def failing(item: int) -> int:
    if item in ERRORS:
        raise ERRORS[item]
    return item


def slow(item: int) -> int:
    time.sleep(0.02)
    return item


def threads_of(item: int) -> tuple[int, int]:
    import cv2

    return torch.get_num_threads(), cv2.getNumThreads()


def the_same(found: Any, count: int) -> bool:
    _, made, small, text = found
    wanted = (np.arange(ROW) + count) % 251
    return bool(
        (made == wanted).all()
        and len(made) == max(0, count - 1)
        and (small == np.arange(count)).all()
        and text == f"{count} rows"
    )


@pytest.fixture
def make() -> Iterator[Callable[..., Readers[Any, Any]]]:
    made: list[Readers[Any, Any]] = []

    def start(function: Callable[[Any], Any], processes: int = 2, **options: Any) -> Readers[Any, Any]:
        made.append(Readers(function, processes=processes, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def gone(processes: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in processes)


# 0 bytes: all arrays through the pipe; 30 rows: the largest through the pipe; 50: all in shared memory.
@pytest.mark.parametrize("rows", [0, 30, 50])
def test_the_same_in_order_by_processes_from_pass_to_pass(make: Callable[..., Any], rows: int) -> None:
    function = partial(table, np.arange(100_000))
    counts = [3, 0, 45, 1, 17, 44, 2, 8, 9, 10]
    reader = make(function, max_result_bytes=rows * (ROW + 8))
    state = torch.get_rng_state()
    for _ in range(2):
        found = []
        for result in reader(counts):
            result[1][:] += 0  # as by threads, it can be written
            found.append(result)
        assert len(found) == len(counts) and all(map(the_same, found, counts))
        assert {result[0] for result in found} == set(reader.pids) and os.getpid() not in reader.pids
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(the_same, Readers(function, threads=2)(counts), counts))


def test_memory_is_used_again_when_nothing_of_a_result_is_kept(make: Callable[..., Any]) -> None:
    reader = make(partial(table, np.arange(ROW)), max_result_bytes=20 * (ROW + 8))
    free, slots = reader._items.free, len(reader._items.free)
    found = list(reader([11] * 2 * slots))  # more than there is memory for: the rest comes through the pipe
    assert not free and all(the_same(result, 11) for result in found)
    part = found[0][1][2:5, ::7]
    del found
    assert len(free) == slots - 1
    tensor = torch.from_numpy(part)
    del part
    assert len(free) == slots - 1 and (tensor.numpy() == (np.arange(ROW)[::7] + 11) % 251).all()
    del tensor
    assert len(free) == slots


def test_a_pass_that_is_left_early_is_dropped(make: Callable[..., Any]) -> None:
    reader = make(partial(table, np.arange(ROW)), max_result_bytes=20 * (ROW + 8))
    slots = len(reader._items.free)
    left = reader([5] * 100)
    assert the_same(next(left), 5)
    second = reader([7, 8])
    assert the_same(next(second), 7)
    with pytest.raises(RuntimeError, match="another pass"):
        next(left)
    assert the_same(next(second), 8) and next(second, None) is None
    second.close()
    assert len(reader._items.free) == slots and not reader._items.pending


def test_items_are_asked_for_as_they_are_needed(make: Callable[..., Any]) -> None:
    asked = []

    def items() -> Iterator[int]:
        for item in range(10**9):
            asked.append(item)
            yield item

    assert next(make(failing, 1)(item for item in items() if item not in ERRORS)) == 0
    assert len(asked) <= 10


def test_errors_come_where_their_result_would_have(make: Callable[..., Any]) -> None:
    reader = make(failing)
    for item, error in ERRORS.items():
        results = reader([0, item, 6])
        assert next(results) == 0
        with pytest.raises(RuntimeError if isinstance(error, Odd) else type(error)) as raised:
            next(results)
        assert str(error) in str(raised.value)
        if isinstance(error, FileFormatError):
            assert vars(raised.value) == vars(error)
        elif not isinstance(error, SpherecfError) and not isinstance(error, Odd):
            assert "in failing\n" in "".join(raised.value.__notes__)
    assert list(reader([6, 7])) == [6, 7]
    with pytest.raises(ZeroDivisionError):  # of the items themselves
        list(reader(1 // item for item in (1, 0)))


def test_a_killed_process_is_one_clear_error_and_none_is_left(make: Callable[..., Any]) -> None:
    reader = make(slow, name="decode")
    results = reader(range(10**6))
    next(results)
    processes = reader.pids
    os.kill(processes[0], signal.SIGKILL)
    wanted = rf"decode: 1 of 2 processes ended \(pid {processes[0]}\).*engine.workers"
    with pytest.raises(SpherecfError, match=wanted) as raised:
        list(results)
    assert "\n" not in str(raised.value) and gone(processes)
    assert next(reader([3])) == 3  # and started again, if somebody asks


def test_close_ends_the_processes_and_memory_goes_with_the_readers(make: Callable[..., Any]) -> None:
    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "memfd:spherecf" in line}  # their inodes

    before = mapped()  # readers of other tests, which may be collected at any time
    reader = Readers(slow, processes=2, max_result_bytes=100)
    assert list(reader([1])) == [1] and mapped() - before
    processes = reader.pids
    reader.close()
    assert gone(processes)
    del reader
    assert not mapped() - before


def test_processes_compute_with_one_thread_each(make: Callable[..., Any]) -> None:
    assert list(make(threads_of)([0])) == [(1, 1)]


def test_what_cannot_be_sent_is_done_by_threads_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    lock = threading.Lock()
    reader = Readers(lambda item: item + (lock is None), processes=2, name="decode")
    assert reader.processes == 0 and list(reader([1, 2])) == [1, 2]
    assert "decode: using threads, because the work cannot be sent to processes" in capfd.readouterr().err


SCRIPT = """
    import signal

    from tests.common.test_readers import slow
    from spherecf.common.readers import Readers

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    print("began", flush=True)
    reader = Readers(slow, processes=2)
    try:
        for item in reader(range(10**6)):
            if item == 5:
                print(*reader.pids, flush=True)
    except KeyboardInterrupt:
        # Ctrl-C goes to all: they go on, so that the asking process can end as it wants to.
        reader.close()
        print("interrupted, then", *Readers(slow, processes=1)([7]), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script without a guard against being imported, in a process group of its own, as in a terminal."""
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(SCRIPT))
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout is not None
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_ctrl_c_is_for_the_one_that_asked(script: subprocess.Popen[str]) -> None:
    assert script.stdout is not None and script.stdout.readline() == "began\n"
    processes = list(map(int, script.stdout.readline().split()))
    os.killpg(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=120)
    # "began" only once: the processes have not run the script.
    assert (out, err, script.returncode) == ("interrupted, then 7\n", "", 0) and len(processes) == 2
    assert gone(processes)


def test_processes_end_with_the_one_that_asked(script: subprocess.Popen[str]) -> None:
    assert script.stdout is not None and script.stdout.readline() == "began\n"
    processes = list(map(int, script.stdout.readline().split()))
    script.kill()
    assert len(processes) == 2 and gone(processes)
    # Nobody holds its output any more, and the system's own keeper has cleaned up behind it.
    assert script.communicate(timeout=60)[0] == ""


@pytest.mark.parametrize(
    ("workers", "images", "device", "cores", "processes"),
    [
        (0, 10**6, "cpu", 16, 0), (0, 10**6, "cuda", 16, 15), (0, 10**6, "cuda", 64, 16),
        (0, 10**6, "cuda", 2, 0), (0, 99_999, "cuda", 16, 0), (1, 10**6, "cuda", 16, 0),
        (8, 10**6, "cpu", 16, 8), (8, 10**6, "cuda", 4, 4), (8, 99_999, "cuda", 16, 0),
    ],
)  # fmt: skip
def test_how_many_processes(
    monkeypatch: pytest.MonkeyPatch, workers: int, images: int, device: str, cores: int, processes: int
) -> None:
    monkeypatch.setattr(readers, "count_cores", lambda: cores)
    assert reading_processes(workers, images, torch.device(device)) == processes
    monkeypatch.delattr(os, "memfd_create")
    assert reading_processes(workers, images, torch.device(device)) == 0


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for ranks, cores in [("", 12), ("0", 12), ("5", 2), ("99", 1)]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert count_cores() == cores


class Runtime:
    """CUDA's, as far as it pins memory."""

    def __init__(self, code: int) -> None:
        self.code, self.pinned = code, dict[int, int]()

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:
        self.pinned[start] = size
        return self.code

    def cudaHostUnregister(self, start: int) -> None:
        del self.pinned[start]


def test_memory_is_pinned_for_cuda_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    reader = Readers(slow, processes=2, max_result_bytes=10_000, device=torch.device("cuda"))
    assert list(runtime.pinned.values()) == [7 * 3 * 4096]
    del reader
    assert not runtime.pinned
    runtime.code = 2
    with pytest.raises(SpherecfError, match=r"cannot pin 0 MiB for reading \(error 2\)"):
        Readers(slow, processes=2, max_result_bytes=10_000, device=torch.device("cuda"))
