"""Helpers for long jobs: progress bars, ordered results from threads, and isolation of failing items."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

console = Console(stderr=True)
_bars_shown = True


def print_text(text: str, style: str | None = None) -> None:
    """Print a message on stderr verbatim: without markup, highlighting or inserted line breaks."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def hide_bars() -> None:
    """Hide progress bars in this process, e.g. because another rank of the same job shows them."""
    global _bars_shown
    _bars_shown = False


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2f}/s")


@runtime_checkable
class Advance(Protocol):
    """``advance(n, note)``: n more items are done; ``note`` replaces the text after the bar."""

    def __call__(self, count: int = 1, note: str | None = None) -> None: ...


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar while the block runs; ``done`` items were finished by an earlier run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, transient=not console.is_terminal, disable=not _bars_shown
    ) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            if note is None:
                bar.update(task, advance=count)
            else:
                bar.update(task, advance=count, note=note)

        yield advance


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, name: str = "ahead"
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for every item, in order, from threads; up to ``workers + 1`` are queued.

    An exception in ``function`` is raised in place of its result. Close the generator (`contextlib.closing`)
    to stop early: calls that have not started are then cancelled.

    Example:
        >>> list(in_order(str.upper, "abc", workers=2))
        ['A', 'B', 'C']
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


Begun = TypeVar("Begun")


def begun_ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], finish: Callable[[Begun], Result], ahead: int = 1
) -> Generator[Result, None, None]:
    """Yield ``finish(begin(item))`` for every item, in order, with ``ahead`` items begun in advance.

    For work that continues elsewhere, e.g. on a GPU, once it has begun. An error in ``items`` or ``begin`` is
    raised in place of its result: items begun before it are finished first.

    Example:
        >>> list(begun_ahead("abc", str.upper, ord))
        [65, 66, 67]
    """
    remaining, waiting = iter(items), deque[Begun]()
    error: Exception | None = None
    while error is None:
        try:
            waiting.append(begin(next(remaining)))
        except StopIteration:
            break
        except Exception as exception:
            error = exception
        if len(waiting) > ahead:
            yield finish(waiting.popleft())
    while waiting:
        yield finish(waiting.popleft())
    if error is not None:
        raise error


def isolate_failures(
    work: Callable[[Any], Result], items: Any, error: type[Exception]
) -> Iterator[tuple[slice, Result | Exception]]:
    """Call ``work(items)`` once and, if that raises ``error``, once per item, to isolate the bad items.

    Args:
        work: called with a slice of the items.
        items: anything with a length that can be sliced: a list, an array, a tensor.
        error: exceptions that are returned in place of a result; others are raised.

    Yields:
        (slice of the items, the result of ``work`` or, for a single item, its exception); nothing if there
        are no items.

    Example:
        >>> list(isolate_failures(lambda words: [int(word) for word in words], ["1", "2"], ValueError))
        [(slice(0, 2, None), [1, 2])]
        >>> [
        ...     type(result).__name__
        ...     for _, result in isolate_failures(lambda x: 1 // sum(x), [0, 0], ArithmeticError)
        ... ]
        ['ZeroDivisionError', 'ZeroDivisionError']
    """
    if not len(items):
        return
    try:
        result: Result | Exception = work(items)
    except error as failure:
        if len(items) > 1:
            for position in range(len(items)):
                for _, outcome in isolate_failures(work, items[position : position + 1], error):
                    yield slice(position, position + 1), outcome
            return
        result = failure
    yield slice(0, len(items)), result
