"""Worker threads of the service: one assesses photos in batches, the other accesses the gallery."""

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
from spherecf.serve.tickets import PhotoSummary, Tickets
from spherecf.serve.upload import Upload

_MAX_BATCH = 32  # maximum number of waiting photos to assess together


@runtime_checkable
class Assessor(Protocol):
    """The part of `spherecf.photos.FaceAssessor` that the service uses."""

    model: Any

    def stream(self, photos: Iterable[Any]) -> Iterator[Any]:
        """Yield an `AssessedPhoto` for each (name, bytes), in order."""
        ...


@dataclass
class _Job:
    photos: Sequence[Upload]
    result: "Future[list[Any]]" = field(default_factory=Future)


class Worker:
    """Runs the assessor and the gallery in two threads, which keeps the event loop free.

    Only one thread uses the recogniser. Photos that arrive while it is busy form the next batch, across
    requests. Cancelled requests are skipped.
    """

    def __init__(self, assessor: Assessor, gallery: Any, limits: Limits) -> None:
        self.assessor, self.gallery, self.limits = assessor, gallery, limits
        self.tickets = Tickets()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gallery_executor = ThreadPoolExecutor(1, "gallery")
        self._thread = threading.Thread(target=self._work, name="photos", daemon=True)

    def start(self) -> None:
        """Start the thread that assesses photos. May be called only once."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the pending requests, then end both threads."""
        self._jobs.put(None)
        self._thread.join()
        self._gallery_executor.shutdown()

    async def assess(self, photos: Sequence[Upload]) -> list[Any]:
        """Assess photos, and return an `AssessedPhoto` for each.

        Raises:
            HTTPException: 503, the time limit was exceeded.
        """
        job = _Job(photos)
        self._jobs.put(job)
        assessed: list[Any] = await self._wait(asyncio.wrap_future(job.result))
        return assessed

    async def summarise(self, uploads: Sequence[Upload]) -> list[PhotoSummary]:
        """Return the summaries that a template needs: read from tickets, or computed from photos.

        Raises:
            HTTPException: 410, a ticket was not issued by this service; 503, the time limit was exceeded.
        """
        from_tickets = [self.tickets.read(upload) for upload in uploads]
        photos = [upload for upload, summary in zip(uploads, from_tickets) if summary is None]
        assessed = iter(zip(photos, await self.assess(photos) if photos else ()))
        return await asyncio.to_thread(
            lambda: [summary or PhotoSummary.of(*next(assessed)) for summary in from_tickets]
        )

    async def call_gallery(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of the gallery in its thread, and return the result. Calls run one at a time.

        Raises:
            HTTPException: 503, the time limit was exceeded.
        """
        future = self._gallery_executor.submit(function, *arguments, **options)
        return await self._wait(asyncio.wrap_future(future))

    async def _wait(self, future: "asyncio.Future[Any]") -> Any:
        try:
            return await asyncio.wait_for(future, self.limits.work_seconds)
        except TimeoutError as error:
            seconds = self.limits.work_seconds
            message = f"No result within {seconds:g} s: the service is overloaded. Try again later."
            raise HTTPException(503, message, {"Retry-After": "10"}) from error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while sum(len(job.photos) for job in batch) < _MAX_BATCH:
                try:
                    next_job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if next_job is None:  # the end: put it back, to stop after this batch
                    self._jobs.put(None)
                    break
                batch.append(next_job)
            self._assess([job for job in batch if job.result.set_running_or_notify_cancel()])

    def _assess(self, jobs: list[_Job]) -> None:
        # If a batch fails, its requests are retried one by one, so that only the faulty request fails.
        for rows, photos in isolate_failures(self._stream, jobs, Exception):
            for job in jobs[rows]:
                if isinstance(photos, Exception):
                    job.result.set_exception(photos)
                else:
                    job.result.set_result(photos[: len(job.photos)])
                    del photos[: len(job.photos)]

    def _stream(self, jobs: list[_Job]) -> list[Any]:
        photos = ((photo.name, photo.content) for job in jobs for photo in job.photos)
        return list(self.assessor.stream(photos))
