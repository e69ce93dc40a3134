"""Where the work is done: one thread looks at photos, a batch at a time, another asks the gallery."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fastapi import HTTPException

from spherecf.serve.access import Limits
from spherecf.serve.upload import Upload

_BATCH = 32  # photos that wait are looked at together, as far as this


@runtime_checkable
class Assessor(Protocol):
    """What the service asks of a `spherecf.photos.FaceAssessor`."""

    model: Any

    def stream(self, photos: Iterable[Any]) -> Iterator[Any]:
        """An `AssessedPhoto` for each (name, bytes), in order."""
        ...


@dataclass
class _Job:
    photos: Sequence[Upload]
    done: "Future[list[Any]]" = field(default_factory=Future)


class Desk:
    """Photos and gallery behind two threads, so that the event loop is never held up.

    The recogniser is used by one thread only. Photos that arrived while it was busy are one batch for it,
    from however many callers. A caller who gave up is skipped.
    """

    def __init__(self, assessor: Assessor, gallery: Any, limits: Limits) -> None:
        self.assessor, self.gallery, self.limits = assessor, gallery, limits
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._clerk = ThreadPoolExecutor(1, "gallery")
        self._thread = threading.Thread(target=self._work, name="photos", daemon=True)

    def start(self) -> None:
        """Begin to work; once."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what has begun, then end both threads."""
        self._jobs.put(None)
        self._thread.join()
        self._clerk.shutdown()

    async def assess(self, photos: Sequence[Upload]) -> list[Any]:
        """An `AssessedPhoto` for each.

        Raises:
            HTTPException: 503, it took too long.
        """
        job = _Job(photos)
        self._jobs.put(job)
        found: list[Any] = await self._in_time(asyncio.wrap_future(job.done))
        return found

    async def ask(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function of the gallery answers; one question at a time.

        Raises:
            HTTPException: 503, it took too long.
        """
        asked = self._clerk.submit(work, *arguments, **options)
        return await self._in_time(asyncio.wrap_future(asked))

    async def _in_time(self, answer: "asyncio.Future[Any]") -> Any:
        try:
            return await asyncio.wait_for(answer, self.limits.work_seconds)
        except TimeoutError as error:
            late = f"No answer within {self.limits.work_seconds:g} s: too much to do. Try again later."
            raise HTTPException(503, late, {"Retry-After": "10"}) from error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while sum(len(one.photos) for one in batch) < _BATCH:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._jobs.put(None)
                    break
                batch.append(more)
            self._assess([one for one in batch if one.done.set_running_or_notify_cancel()])

    def _assess(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            found = self.assessor.stream((photo.name, photo.content) for job in jobs for photo in job.photos)
            answers = list(found)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
            for job in jobs if len(jobs) > 1 else []:  # whoever caused it shall not fail the others
                self._assess([job])
            return
        for job in jobs:
            job.done.set_result(answers[: len(job.photos)])
            del answers[: len(job.photos)]
