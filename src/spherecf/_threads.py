"""Working ahead in threads: results in order, bounded memory, nothing running after the consumer left."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, name: str = "ahead"
) -> Generator[Result, None, None]:
    """``function(item)`` of every item, in order, by threads; at most ``workers + 1`` results wait.

    An exception of ``function`` comes out where its result would have. Close the generator
    (`contextlib.closing`) to stop early: what has not begun is then never done.

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
