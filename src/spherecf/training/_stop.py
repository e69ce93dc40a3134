"""Ctrl-C and SIGTERM as a wish: finish the step under way, save, then stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SAME_WISH = 3.0  # seconds within which a second signal says nothing new


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one, some seconds later, interrupts at once."""
    stop, asked = threading.Event(), [0.0]
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        # A launcher passes on the Ctrl-C that the terminal has sent to all its processes already.
        if stop.is_set() and time.monotonic() - asked[0] > _SAME_WISH:
            raise KeyboardInterrupt
        if not stop.is_set():
            asked[0] = time.monotonic()
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)
