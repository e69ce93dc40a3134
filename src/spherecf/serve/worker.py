"""The threads that work: one assesses photos in batches, another queries the gallery."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fastapi import HTTPException

from spherecf.common.progress import isolate_failures
from spherecf.serve.access import Limits
from spherecf.serve.tickets import SeenPhoto, Tickets
from spherecf.serve.upload import Upload

_MAX_BATCH = 32  # waiting photos are assessed together up to this number


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


class Worker:
    """Photos and gallery behind two threads, so that the event loop is never blocked.

    The recogniser is used by one thread only. Photos that arrive while it is busy form its next batch,
    whichever requests they belong to. A cancelled request is skipped.
    """

    def __init__(self, assessor: Assessor, gallery: Any, limits: Limits) -> None:
        self.assessor, self.gallery, self.limits = assessor, gallery, limits
        self.tickets = Tickets()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gallery_executor = ThreadPoolExecutor(1, "gallery")
        self._thread = threading.Thread(target=self._work, name="photos", daemon=True)

    def start(self) -> None:
        """Start the thread of the photos; once."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests that have begun, then end both threads."""
        self._jobs.put(None)
        self._thread.join()
        self._gallery_executor.shutdown()

    async def assess(self, photos: Sequence[Upload]) -> list[Any]:
        """An `AssessedPhoto` for each.

        Raises:
            HTTPException: 503, it took too long.
        """
        job = _Job(photos)
        self._jobs.put(job)
        assessed: list[Any] = await self._in_time(asyncio.wrap_future(job.done))
        return assessed

    async def see(self, uploads: Sequence[Upload]) -> list[SeenPhoto]:
        """What a template needs of each photo, or of the one that its ticket stands for.

        Raises:
            HTTPException: 410, a ticket that is not of this service; 503, it took too long.
        """
        seen = [self.tickets.read(upload) for upload in uploads]
        fresh = [upload for upload, known in zip(uploads, seen) if known is None]
        found = iter(zip(fresh, await self.assess(fresh) if fresh else ()))
        return await asyncio.to_thread(lambda: [known or SeenPhoto.of(*next(found)) for known in seen])

    async def ask(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Result of a function of the gallery; one call at a time.

        Raises:
            HTTPException: 503, it took too long.
        """
        answer = self._gallery_executor.submit(work, *arguments, **options)
        return await self._in_time(asyncio.wrap_future(answer))

    async def _in_time(self, answer: "asyncio.Future[Any]") -> Any:
        try:
            return await asyncio.wait_for(answer, self.limits.work_seconds)
        except TimeoutError as error:
            late = f"No answer within {self.limits.work_seconds:g} s: too much to do. Try again later."
            raise HTTPException(503, late, {"Retry-After": "10"}) from error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while sum(len(waiting.photos) for waiting in batch) < _MAX_BATCH:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:  # the end: to be seen again after this batch
                    self._jobs.put(None)
                    break
                batch.append(more)
            self._assess([job for job in batch if job.done.set_running_or_notify_cancel()])

    def _assess(self, jobs: list[_Job]) -> None:
        # A failing request is found by retrying each alone: it must not fail those it was batched with.
        for which, answers in isolate_failures(self._stream, jobs, Exception):
            for job in jobs[which]:
                if isinstance(answers, Exception):
                    job.done.set_exception(answers)
                else:
                    job.done.set_result(answers[: len(job.photos)])
                    del answers[: len(job.photos)]

    def _stream(self, jobs: list[_Job]) -> list[Any]:
        photos = ((photo.name, photo.content) for job in jobs for photo in job.photos)
        return list(self.assessor.stream(photos))
