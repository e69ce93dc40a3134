"""Compute results in order, ahead of the consumer, by threads or by processes with shared memory.

Threads start at once but share the interpreter: more than four decode no faster, and they slow down the
training loop. Processes take a second to start. `Readers` has the same interface for both.
"""

import mmap
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver, get_context, parent_process, reduction
from types import ModuleType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from spherecf.common.progress import in_order, print_text
from spherecf.errors import SpherecfError

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE = 100_000
"""Number of images from which processes pay off: 15 seconds on one core, against 1 or 2 to start them."""

_MAX_PROCESSES = 16  # by default: 90,000 crops a second, more than any GPU needs
_MAX_THREADS = 4  # by default: more decoding threads wait for each other
_AHEAD = 2  # results queued per process
_KEPT = 3  # results that a consumer may hold at the same time: in use, being copied, just received
_ALIGNMENT = 64  # bytes: a cache line


def count_cores() -> int:
    """Processor cores that this process may use; its share of them if a launcher started several ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return max(1, cores // (int(ranks) if ranks.isdecimal() and int(ranks) else 1))


def reading_processes(workers: int, images: int, device: torch.device) -> int:
    """Choose the number of reading processes; 0 means threads of this process.

    Threads are used for fewer images than `WORTHWHILE`, if ``workers`` is 1, and on systems other than Linux.
    With ``workers`` 0 (automatic), processes are used for a GPU only, one per core except one: on a CPU the
    network needs all cores, and its steps take so long that the time for reading is negligible.

    Args:
        workers: requested number; 0 for automatic.
        images: total number of images to read.
        device: device of the network that the images are read for.

    Example:
        >>> cpu = torch.device("cpu")
        >>> [reading_processes(workers, 10**6, cpu) for workers in (0, 1)], reading_processes(8, 1000, cpu)
        ([0, 0], 0)
    """
    if workers == 1 or images < WORTHWHILE or not hasattr(os, "memfd_create"):
        return 0
    if workers:
        return min(workers, count_cores())  # more would only wait for a core
    return 0 if device.type == "cpu" or count_cores() < 3 else min(_MAX_PROCESSES, count_cores() - 1)


class _Memory:
    """Anonymous memory shared by processes; it is freed when the last of them ends, however it ends."""

    def __init__(self, size: int, file: int | None = None) -> None:
        self._file = os.memfd_create("spherecf") if file is None else file
        if file is None:
            os.ftruncate(self._file, size)  # pages are allocated when they are first written
        self.size, self.map = size, mmap.mmap(self._file, size)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Callable[..., "_Memory"], tuple[int, Any]]:
        return _attach, (self.size, reduction.DupFd(self._file))


def _attach(size: int, file: Any) -> _Memory:
    return _Memory(size, file.detach())


class _Arena:
    """The slot of shared memory into which a process writes the arrays of one result."""

    def __init__(self, space: NDArray[np.uint8]) -> None:
        self._space, self._used = space, 0
        self._start = space.ctypes.data

    def allocate(self, size: int) -> NDArray[np.uint8] | None:
        """Allocate ``size`` bytes; None if there is not enough space."""
        begin, end = self._used, self._used + size
        if end > len(self._space):
            return None
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return self._space[begin:end]

    def store(self, buffer: pickle.PickleBuffer) -> "tuple[int, int] | bytearray":
        """(offset, size) of a buffer, copied into the slot if needed; its bytes if it does not fit."""
        content = np.asarray(buffer.raw())
        begin = content.ctypes.data - self._start
        if not (len(content) and 0 <= begin <= len(self._space) - len(content)):
            space = self.allocate(len(content))
            if space is None:
                return _bytes(buffer)
            space[:] = content
            begin = space.ctypes.data - self._start
        return begin, len(content)


_arena: _Arena | None = None  # slot of the result being computed, in a reading process


def empty(shape: Sequence[int], dtype: Any = np.uint8) -> NDArray[Any]:
    """Like `np.empty`, but in a process of `Readers` allocated in the shared memory of its result.

    Example:
        >>> empty((2, 3)).shape
        (2, 3)
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    space = None if _arena is None else _arena.allocate(size)
    return np.empty(shape, dtype) if space is None else space.view(dtype).reshape(shape)


