"""Decoded batches on the way to the device: the next one is copied while the present one is computed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import Tensor

from spherecf.common.progress import begun_ahead
from spherecf.data import ImageBatch
from spherecf.training.loop import Part


def part_of(batch: ImageBatch) -> Part:
    """A decoded batch as a part of which the images are the data."""
    skipped = {item.key: item.reason for item in batch.skipped}
    return Part(batch.rows, torch.from_numpy(batch.images), skipped)


def on_device(parts: Iterable[Part], device: torch.device) -> Generator[Part, None, None]:
    """The parts, their tensors on ``device``; on the CPU they are given on as they are.

    On a GPU each is copied on a stream of its own, without waiting where its memory is pinned, as soon as the
    one before it is asked for.
    """
    if device.type == "cpu":
        yield from parts
    else:
        stream = SideStream(device)
        yield from begun_ahead(parts, stream.start, stream.finish)


class SideStream:
    """Copies to a GPU beside what it computes: `start` does not wait for a copy, in `finish` the GPU does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying: deque[tuple[Any, Any]] = deque()  # (event, data that must stay until it has happened)

    def start(self, part: Part) -> tuple[Part, Any]:
        with torch.cuda.stream(self._stream):
            data = _each(part.data, lambda tensor: tensor.to(self._device, non_blocking=True))
            copied = self._stream.record_event()
        self._copying.append((copied, part.data))
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return part._replace(data=data), copied

    def finish(self, started: tuple[Part, Any]) -> Part:
        part, copied = started
        present = torch.cuda.current_stream(self._device)
        present.wait_event(copied)  # the GPU waits, this process does not
        # The memory belongs to the other stream, which may have it back only when this one has used it.
        _each(part.data, lambda tensor: tensor.record_stream(present))
        return part


def _each(data: Any, work: Callable[[Tensor], Any]) -> Any:
    """Of a tensor, or of every tensor of a named tuple."""
    return work(data) if isinstance(data, Tensor) else type(data)(*(work(tensor) for tensor in data))
