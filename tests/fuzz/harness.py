"""Mutated inputs for every format that comes from outside: only our own errors, in time and in bounds.

    pytest tests/fuzz                              some hundred inputs for each format, as in CI
    SPHERECF_FUZZ=100000 pytest tests/fuzz         as many as asked for; `make fuzz` also prints a table

A target is a function of bytes under `fuzz`: it opens them through the public door, uses what it gets as a
caller would, and asserts what must hold of an accepted input:

    @fuzz({"lfw": b"1\\t1\\nAnn\\t1\\t2\\nAnn\\t1\\tBo\\t3\\n"}, name="pair lists")
    def test_pair_lists(data: bytes) -> None:
        pairs = open_pairs(write("pairs.txt", data))
        assert pairs.folds <= len(pairs)

A `SpherecfError` is a refusal, which is fine. Everything else fails: another exception, more than 10 s of
the processor or a minute of the clock, more than 1 GB of memory (also where the request for it was answered
by a `MemoryError`), a crash.

Bytes with a checksum or a length in front are best mutated before these are computed: let the seeds be the
inner bytes, and put the container around them in the target.
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
SECONDS, MEMORY, QUICK = 10, 1 << 30, 0.05
CEILING = 8 << 30  # of address space beyond what the process has: protects the machine, not the product

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
_memory = "/dev/shm"  # no disk: an input takes a millisecond
_scratch = Path(tempfile.mkdtemp(prefix="spherecf-fuzz-", dir=_memory if Path(_memory).is_dir() else None))
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)


class Overrun(BaseException):
    """Ten seconds are over; no `except Exception` may swallow it."""


def write(name: str, data: bytes) -> Path:
    """The bytes as a file of this name in a scratch folder of this process."""
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
    """A test that feeds mutations of the seeds to the decorated function; see the head of this file.

    Args:
        seeds: valid inputs by variant, or a function that makes them when the test starts. Each is first
            tried as it is, and must be accepted.
        name: of the format, in the table.
        tokens: words of the format that mutations put in, besides `TOKENS`.
        share: of the usual number of inputs in a short run, for slow formats.
    """

    def decorate(attempt: Callable[[bytes], object]) -> Callable[[], None]:
        def test() -> None:
            valid = dict(seeds() if callable(seeds) else seeds)
            for variant, data in valid.items():
                try:
                    attempt(data)
                except SpherecfError as error:
                    raise AssertionError(f"the seed {variant!r} is refused: {error}") from error
            count = {"accepted": 0, "refused": 0}
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
                count["accepted" if _accepted(attempt, data) else "refused"] += 1

            start = time.monotonic()
            with _watch.on():
                run()
            if RESULTS:
                row = {"format": name, "seeds": len(valid), **count, "seconds": time.monotonic() - start}
                with Path(RESULTS).open("a") as stream:
                    stream.write(json.dumps(row) + "\n")

        test.__name__, test.__doc__, test.__module__ = attempt.__name__, attempt.__doc__, attempt.__module__
        return test

    return decorate


def _accepted(attempt: Callable[[bytes], object], data: bytes) -> bool:
    with _limits():
        try:
            attempt(data)
        except SpherecfError as error:
            cause: BaseException | None = error
            while cause is not None:
                assert not isinstance(cause, MemoryError), f"asks for {CEILING >> 30} GiB: {error}"
                cause = cause.__cause__
            return False
    return True


@contextmanager
def _limits() -> Iterator[None]:
    """Time by an alarm, memory by the high-water mark, which only inputs that take their time can raise."""
    start = time.monotonic()
    # Of the processor, since other work on the machine is not the input's; and of the clock, for what waits.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
    try:
        yield
    except Overrun:
        raise AssertionError(f"more than {SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    _watch.inputs += 1
    if _watch.inputs % 64 == 0:  # hypothesis itself remembers every input
        _watch.peak = max(_watch.peak, _peak())
    elif time.monotonic() - start > QUICK:
        grown = _peak() - _watch.peak
        _watch.peak = max(_watch.peak, _peak())
        assert grown < MEMORY, f"memory grew by {grown >> 20} MiB"
        # C code that does not return hears no alarm: then the process ends, with a traceback.
        faulthandler.dump_traceback_later(30 * SECONDS, exit=True)


class _Watch:
    """What is set once for all inputs of a test, since each of these calls costs more than a small file."""

    def __init__(self) -> None:
        self.peak = self.inputs = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        def ring(*_: object) -> None:
            raise Overrun

        self.peak = _peak()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        before = {number: signal.signal(number, ring) for number in (signal.SIGALRM, signal.SIGPROF)}
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + CEILING, hard))
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            for number, handler in before.items():
                signal.signal(number, handler)


_watch = _Watch()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], program: bytes) -> bytes:
    """One to four mutations of one of the seeds; which ones, a string of random bytes says.

    One string is a fifth of the cost of drawing each choice from hypothesis, and shrinks as well.
    """
    choices = iter(program)

    def choose(count: int) -> int:
        return next(choices, 0) % count

    def place(data: bytes) -> int:
        return int.from_bytes([next(choices, 0) for _ in range(3)], "big") % (len(data) + 1)

    data = seeds[choose(len(seeds))]
    for _ in range(1 + choose(4)):
        at = place(data)
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
                (a, b), (c, d) = sorted((_word(data, at), _word(data, place(data))))
                data = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data
            case 5:
                data = data[:at] + data[at + 1 + choose(64) :]
            case 6:
                data = data[:at] + data[at : at + 1 + choose(256)] * (1 + choose(50)) + data[at:]
            case 7:
                data = data[:at]
            case 8:
                tail = seeds[choose(len(seeds))]
                data = data[:at] + tail[place(tail) :]
    return data


def _word(data: bytes, at: int) -> tuple[int, int]:
    """The word at this place or the next one after it."""
    match = _WORD.search(data, at)
    return match.span() if match else (len(data), len(data))


def table(results: Path) -> str:
    """The Markdown table of docs/reliability.md from the results of one run."""
    lines = [
        "| format | valid seeds | mutated inputs | accepted | refused | anything else |",
        "|---" * 6 + "|",
    ]
    for row in sorted(map(json.loads, results.read_text().splitlines()), key=lambda row: row["format"]):
        counts = (row["accepted"] + row["refused"], row["accepted"], row["refused"])
        shown = " | ".join(f"{count:,}" for count in counts)
        lines.append(f"| {row['format']} | {row['seeds']} | {shown} | 0 |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])) + "\n")