class _Failure:
    """An exception to be raised in the consumer's process."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, SpherecfError):  # a bug: keep its traceback
            error.add_note("In a reading process:\n" + traceback.format_exc())
        try:
            picklable = str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - made here
        except Exception:
            picklable = False
        kind = SpherecfError if isinstance(error, SpherecfError) else RuntimeError
        self.error = error if picklable else kind("".join(traceback.format_exception_only(error)).strip())


class _Work(Dataset[Any]):
    """The work of a process, for `DataLoader`: maps (slot, item) to a result with its arrays in that slot."""

    def __init__(self, function: Callable[[Any], Any], slots: _Memory, slot_size: int) -> None:
        buffers: list[pickle.PickleBuffer] = []
        with _hidden_main():  # a function in __main__ must fail to pickle: processes cannot import it
            head = pickle.dumps(function, 5, buffer_callback=buffers.append)
        # The arrays of a source (offsets, labels, names) are in memory only once, shared by all processes.
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        ends = np.cumsum([-(-len(part) // _ALIGNMENT) * _ALIGNMENT for part in parts]).tolist()
        self._places = [(end, len(part)) for end, part in zip([0, *ends], parts)]
        self._state = _Memory(ends[-1])
        for (begin, size), part in zip(self._places, parts):
            self._state.map[begin : begin + size] = part
        self._slots, self._slot_size = slots, slot_size
        self._function: Callable[[Any], Any] | None = None

    def __getitem__(self, request: tuple[int | None, Any]) -> Any:
        global _arena
        slot, item = request
        try:
            if self._function is None:
                whole = memoryview(self._state.map).toreadonly()
                head, *buffers = (whole[begin : begin + size] for begin, size in self._places)
                self._function = pickle.loads(head, buffers=buffers)  # noqa: S301 - from the parent process
            if slot is not None:
                begin = slot * self._slot_size
                _arena = _Arena(np.frombuffer(self._slots.map, np.uint8, self._slot_size, begin))
            arrays: list[pickle.PickleBuffer] = []
            packed = pickle.dumps(self._function(item), 5, buffer_callback=arrays.append)
            store = _arena.store if _arena else _bytes
            return slot, packed, [store(buffer) for buffer in arrays]
        except Exception as error:
            return slot, _Failure(error), []
        finally:
            _arena = None


def _bytes(buffer: pickle.PickleBuffer) -> bytearray:
    return bytearray(buffer.raw())  # unlike bytes, these give a writable array


class _Items(Sampler[Any]):
    """The items of the current pass, each with the slot for its result."""

    def __init__(self, free: list[int]) -> None:
        self.free = free
        self.items: Iterator[Any] = iter(())
        self.pending: set[int] = set()  # slots whose results have not been received yet

    def __iter__(self) -> Iterator[tuple[int | None, Any]]:
        self.free += self.pending  # from a pass that was stopped early; the processes have abandoned them
        self.pending.clear()
        for item in self.items:
            slot = self.free.pop() if self.free else None  # None if the consumer holds many results
            if slot is not None:
                self.pending.add(slot)
            yield slot, item


class Readers(Generic[Item, Result]):
    """Compute ``function(item)`` for every item, in order and ahead of the consumer, in one or more passes.

    The first pass starts the processes, which later passes reuse. They are forked from a server process that
    has neither threads nor CUDA, not from this process. They receive the function once, pickled. Its large
    arrays and those of the results are in shared memory, which is pinned for a CUDA device, and reused once
    the consumer has released a result. A function that cannot be pickled is run by threads, with a message.

    Args:
        function: called with one item. An exception that it raises is raised in place of its result.
        threads: number of threads if no processes are used; 0 for one per processor, up to 4.
        processes: number of processes, see `reading_processes`; 0 for threads.
        max_result_bytes: bytes of the arrays in the largest result; larger results work, but are slower.
        device: device for which the memory is pinned.
        name: name of the threads, also used in messages.

    Raises:
        SpherecfError: a process was killed.

    Example:
        >>> readers = Readers(str.upper, threads=2)
        >>> list(readers("abc")), list(readers("de"))
        (['A', 'B', 'C'], ['D', 'E'])
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        *,
        threads: int = 0,
        processes: int = 0,
        max_result_bytes: int = 0,
        device: torch.device | None = None,
        name: str = "read",
    ) -> None:
        self._function, self._name, self._pass = function, name, 0
        self._threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None
        if not processes:
            return
        self._size = -(-max_result_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        count = processes * _AHEAD + _KEPT
        self._slots = _Memory(max(1, count * self._size))
        try:
            work = _Work(function, self._slots, self._size)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            print_text(f"{name}: using threads, because the work cannot be sent to processes ({error})")
            return
        if device is not None and device.type == "cuda":
            _pin(self._slots, device, name)
        self._items = _Items(list(range(count)) if self._size else [])
        self._loader = DataLoader(
            work, None, sampler=self._items, num_workers=processes, collate_fn=_identity,
            worker_init_fn=_initialise_worker, multiprocessing_context="forkserver", prefetch_factor=_AHEAD,
            persistent_workers=True, generator=torch.Generator(),  # not torch's global one
        )  # fmt: skip

    @property
    def processes(self) -> int:
        """Number of reading processes; 0 if threads are used."""
        return 0 if self._loader is None else self._loader.num_workers

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes; empty before the first pass."""
        return [] if self._iterator is None else [worker.pid for worker in self._iterator._workers]

    def __call__(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """Start a pass, which ends any earlier one; close it (`contextlib.closing`) to stop early."""
        if self._loader is None:
            return in_order(self._function, items, self._threads, self._name)
        return self._read(items)

    def _read(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        assert self._loader is not None
        self._pass += 1
        pass_number, self._items.items = self._pass, iter(items)
        self._run(self._start)
        while (output := self._run(lambda: next(self._iterator, None))) is not None:
            yield self._unpack(*output)
            if pass_number != self._pass:
                raise RuntimeError("another pass of these readers was started before this one had finished")

    def close(self) -> None:
        """Stop the processes; a later pass would start them again."""
        self._pass += 1
        iterator, self._iterator = self._iterator, None
        if iterator is None or self._loader is None:
            return
        self._loader._iterator = None
        iterator._shutdown_workers()  # at once, not when its last reference is gone
        for worker in iterator._workers:
            if worker.is_alive():  # hanging, e.g. on a network drive
                worker.kill()

    def _start(self) -> None:
        assert self._loader is not None
        if self._iterator is None:
            with _hidden_main(), _blocked_interrupt():
                function = getattr(self._function, "func", self._function)  # unwrap a partial
                module = getattr(function, "__module__", __name__)
                # The server imports these once; if it is running already, the call has no effect.
                get_context("forkserver").set_forkserver_preload(["torch.utils.data", __name__, module])
                forkserver.ensure_running()
                self._iterator = iter(self._loader)
        else:
            self._iterator = iter(self._loader)

    def _run(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except RuntimeError as error:
            workers = [] if self._iterator is None else self._iterator._workers
            dead = [worker for worker in workers if not worker.is_alive()]
            if not dead:
                raise
            pids = ", ".join(str(worker.pid) for worker in dead)
            count = self.processes
            self.close()
            raise SpherecfError(
                f"{self._name}: {len(dead)} of {count} processes ended (pid {pids}), killed from outside or "
                "for lack of memory; run again with fewer processes (engine.workers), or 1 for none"
            ) from error

    def _unpack(self, slot: int | None, head: Any, places: list[Any]) -> Any:
        if slot is None:
            arrays = places
        else:
            # All arrays of the result, and views of them, refer to `whole`: the slot is free once it is gone.
            whole = np.frombuffer(self._slots.map, np.uint8, self._size, slot * self._size)
            self._items.pending.discard(slot)
            weakref.finalize(whole, self._items.free.append, slot).atexit = False
            arrays = [p if isinstance(p, bytearray) else whole[p[0] : p[0] + p[1]] for p in places]
        if isinstance(head, _Failure):
            raise head.error
        return pickle.loads(head, buffers=arrays)  # noqa: S301 - from a child process


def _identity(result: Any) -> Any:
    return result


def _initialise_worker(worker: int) -> None:
    """Set up a new process: leave Ctrl-C and SIGTERM to the parent, and end when the parent has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the main script from new processes, which would import it, and run it if it has no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Block Ctrl-C in processes started in the block; in this process it is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pin(memory: _Memory, device: torch.device, name: str) -> None:
    """Pin the memory, so that a GPU can copy from it without the CPU; if that is impossible, print why."""
    start = np.frombuffer(memory.map, np.uint8).ctypes.data
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(start, memory.size, 0))
    if not code:
        weakref.finalize(memory, partial(runtime.cudaHostUnregister, start))
        return
    print_text(
        f"{name}: CUDA cannot pin {memory.size / 2**20:.0f} MiB (error {code}), so copies to the GPU keep "
        "the CPU waiting; fewer processes (engine.workers) need less"
    )
    with suppress(RuntimeError):  # CUDA reports the error once more, after the next kernel
        torch.zeros(1, device=device)
