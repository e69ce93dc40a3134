"""Readers give the same results in the same order for any number of processes, and clean up completely."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
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
    """A result with a large array allocated by `empty`, a small array, an integer and a string."""
    array = empty((count, ROW))
    array[:] = (offset[:ROW] + count) % 251
    return os.getpid(), array[: max(0, count - 1)], np.arange(count), f"{count} rows"


class Unpicklable(Exception):
    """An exception that cannot be unpickled, since its constructor needs two arguments."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


ERRORS: dict[int, Exception] = {
    1: InputError("one"),
    2: ImageError("lfw:anna", "is grey.", "Copy it again."),
    3: KeyError("three"),
    4: Unpicklable(4, 4),
    5: FileFormatError("some.rec", "is short."),
}


def fail_on_errors(item: int) -> int:
    if item in ERRORS:
        raise ERRORS[item]
    return item


def slow(item: int) -> int:
    time.sleep(0.02)
    return item


def threads_of(item: int) -> tuple[int, int]:
    import cv2

    return torch.get_num_threads(), cv2.getNumThreads()


def is_expected(result: Any, count: int) -> bool:
    _, array, small, text = result
    expected = (np.arange(ROW) + count) % 251
    return bool(
        (array == expected).all()
        and len(array) == max(0, count - 1)
        and (small == np.arange(count)).all()
        and text == f"{count} rows"
    )


@pytest.fixture
def make_readers() -> Iterator[Callable[..., Readers[Any, Any]]]:
    started: list[Readers[Any, Any]] = []

    def start(function: Callable[[Any], Any], processes: int = 2, **options: Any) -> Readers[Any, Any]:
        started.append(Readers(function, processes=processes, **options))
        return started[-1]

    yield start
    for reader in started:
        reader.close()


def have_ended(processes: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in processes)


# 0 rows: all arrays go through the pipe; 30: only the largest does; 50: all use shared memory.
@pytest.mark.parametrize("rows", [0, 30, 50])
def test_processes_give_ordered_results_in_every_pass(make_readers: Callable[..., Any], rows: int) -> None:
    function = partial(table, np.arange(100_000))
    counts = [3, 0, 45, 1, 17, 44, 2, 8, 9, 10]
    reader = make_readers(function, max_result_bytes=rows * (ROW + 8))
    state = torch.get_rng_state()
    for _ in range(2):
        results = []
        for result in reader(counts):
            result[1][:] += 0  # writable, as with threads
            results.append(result)
        assert len(results) == len(counts) and all(map(is_expected, results, counts))
        assert {result[0] for result in results} == set(reader.pids) and os.getpid() not in reader.pids
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(is_expected, Readers(function, threads=2)(counts), counts))


def test_shared_memory_is_reused_once_no_view_of_a_result_remains(make_readers: Callable[..., Any]) -> None:
    reader = make_readers(partial(table, np.arange(ROW)), max_result_bytes=20 * (ROW + 8))
    free, slots = reader._items.free, len(reader._items.free)
    results = list(reader([11] * 2 * slots))  # exceeds the memory: the rest uses the pipe
    assert not free and all(is_expected(result, 11) for result in results)
    part = results[0][1][2:5, ::7]
    del results
    assert len(free) == slots - 1
    tensor = torch.from_numpy(part)
    del part
    assert len(free) == slots - 1 and (tensor.numpy() == (np.arange(ROW)[::7] + 11) % 251).all()
    del tensor
    assert len(free) == slots


def test_an_abandoned_pass_is_discarded(make_readers: Callable[..., Any]) -> None:
    reader = make_readers(partial(table, np.arange(ROW)), max_result_bytes=20 * (ROW + 8))
    slots = len(reader._items.free)
    abandoned = reader([5] * 100)
    assert is_expected(next(abandoned), 5)
    next_pass = reader([7, 8])
    assert is_expected(next(next_pass), 7)
    with pytest.raises(RuntimeError, match="another pass"):
        next(abandoned)
    assert is_expected(next(next_pass), 8) and next(next_pass, None) is None
    next_pass.close()
    assert len(reader._items.free) == slots and not reader._items.pending


def test_items_are_consumed_lazily(make_readers: Callable[..., Any]) -> None:
    consumed = []

    def items() -> Iterator[int]:
        for item in range(10**9):
            consumed.append(item)
            yield item

    assert next(make_readers(fail_on_errors, 1)(item for item in items() if item not in ERRORS)) == 0
    assert len(consumed) <= 10


