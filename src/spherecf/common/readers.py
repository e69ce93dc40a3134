"""Results in order, ahead of who asks: by threads of this process, or by processes with shared memory.

Threads start at once but share the interpreter: from four on they decode no faster, and take the time of the
training loop. Processes cost a second to start. `Readers` hides which of the two it is.
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
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, get_context, parent_process, reduction
from types import ModuleType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from spherecf.common.progress import console, in_order
from spherecf.errors import SpherecfError

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE = 100_000
"""Images to read from which on processes pay: 15 seconds of one core, against one or two to start them."""

_MOST = 16  # processes that are started unasked: 90,000 crops a second, more than any GPU takes
_THREADS = 4  # decoding threads beyond which they wait for each other
_AHEAD = 2  # results of each process that may wait
_KEPT = 3  # results that a consumer may keep while the next ones come: in use, being copied, just given
_ALIGNED = 64  # bytes: a cache line


def count_cores() -> int:
    """Processors that this process may use; its share of them where a launcher started several ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return max(1, cores // (int(ranks) if ranks.isdecimal() and int(ranks) else 1))


def reading_processes(workers: int, images: int, device: torch.device) -> int:
    """How many processes shall read, 0 for threads of this one.

    Threads where there is too little to read (`WORTHWHILE`) or ``workers`` is 1, and on systems other than
    Linux. With ``workers`` 0 processes are used for a GPU only, one for each processor but the first: on the
    CPU the network needs all of them, and its steps are so long that reading does not count.

    Args:
        workers: as asked for; 0 if nobody did.
        images: to be read in all.
        device: of the network that they are read for.

    Example:
        >>> cpu = torch.device("cpu")
        >>> [reading_processes(workers, 10**6, cpu) for workers in (0, 1)], reading_processes(8, 1000, cpu)
        ([0, 0], 0)
    """
    if workers == 1 or images < WORTHWHILE or not hasattr(os, "memfd_create"):
        return 0
    if workers:
        return min(workers, count_cores())  # more would only wait for a processor
    return 0 if device.type == "cpu" or count_cores() < 3 else min(_MOST, count_cores() - 1)


class _Memory:
    """Memory that processes share. It has no name: it is gone with the last of them, however that ends."""

    def __init__(self, size: int, file: int | None = None) -> None:
        self._file = os.memfd_create("spherecf") if file is None else file
        if file is None:
            os.ftruncate(self._file, size)  # pages are taken as they are written, not now
        self.size, self.map = size, mmap.mmap(self._file, size)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Callable[..., "_Memory"], tuple[int, Any]]:
        return _attach, (self.size, reduction.DupFd(self._file))


def _attach(size: int, file: Any) -> _Memory:
    return _Memory(size, file.detach())


