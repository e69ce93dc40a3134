"""Fuzzing of every external format: mutated inputs may only raise SphereCF's own errors, within limits.

    pytest tests/fuzz                              about a hundred inputs for each format, as in CI
    SPHERECF_FUZZ=100000 pytest tests/fuzz         as many inputs as given; `make fuzz` also prints a table

A target is a function of bytes, decorated with `fuzz`. It opens the bytes through the public API, uses the
result as a caller would, and asserts what must hold for an accepted input:

    @fuzz({"lfw": b"1\\t1\\nAnn\\t1\\t2\\nAnn\\t1\\tBo\\t3\\n"}, name="pair lists")
    def test_pair_lists(data: bytes) -> None:
        pairs = open_pairs(write("pairs.txt", data))
        assert pairs.folds <= len(pairs)

A `SpherecfError` refuses the input, which is correct. Everything else fails the test: another exception, more
than 10 s of processor time or 60 s of wall-clock time, more than 1 GB of memory (also if the allocation ended
in a `MemoryError`), or a crash.

Formats with a checksum or a length prefix are best mutated before these are computed: use the inner bytes as
seeds, and wrap them in the container in the target.
"""

import atexit
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, note, seed, settings, strategies as st

from spherecf.errors import SpherecfError

INPUTS = int(os.environ.get("SPHERECF_FUZZ", "100"))
RESULTS = os.environ.get("SPHERECF_FUZZ_RESULTS")
MAX_SECONDS, MAX_MEMORY, QUICK_SECONDS = 10, 1 << 30, 0.05
MAX_ADDRESS_SPACE = 8 << 30  # beyond the process's own: protects the machine rather than tests the product

NUMBERS = [
    0, 1, 2, 127, 128, 255, 65535, 2**24 + 1, 2**29, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1,
]  # fmt: skip
TOKENS = [
    b"", b" ", b"\t", b",", b"\n", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"Jos\xc3\xa9",
    b"Jose\xcc\x81", b"0", b"-1", b"1.5", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1e-999",
    b"2147483648",
    b"-2147483649", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"9" * 400,
    b"true", b"null", b"[]", b"{}", b'"x"', b"x", b"x" * 5000, b"../../x", b"/", b".", b"..", b"[" * 2000,
    b'{"a":' * 2000, b"#", b"\\",
]  # fmt: skip
_WORD = re.compile(rb"[\w.+\-]+")
_RAM_DISK = Path("/dev/shm")  # since an input takes only a millisecond
_scratch = Path(tempfile.mkdtemp(prefix="spherecf-fuzz-", dir=_RAM_DISK if _RAM_DISK.is_dir() else None))
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)


class Overrun(BaseException):
    """The time limit is exceeded; a BaseException, so that no `except Exception` can swallow it."""


