"""OpenCV's own log lines, held back while it is asked about a file that may be bad: our error says more."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

_LOCK = threading.Lock()  # the log level is the process's: the first to enter lowers it, the last restores it
_inside, _before = 0, 0


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of OpenCV while the block runs, from any thread."""
    global _inside, _before
    with _LOCK:
        if not _inside:
            _before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                cv2.utils.logging.setLogLevel(_before)