class _Arena:
    """Where a process puts the arrays of one result."""

    def __init__(self, space: NDArray[np.uint8]) -> None:
        self._space, self._used = space, 0
        self._start = space.ctypes.data

    def take(self, size: int) -> NDArray[np.uint8] | None:
        """So many bytes, if they are there."""
        begin, end = self._used, self._used + size
        if end > len(self._space):
            return None
        self._used = -(-end // _ALIGNED) * _ALIGNED
        return self._space[begin:end]

    def place(self, buffer: pickle.PickleBuffer) -> "tuple[int, int] | bytearray":
        """(offset, size) of a buffer, copied here if it is elsewhere; its bytes if it is too large."""
        content = np.asarray(buffer.raw())
        begin = content.ctypes.data - self._start
        if not (len(content) and 0 <= begin <= len(self._space) - len(content)):
            space = self.take(len(content))
            if space is None:
                return _bytes(buffer)
            space[:] = content
            begin = space.ctypes.data - self._start
        return begin, len(content)


_arena: _Arena | None = None  # of the result that this process makes, if it is one that reads


def empty(shape: Sequence[int], dtype: Any = np.uint8) -> NDArray[Any]:
    """As `np.empty`; in a process of `Readers` in the memory that the result is handed over in.

    Example:
        >>> empty((2, 3)).shape
        (2, 3)
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    space = None if _arena is None else _arena.take(size)
    return np.empty(shape, dtype) if space is None else space.view(dtype).reshape(shape)


class _Failure:
    """An exception on its way to the process that asked."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, SpherecfError):  # a bug, which is looked for by its traceback
            error.add_note("In a reading process:\n" + traceback.format_exc())
        try:
            whole = str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - made here
        except Exception:
            whole = False
        kind = SpherecfError if isinstance(error, SpherecfError) else RuntimeError
        self.error = error if whole else kind("".join(traceback.format_exception_only(error)).strip())


class _Work(Dataset[Any]):
    """What a process does, for `DataLoader`: (slot, item) to a result whose arrays are in that slot."""

    def __init__(self, function: Callable[[Any], Any], slots: _Memory, slot_size: int) -> None:
        buffers: list[pickle.PickleBuffer] = []
        with _no_main():  # which a process cannot import: what is defined there is not found
            head = pickle.dumps(function, 5, buffer_callback=buffers.append)
        # The arrays of a source (offsets, labels, names) are in memory once for all processes.
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        ends = np.cumsum([-(-len(part) // _ALIGNED) * _ALIGNED for part in parts]).tolist()
        self._places = [(end, len(part)) for end, part in zip([0, *ends], parts)]
        self._state = _Memory(ends[-1])
        for (begin, size), part in zip(self._places, parts):
            self._state.map[begin : begin + size] = part
        self._slots, self._slot_size = slots, slot_size
        self._function: Callable[[Any], Any] | None = None

    def __getitem__(self, wanted: tuple[int | None, Any]) -> Any:
        global _arena
        slot, item = wanted
        try:
            if self._function is None:
                whole = memoryview(self._state.map).toreadonly()
                head, *buffers = (whole[begin : begin + size] for begin, size in self._places)
                self._function = pickle.loads(head, buffers=buffers)  # noqa: S301 - by who started this
            if slot is not None:
                begin = slot * self._slot_size
                _arena = _Arena(np.frombuffer(self._slots.map, np.uint8, self._slot_size, begin))
            found: list[pickle.PickleBuffer] = []
            packed = pickle.dumps(self._function(item), 5, buffer_callback=found.append)
            place = _arena.place if _arena else _bytes
            return slot, packed, [place(buffer) for buffer in found]
        except Exception as error:
            return slot, _Failure(error), []
        finally:
            _arena = None


def _bytes(buffer: pickle.PickleBuffer) -> bytearray:
    return bytearray(buffer.raw())  # unlike bytes, an array over them can be written


class _Items(Sampler[Any]):
    """The items of the present pass, each with the slot that its result shall go to."""

    def __init__(self, free: list[int]) -> None:
        self.free = free
        self.items: Iterator[Any] = iter(())
        self.given: set[int] = set()  # slots whose results have not come yet

    def __iter__(self) -> Iterator[tuple[int | None, Any]]:
        self.free += self.given  # of a pass that was left early; the processes have dropped it by now
        self.given.clear()
        for item in self.items:
            slot = self.free.pop() if self.free else None  # None: the consumer keeps many results
            if slot is not None:
                self.given.add(slot)
            yield slot, item


class Readers(Generic[Item, Result]):
    """``function(item)`` of every item, in order and ahead of who asks; kept from one pass to the next.

    Processes are started by the first pass, from a server that has neither threads nor CUDA, and not from
    this process. They get the function once, pickled; its large arrays, and those of the results, are in
    shared memory, which with a CUDA device is pinned, and used again when the consumer lets a result go. A
    function that cannot be pickled is run by threads, which is said.

    Args:
        function: of one item. What it raises of `SpherecfError` comes out where its result would have.
        threads: 0 for one per processor, at most 4; where there are no processes.
        processes: as `reading_processes` says; 0 for threads.
        largest: bytes of the arrays in the largest result; larger ones arrive, but more slowly.
        device: pin the memory for it.
        name: of the threads, and in messages.

    Raises:
        SpherecfError: a process was killed, or memory cannot be pinned.

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
        largest: int = 0,
        device: torch.device | None = None,
        name: str = "read",
    ) -> None:
        self._function, self._name, self._pass = function, name, 0
        self._threads = threads or min(_THREADS, os.cpu_count() or 1)
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None
        if not processes:
            return
        self._size = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        count = processes * _AHEAD + _KEPT
        self._slots = _Memory(max(1, count * self._size))
        try:
            work = _Work(function, self._slots, self._size)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            console.print(
                f"{name}: by threads, as it cannot be sent to processes ({error})",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
            return
        if device is not None and device.type == "cuda":
            _pin(self._slots)
        self._items = _Items(list(range(count)) if self._size else [])
        self._loader = DataLoader(
            work, None, sampler=self._items, num_workers=processes, collate_fn=_as_it_is,
            worker_init_fn=_begin, multiprocessing_context="forkserver", prefetch_factor=_AHEAD,
            persistent_workers=True, generator=torch.Generator(),  # or it would draw from torch's own
        )  # fmt: skip

    @property
    def processes(self) -> int:
        """How many processes read; 0 if threads do."""
        return 0 if self._loader is None else self._loader.num_workers

    @property
    def pids(self) -> list[int]:
        """Of the processes that run; none before the first pass."""
        return [] if self._iterator is None else [worker.pid for worker in self._iterator._workers]

    def __call__(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """One pass. The next one ends it; close it (`contextlib.closing`) to stop early."""
        if self._loader is None:
            return in_order(self._function, items, self._threads, self._name)
        return self._read(items)

    def _read(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        assert self._loader is not None
        self._pass += 1
        own, self._items.items = self._pass, iter(items)
        self._run(self._start)
        while (found := self._run(lambda: next(self._iterator, None))) is not None:
            yield self._unpack(*found)
            if own != self._pass:
                raise RuntimeError("these readers were asked for another pass before this one was done")

    def close(self) -> None:
        """End the processes; a later pass would start them again."""
        self._pass += 1
        iterator, self._iterator = self._iterator, None
        if iterator is None or self._loader is None:
            return
        self._loader._iterator = None
        iterator._shutdown_workers()  # which it would do itself when the last reference to it is gone
        for worker in iterator._workers:
            if worker.is_alive():  # hung, say by a network disk
                worker.kill()

    def _start(self) -> None:
        assert self._loader is not None
        if self._iterator is None:
            with _no_main(), _no_interrupt():
                function = getattr(self._function, "func", self._function)  # of a partial
                module = getattr(function, "__module__", __name__)
                # Imported once, by the server; it stays when it runs already.
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
                "for lack of memory; start again with fewer (engine.workers), or none (1)"
            ) from error

    def _unpack(self, slot: int | None, head: Any, places: list[Any]) -> Any:
        if slot is None:
            arrays = places
        else:
            # Whoever keeps an array of the result, or a part of one, keeps `whole`; then the slot is free.
            whole = np.frombuffer(self._slots.map, np.uint8, self._size, slot * self._size)
            self._items.given.discard(slot)
            weakref.finalize(whole, self._items.free.append, slot).atexit = False
            arrays = [p if isinstance(p, bytearray) else whole[p[0] : p[0] + p[1]] for p in places]
        if isinstance(head, _Failure):
            raise head.error
        return pickle.loads(head, buffers=arrays)  # noqa: S301 - by a process started here


def _as_it_is(result: Any) -> Any:
    return result


def _begin(worker: int) -> None:
    """In a new process: Ctrl-C and SIGTERM are the asking process's business; when it is gone, end."""
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
def _no_main() -> Iterator[None]:
    """Processes import the script that was started, and run it if it has no guard against that; not these."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes that begin here never see Ctrl-C, which the terminal sends to all; here it comes later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pin(memory: _Memory) -> None:
    """Let a GPU copy from it without the processor."""
    start = np.frombuffer(memory.map, np.uint8).ctypes.data
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(start, memory.size, 0))
    if code:
        raise SpherecfError(
            f"CUDA cannot pin {memory.size / 2**20:.0f} MiB for reading (error {code}); "
            "ask for fewer processes (engine.workers)"
        )
    weakref.finalize(memory, partial(runtime.cudaHostUnregister, start))