def write(name: str, data: bytes) -> Path:
    """Write the bytes to a file of this name in the scratch folder of this process."""
    path = _scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fuzz(
    seeds: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]],
    *,
    name: str,
    tokens: Sequence[bytes] = (),
    share: float = 1.0,
) -> Callable[[Callable[[bytes], object]], Callable[[], None]]:
    """Turn a target into a test that feeds it mutations of the seeds; see the top of this file.

    Args:
        seeds: valid inputs by variant, or a function that creates them when the test starts. Each must first
            be accepted unchanged.
        name: name of the format in the table.
        tokens: words of the format that mutations insert, in addition to `TOKENS`.
        share: fraction of the usual number of inputs in a short run; below 1 for slow formats.
    """

    def decorate(attempt: Callable[[bytes], object]) -> Callable[[], None]:
        def test() -> None:
            valid = dict(seeds() if callable(seeds) else seeds)
            for variant, data in valid.items():
                try:
                    attempt(data)
                except SpherecfError as error:
                    raise AssertionError(f"the seed {variant!r} is refused: {error}") from error
            counts = {"accepted": 0, "refused": 0}
            inputs = max(20, round(INPUTS * share)) if INPUTS < 1000 else INPUTS

            @seed(int(os.environ.get("SPHERECF_FUZZ_SEED", "0")))
            @settings(
                max_examples=inputs, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(st.binary(min_size=5, max_size=40))
            def run(program: bytes) -> None:
                data = mutated([*valid.values()], [*TOKENS, *tokens], program)
                note(f"input: {data[:2000]!r}")
                counts["accepted" if _accepted(attempt, data) else "refused"] += 1

            start = time.monotonic()
            with _shared_limits.set():
                run()
            if RESULTS:
                row = {"format": name, "seeds": len(valid), **counts, "seconds": time.monotonic() - start}
                with Path(RESULTS).open("a") as stream:
                    stream.write(json.dumps(row) + "\n")

        test.__name__, test.__doc__, test.__module__ = attempt.__name__, attempt.__doc__, attempt.__module__
        return test

    return decorate


def _accepted(attempt: Callable[[bytes], object], data: bytes) -> bool:
    with _limited():
        try:
            attempt(data)
        except SpherecfError as error:
            cause: BaseException | None = error
            while cause is not None:
                assert not isinstance(cause, MemoryError), (
                    f"requests over {MAX_ADDRESS_SPACE >> 30} GiB: {error}"
                )
                cause = cause.__cause__
            return False
    return True


@contextmanager
def _limited() -> Iterator[None]:
    """Limit time with an alarm, and memory by its high-water mark, which is read only after slow inputs."""
    start = time.monotonic()
    # Processor time, which other work on the machine does not affect; wall-clock time for code that waits.
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 6 * MAX_SECONDS)
    try:
        yield
    except Overrun:
        raise AssertionError(f"more than {MAX_SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    _shared_limits.inputs += 1
    if _shared_limits.inputs % 64 == 0:  # hypothesis itself keeps every input in memory
        _shared_limits.peak = max(_shared_limits.peak, _peak())
    elif time.monotonic() - start > QUICK_SECONDS:
        growth = _peak() - _shared_limits.peak
        _shared_limits.peak = max(_shared_limits.peak, _peak())
        assert growth < MAX_MEMORY, f"memory grew by {growth >> 20} MiB"
        # C code that does not return cannot be interrupted by an alarm: end the process with a traceback.
        faulthandler.dump_traceback_later(30 * MAX_SECONDS, exit=True)


class _Limits:
    """Limits set once for all inputs of a test: each of these system calls costs more than a small file."""

    def __init__(self) -> None:
        self.peak = self.inputs = 0

    @contextmanager
    def set(self) -> Iterator[None]:
        def raise_overrun(*_: object) -> None:
            raise Overrun

        self.peak = _peak()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        old_handlers = {
            number: signal.signal(number, raise_overrun) for number in (signal.SIGALRM, signal.SIGPROF)
        }
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MAX_ADDRESS_SPACE, hard))
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            for number, handler in old_handlers.items():
                signal.signal(number, handler)


_shared_limits = _Limits()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], program: bytes) -> bytes:
    """Apply one to four mutations to one of the seeds.

    Each choice is taken from ``program``, a string of random bytes. One string costs a fifth of drawing each
    choice from hypothesis, and also shrinks.
    """
    choices = iter(program)

    def choose(count: int) -> int:
        return next(choices, 0) % count

    def draw_position(data: bytes) -> int:
        return int.from_bytes([next(choices, 0) for _ in range(3)], "big") % (len(data) + 1)

    data = seeds[choose(len(seeds))]
    for _ in range(1 + choose(4)):
        at = draw_position(data)
        match choose(9):
            case 0:
                data = data[:at] + bytes([choose(256)]) + data[at + 1 :]
            case 1:
                width = 1 << choose(4)
                number = NUMBERS[choose(len(NUMBERS))] % 256**width
                data = data[:at] + number.to_bytes(width, "little") + data[at + width :]
            case 2:
                data = data[:at] + tokens[choose(len(tokens))] + data[at:]
            case 3:
                start, end = _word(data, at)
                data = data[:start] + tokens[choose(len(tokens))] + data[end:]
            case 4:
                (a, b), (c, d) = sorted((_word(data, at), _word(data, draw_position(data))))
                data = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data
            case 5:
                data = data[:at] + data[at + 1 + choose(64) :]
            case 6:
                data = data[:at] + data[at : at + 1 + choose(256)] * (1 + choose(50)) + data[at:]
            case 7:
                data = data[:at]
            case 8:
                tail = seeds[choose(len(seeds))]
                data = data[:at] + tail[draw_position(tail) :]
    return data


def _word(data: bytes, at: int) -> tuple[int, int]:
    """Start and end of the word at this position, or of the next word after it."""
    match = _WORD.search(data, at)
    return match.span() if match else (len(data), len(data))


def table(results: Path) -> str:
    """Format the results of one run as the Markdown table of docs/reliability.md."""
    lines = [
        "| format | valid seeds | mutated inputs | accepted | refused | other |",
        "|---" * 6 + "|",
    ]
    for row in sorted(map(json.loads, results.read_text().splitlines()), key=lambda row: row["format"]):
        counts = (row["accepted"] + row["refused"], row["accepted"], row["refused"])
        cells = " | ".join(f"{count:,}" for count in counts)
        lines.append(f"| {row['format']} | {row['seeds']} | {cells} | 0 |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])) + "\n")
