import threading
from collections.abc import Iterator

import pytest

from spherecf.common.progress import in_order


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mine")]


def test_results_keep_the_order_of_items_whatever_finishes_first() -> None:
    first_is_allowed = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert first_is_allowed.wait(10)
        if item == 2:
            first_is_allowed.set()
        return item * item

    assert list(in_order(work, range(6), workers=3)) == [0, 1, 4, 9, 16, 25]


def test_read_ahead_is_bounded() -> None:
    consumed = []

    def items() -> Iterator[int]:
        for item in range(100):
            consumed.append(item)
            yield item

    results = in_order(str, items(), workers=2, name="mine")
    next(results)
    assert len(consumed) == 3
    results.close()
    assert len(consumed) == 3 and running() == []


def test_an_error_is_raised_at_the_position_of_its_result() -> None:
    results = in_order(lambda item: 1 // item, [1, 1, 0, 1], workers=2, name="mine")
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert running() == []