def test_errors_are_raised_at_the_position_of_their_result(make_readers: Callable[..., Any]) -> None:
    reader = make_readers(fail_on_errors)
    for item, error in ERRORS.items():
        results = reader([0, item, 6])
        assert next(results) == 0
        with pytest.raises(RuntimeError if isinstance(error, Unpicklable) else type(error)) as raised:
            next(results)
        assert str(error) in str(raised.value)
        if isinstance(error, FileFormatError):
            assert vars(raised.value) == vars(error)
        elif not isinstance(error, SpherecfError) and not isinstance(error, Unpicklable):
            assert "in fail_on_errors\n" in "".join(raised.value.__notes__)
    assert list(reader([6, 7])) == [6, 7]
    with pytest.raises(ZeroDivisionError):  # raised by the iterator of items
        list(reader(1 // item for item in (1, 0)))

    def interrupted() -> Iterator[int]:
        yield 6
        raise RuntimeError("not of the readers")

    with pytest.raises(RuntimeError, match=r"^not of the readers$"):
        list(reader(interrupted()))


def test_a_killed_process_gives_one_error_and_ends_the_others(make_readers: Callable[..., Any]) -> None:
    reader = make_readers(slow, name="decode")
    results = reader(range(10**6))
    next(results)
    processes = reader.pids
    os.kill(processes[0], signal.SIGKILL)
    message = rf"decode: 1 of 2 processes ended \(pid {processes[0]}\).*engine.workers"
    with pytest.raises(SpherecfError, match=message) as raised:
        list(results)
    assert "\n" not in str(raised.value) and have_ended(processes)
    assert next(reader([3])) == 3  # processes restart on the next request


def test_close_kills_processes_that_do_not_react(
    make_readers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # instead of 5 s
    reader = make_readers(slow)
    assert next(reader([1])) == 1
    processes = reader.pids
    os.kill(processes[0], signal.SIGSTOP)  # reacts to nothing but SIGKILL
    reader.close()
    assert have_ended(processes)


def test_close_ends_the_processes_and_deletion_frees_the_memory(make_readers: Callable[..., Any]) -> None:
    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "memfd:spherecf" in line}  # inodes

    existing = mapped()  # memory of other tests' readers
    reader = Readers(slow, processes=2, max_result_bytes=100)
    assert list(reader([1])) == [1] and mapped() - existing
    processes = reader.pids
    reader.close()
    assert have_ended(processes)
    del reader
    assert not mapped() - existing


def test_each_process_computes_with_one_thread(make_readers: Callable[..., Any]) -> None:
    assert list(make_readers(threads_of)([0])) == [(1, 1)]


def test_work_that_cannot_be_pickled_runs_in_threads_with_a_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
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
        # Ctrl-C reaches all processes: the readers ignore it, so that the parent decides how to end.
        reader.close()
        print("interrupted, then", *Readers(slow, processes=1)([7]), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script without a main guard, in its own process group as in a terminal."""
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


def test_ctrl_c_interrupts_only_the_parent_process(script: subprocess.Popen[str]) -> None:
    assert script.stdout is not None and script.stdout.readline() == "began\n"
    processes = list(map(int, script.stdout.readline().split()))
    os.killpg(script.pid, signal.SIGINT)
    output, errors = script.communicate(timeout=120)
    # "began" appears once: the reader processes have not run the script.
    assert (output, errors, script.returncode) == ("interrupted, then 7\n", "", 0) and len(processes) == 2
    assert have_ended(processes)


def test_reader_processes_end_with_their_parent(script: subprocess.Popen[str]) -> None:
    assert script.stdout is not None and script.stdout.readline() == "began\n"
    processes = list(map(int, script.stdout.readline().split()))
    script.kill()
    assert len(processes) == 2 and have_ended(processes)
    # No process holds its output open any more, and the resource tracker has cleaned up.
    assert script.communicate(timeout=60)[0] == ""


@pytest.mark.parametrize(
    ("workers", "images", "device", "cores", "processes"),
    [
        (0, 10**6, "cpu", 16, 0), (0, 10**6, "cuda", 16, 15), (0, 10**6, "cuda", 64, 16),
        (0, 10**6, "cuda", 2, 0), (0, 99_999, "cuda", 16, 0), (1, 10**6, "cuda", 16, 0),
        (8, 10**6, "cpu", 16, 8), (8, 10**6, "cuda", 4, 4), (8, 99_999, "cuda", 16, 0),
    ],
)  # fmt: skip
def test_number_of_processes_depends_on_device_images_and_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int, images: int, device: str, cores: int, processes: int
) -> None:
    monkeypatch.setattr(readers, "count_cores", lambda: cores)
    assert reading_processes(workers, images, torch.device(device)) == processes
    monkeypatch.delattr(os, "memfd_create")
    assert reading_processes(workers, images, torch.device(device)) == 0


def test_ranks_share_the_cores_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for ranks, cores in [("", 12), ("0", 12), ("5", 2), ("99", 1)]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert count_cores() == cores


class Runtime:
    """The part of the CUDA runtime that pins memory."""

    def __init__(self, code: int) -> None:
        self.code, self.pinned = code, dict[int, int]()

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:
        self.pinned[start] = size
        return self.code

    def cudaHostUnregister(self, start: int) -> None:
        del self.pinned[start]


def test_memory_is_pinned_for_cuda_and_released(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    reader = Readers(slow, processes=2, max_result_bytes=10_000, device=torch.device("cuda"))
    assert list(runtime.pinned.values()) == [7 * 3 * 4096]
    del reader
    assert not runtime.pinned
    assert not capsys.readouterr().err
    # Without pinned memory it works, too. torch raises the error again after its next kernel, once.
    runtime.code, kernels = 2, []

    def zeros(count: int, device: torch.device) -> None:
        kernels.append(device)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", zeros)
    reader = Readers(slow, processes=2, max_result_bytes=10_000, device=torch.device("cuda"))
    assert "cannot pin 0 MiB (error 2)" in capsys.readouterr().err and len(kernels) == 1
    with closing(reader):
        assert list(reader([3])) == [3]
