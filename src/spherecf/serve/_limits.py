"""How much a caller may ask for."""

from dataclasses import dataclass, fields

from spherecf.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of one service. Memory stays below ``max_pending * max_request_bytes`` plus the photos at work.

    Args:
        max_files: photos in one request.
        max_file_bytes: of one photo.
        max_request_bytes: of one request's body, counted while it arrives.
        max_pending: requests with photos in hand at once; one more is told to come again.
        requests_per_minute: of one client in the long run.
        burst: of one client at once.
        upload_seconds: in which a body must have arrived.
        work_seconds: in which an answer must be found.

    Raises:
        InputError: a bound that is not positive.

    Example:
        >>> Limits(max_files=0)
        Traceback (most recent call last):
            ...
        spherecf.errors.InputError: max_files: expected a positive number, got 0
    """

    max_files: int = 20
    max_file_bytes: int = 25_000_000
    max_request_bytes: int = 64_000_000
    max_pending: int = 8
    requests_per_minute: float = 120.0
    burst: int = 40
    upload_seconds: float = 60.0
    work_seconds: float = 60.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise InputError(f"{one.name}: expected a positive number, got {getattr(self, one.name)}")
