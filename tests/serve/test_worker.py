"""The worker threads: batches, failures, and callers that have given up."""

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fastapi import HTTPException

from spherecf.serve import Limits
from spherecf.serve.upload import Upload
from spherecf.serve.worker import Worker


class Echo:
    """Returns the name of each photo and records the batches; waits for "wait" and fails for "bad"."""

    model: Any = None

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.release = threading.Event()

    def stream(self, photos: Iterable[Any]) -> Iterator[Any]:
        names = [name for name, _ in photos]
        self.batches.append(names)
        self.threads.add(threading.get_ident())
        for name in names:
            if name == "wait":
                self.release.wait(10)
            if name == "bad":
                raise ValueError("bad photo")
            yield name


def uploads(*names: str) -> list[Upload]:
    return [Upload(name, b"") for name in names]


def run(work: Any, limits: Limits | None = None, gallery: Any = None) -> tuple[Any, Echo]:
    echo = Echo()

    async def main() -> Any:
        worker = Worker(echo, gallery, limits or Limits())
        worker.start()
        try:
            return await work(worker, echo)
        finally:
            echo.release.set()
            await asyncio.to_thread(worker.stop)

    return asyncio.run(main()), echo


def test_waiting_requests_share_batches() -> None:
    async def work(worker: Worker, echo: Echo) -> Any:
        first = asyncio.create_task(worker.assess(uploads("wait")))
        while not echo.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(worker.assess(uploads(f"{i}a", f"{i}b"))) for i in range(20)]
        await asyncio.sleep(0.01)
        echo.release.set()
        return await asyncio.gather(first, *others)

    results, echo = run(work)
    assert results == [["wait"], *([f"{i}a", f"{i}b"] for i in range(20))]
    assert [len(batch) for batch in echo.batches] == [1, 32, 8]
    assert len(echo.threads) == 1 and threading.get_ident() not in echo.threads


def test_waiting_requests_are_finished_at_the_end() -> None:
    async def work(worker: Worker, echo: Echo) -> Any:
        first = asyncio.create_task(worker.assess(uploads("wait")))
        while not echo.batches:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(worker.assess(uploads("a")))
        await asyncio.sleep(0.01)
        worker._jobs.put(None)  # as `stop` does, which would wait for the thread
        echo.release.set()
        return await asyncio.gather(first, second)

    results, echo = run(work)
    assert results == [["wait"], ["a"]] == echo.batches


def test_one_bad_request_fails_alone() -> None:
    async def work(worker: Worker, echo: Echo) -> Any:
        tasks = [asyncio.create_task(worker.assess(uploads(name))) for name in ("wait", "x", "bad", "y")]
        await asyncio.sleep(0.01)
        echo.release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    (first, x, bad, y), _ = run(work)
    assert (first, x, y) == (["wait"], ["x"], ["y"]) and isinstance(bad, ValueError)


def test_slow_requests_time_out_and_abandoned_ones_are_skipped() -> None:
    async def work(worker: Worker, echo: Echo) -> Any:
        with pytest.raises(HTTPException) as error:
            await worker.assess(uploads("wait"))
        assert error.value.status_code == 503 and error.value.headers == {"Retry-After": "10"}
        with pytest.raises(HTTPException):
            await worker.assess(uploads("given up"))
        echo.release.set()
        return await worker.assess(uploads("next"))

    result, echo = run(work, Limits(work_seconds=0.05))
    assert result == ["next"] and ["given up"] not in echo.batches


def test_the_event_loop_runs_while_the_gallery_works() -> None:
    running: list[int] = []

    def slow(value: int) -> int:
        running.append(value)
        assert len(running) == 1  # one call at a time
        time.sleep(0.02)
        running.remove(value)
        return value * 2

    async def work(worker: Worker, echo: Echo) -> Any:
        tasks = [asyncio.create_task(worker.call_gallery(slow, i)) for i in range(4)]
        ticks = 0
        while not all(task.done() for task in tasks):
            ticks += 1
            await asyncio.sleep(0.001)
        return [task.result() for task in tasks], ticks

    (answers, ticks), _ = run(work)
    assert answers == [0, 2, 4, 6] and ticks > 10
