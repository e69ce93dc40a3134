"""Attacks on disk, clock and process at every moment: the same command again must end as if undisturbed.

    python -m tests.faults.harness --trials 200                    all attacks on all jobs, then a table
    python -m tests.faults.harness --trials 5 --attack kill --job embed

The process imports everything once; each trial is a fork of it, with a library preloaded (shim.c) that counts
the calls that change files in the trial's folder. An attack strikes at one of them, drawn without replacement
until all were hit. Then the command runs again, undisturbed, in another fork. Its result must be that of a
run that nothing disturbed, no file may be left over, and an attack that the process survives must end in one
of our errors.

    kill    kill -9, or half a write and then kill -9; every fourth at a random time instead
    signal  SIGINT and SIGTERM in turn
    full    no space from this call on (ENOSPC), and space again for the second run
    eio     this one call fails (EIO)
    clock   the wall clock jumps to and fro at every reading, by a minute, a day or ten years
    two     the process stands still, a second one runs the same command, then the first goes on
    power   the calls up to this one are recorded, and a folder is built that a power cut may leave (disk.py)
"""

import argparse
import ctypes
import errno
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.disk import Disk, recorded

HERE, MEMORY = Path(__file__).parent, Path("/dev/shm")
COUNT, KILL, TEAR, SIGNAL, FAIL, FULL = range(6)
ATTACKS = ("kill", "signal", "full", "eio", "clock", "two", "power")
SECONDS, TIMES = 600.0, 50  # a trial that takes longer, and so many times longer than undisturbed, hangs


def preload(arguments: Sequence[str]) -> int:
    """Run this module in a new process under the shim, which is compiled first; its exit code."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        library = Path(folder) / "shim.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True
        )
        environment = os.environ | {
            "LD_PRELOAD": str(library), "SPHERECF_FAULTS": folder, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.faults.harness", *arguments]
        return subprocess.run(command, env=environment, cwd=HERE.parents[1]).returncode


@dataclass
class Strike:
    """What happens in a trial: an action at the n-th call, the errno or signal of it, the jumps of the clock.

    ``log`` is the descriptor that calls are recorded to; ``after`` goes on counting the calls of another.
    """

    action: int = COUNT
    at: int = 0
    error: int = 0
    jump: int = 0
    log: int = 0
    after: bool = False


@dataclass
class Tally:
    """Of one attack on one job."""

    trials: int = 0
    moments: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


class Bench:
    """Runs trials of one job."""

    def __init__(self, name: str, job: Any, scratch: Path, seed: int) -> None:
        self.name, self.job, self.scratch = name, job, scratch
        self.random = random.Random(f"{seed} {name}")
        self.shim = ctypes.CDLL(None)
        self.seconds = SECONDS
        self.counter = mmap.mmap(-1, 8)  # shared with all forks
        self.begun = scratch / "begun"
        self.begun.mkdir()
        self.ended(self.fork(self.begun, lambda: job.start(self.begun), Strike()))
        started = time.monotonic()
        whole = self.fresh()
        code, text = self.ended(self.work(whole, Strike()))
        self.seconds = time.monotonic() - started
        assert code == 0, f"{name}: undisturbed, it ends with {code}: {text}"
        self.moments = self.count
        self.expected, self.files = self.seen(whole)
        again = self.fresh()
        self.ended(self.work(again, Strike()))
        assert self.seen(again)[0] == self.expected, f"{name}: two undisturbed runs differ"

    @property
    def count(self) -> int:
        """Calls so far in this trial."""
        return int(struct.unpack("l", self.counter[:8])[0])

    def fresh(self) -> Path:
        """The folder of a trial, which is always the same path, with what the work begins with."""
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.begun, folder)
        return folder

    def fork(self, folder: Path, work: Callable[[], object], strike: Strike) -> int:
        """Start a trial; its process id."""
        from tests.faults.jobs import code_of

        if not strike.after:
            self.counter[:8] = struct.pack("l", 0)
        child = os.fork()
        if child:
            return child
        code = 0
        try:
            os.setsid()
            self.shim.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no trial outlives this process
            with (self.scratch / "words").open("wb") as words:
                os.dup2(words.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            shared = ctypes.addressof(ctypes.c_long.from_buffer(self.counter))
            self.shim.faults_arm(
                str(folder).encode(), ctypes.c_long(strike.at), ctypes.c_long(strike.action),
                ctypes.c_long(strike.error), ctypes.c_long(strike.log), ctypes.c_void_p(shared),
                ctypes.c_long(strike.jump),
            )  # fmt: skip
            work()
        except BaseException as error:
            code = code_of(error)
        os._exit(code)

    def work(self, folder: Path, strike: Strike) -> int:
        """Start the job."""
        say = self.shim.faults_acknowledge
        return self.fork(folder, lambda: self.job.run(folder, lambda text: say(text.encode())), strike)

    def ended(self, child: int) -> tuple[int, str]:
        """Exit code of a trial, negative for a signal, and what it said; its group is ended with it."""
        status, deadline = None, time.monotonic() + min(SECONDS, 60 + TIMES * self.seconds)
        while status is None:
            done, found = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(found)
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # ranks that wait for one that is gone
        if status is None:
            os.waitpid(child, 0)
        text = (self.scratch / "words").read_text(errors="replace")
        return (BROKEN_HANGS if status is None else status), text

    def seen(self, folder: Path) -> tuple[Any, list[str]]:
        """The result as the public door gives it, in a process of its own, and the files."""
        answer = self.scratch / "answer"
        answer.unlink(missing_ok=True)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        child = self.fork(
            folder, lambda: answer.write_text(json.dumps(self.job.result(folder), sort_keys=True)), Strike()
        )
        code, text = self.ended(child)
        return (json.loads(answer.read_text()) if code == 0 else f"no result: {text[-1500:]}"), files

    def shown(self, folder: Path, promised: set[str]) -> set[str]:
        """What of the acknowledged can be seen; without a way to see parts of it, all or nothing."""
        if self.job.shown is None:
            return promised if self.seen(folder)[0] == self.expected else set()
        answer = self.scratch / "answer"
        answer.unlink(missing_ok=True)
        child = self.fork(
            folder, lambda: answer.write_text(json.dumps(sorted(self.job.shown(folder)))), Strike()
        )
        code, text = self.ended(child)
        assert code == 0, f"does not open: {text[-1500:]}"
        return set(json.loads(answer.read_text()))

    def finish(self, folder: Path) -> str:
        """Run the command again, undisturbed; what is wrong afterwards, or ""."""
        code, text = self.ended(self.work(folder, Strike()))
        if code:
            return f"the same command again ends with {code}: {text[-1500:]}"
        found, files = self.seen(folder)
        if found != self.expected:
            return f"another result: {_difference(self.expected, found)}"
        if files != self.files:
            return f"files left over or missing: {sorted(set(files) ^ set(self.files))}"
        return ""

    def moments_drawn(self, trials: int) -> Iterator[int]:
        """Calls to strike at: all of them in random order, again and again."""
        order: list[int] = []
        for _ in range(trials):
            order = order or self.random.sample(range(1, self.moments + 1), self.moments)
            yield order.pop()

    def attack(self, kind: str, trials: int) -> Tally:
        """Trials of one attack."""
        tally = Tally(moments=self.moments)
        for number, at in enumerate(self.moments_drawn(trials)):
            tally.trials += 1
            try:
                end, wrong = getattr(self, f"_{kind}")(at, number)
            except AssertionError as error:
                end, wrong = "", str(error)
            tally.ends[end] += 1
            if wrong:
                tally.broken.append(f"{self.name}, {kind} at {at}: {wrong}")
        return tally

    def _kill(self, at: int, number: int) -> tuple[str, str]:
        folder = self.fresh()
        if number % 4 == 3:  # at any time rather than at a call
            child = self.work(folder, Strike())
            time.sleep(self.random.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)  # its ranks are ended with it
            code, _ = self.ended(child)
        else:
            code, text = self.ended(self.work(folder, Strike((KILL, TEAR)[number % 2], at)))
            # One rank is killed; the other says so, or is ended as torchrun ends it.
            allowed = (-9, 9, 3) if self.job.ranks > 1 else (-9, 9)
            assert code in (*allowed, 0), f"ends with {code}: {text[-1500:]}"
        return ("finished" if code == 0 else "killed"), self.finish(folder)

    def _signal(self, at: int, number: int) -> tuple[str, str]:
        folder, which = self.fresh(), (signal.SIGINT, signal.SIGTERM)[number % 2]
        code, text = self.ended(self.work(folder, Strike(SIGNAL, at, int(which))))
        allowed = (0, 130, -int(which), int(which), *((3,) if self.job.ranks > 1 else ()))
        assert code in allowed, f"{which.name} ends with {code}: {text[-1500:]}"
        return ("finished" if code == 0 else "interrupted"), self.finish(folder)

    def _failing(self, strike: Strike) -> tuple[str, str]:
        folder = self.fresh()
        code, text = self.ended(self.work(folder, strike))
        assert code in (0, 3), f"{os.strerror(strike.error)} ends with {code}: {text[-1500:]}"
        assert code == 0 or text.count("refused: ") <= self.job.ranks, text
        return ("finished" if code == 0 else "refused"), self.finish(folder)

    def _full(self, at: int, number: int) -> tuple[str, str]:
        return self._failing(Strike(FULL, at, errno.ENOSPC))

    def _eio(self, at: int, number: int) -> tuple[str, str]:
        return self._failing(Strike(FAIL, at, errno.EIO))

    def _clock(self, at: int, number: int) -> tuple[str, str]:
        folder = self.fresh()
        jump = self.random.choice((60, 86_400, 10 * 365 * 86_400))
        code, text = self.ended(self.work(folder, Strike(jump=jump)))
        assert code == 0, f"ends with {code}: {text[-1500:]}"
        return "finished", self.finish(folder)

    def _two(self, at: int, number: int) -> tuple[str, str]:
        """The first stands still at a call, the second comes, then the first goes on."""
        folder = self.fresh()
        first = self.work(folder, Strike(SIGNAL, at, int(signal.SIGSTOP)))
        _, status = os.waitpid(first, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return "finished", ""
        try:
            end = self._second(folder, first)
            mine, text = self.ended(first)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(first, signal.SIGKILL)
        assert mine == 0, f"the first ends with {mine}: {text[-1500:]}"
        return end, self.finish(folder)

    def _second(self, folder: Path, first: int) -> str:
        (self.scratch / "words").unlink()
        second = self.work(folder, Strike(after=True))
        deadline = time.monotonic() + 3 * self.seconds + 1
        while _lives(second) and time.monotonic() < deadline:
            time.sleep(0.002)
        waits = _lives(second)
        os.killpg(first, signal.SIGCONT)
        code, text = self.ended(second)
        assert code in (0, 3), f"the second ends with {code}: {text[-1500:]}"
        # "unknown" where the first stands between taking the lock and writing its number.
        # "locked" where it stands inside a change of a gallery: SQLite does not know who it is.
        told = any(f"in use by process {name}" in text for name in (first, "unknown")) or "is locked" in text
        assert code == 0 or told, f"the second is told: {text[-500:]}"
        return "the second waited" if waits else "the second was told" if code else "both wrote"

    def _power(self, at: int, number: int) -> tuple[str, str]:
        if number == 0:
            self._record()
        cut = min(at, len(self.calls))
        folder = self.fresh()
        shutil.rmtree(folder)
        promised = Disk(self.calls[:cut], self.begun, self.root).leave(folder, number % 4, self.random)
        if promised and (missing := promised - self.shown(folder, promised)):
            return "", f"acknowledged and lost: {sorted(missing)}"
        return f"variant {number % 4}", self.finish(folder)

    def _record(self) -> None:
        folder, log = self.fresh(), self.scratch / "log"
        with log.open("wb") as stream:
            os.set_inheritable(stream.fileno(), True)
            code, text = self.ended(self.work(folder, Strike(log=stream.fileno())))
        assert code == 0, text
        self.root, self.calls = folder, list(recorded(log.read_bytes()))


BROKEN_HANGS = 98


def _lives(child: int) -> bool:
    status = Path(f"/proc/{child}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        odd = [key for key in {*expected, *found} if expected.get(key) != found.get(key)]
        return "; ".join(f"{key}: {expected.get(key)} became {found.get(key)}"[:600] for key in odd)
    return f"{expected} became {found}"[:1500]


def main() -> int:
    """Run the attacks that are asked for; a line for each job and attack, then what broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--attack", action="append", choices=ATTACKS)
    parser.add_argument("--job", action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if "SPHERECF_FAULTS" not in os.environ:
        return preload(sys.argv[1:])

    from tests.faults.jobs import CARELESS, World, make_jobs, small_batches

    scratch = Path(os.environ["SPHERECF_FAULTS"])
    small_batches()
    jobs, broken = make_jobs(World(scratch / "world")), []
    sys.stdout.write("| command | attack | trials | calls | broken | ends |\n|---|---|---|---|---|---|\n")
    for name in given.job or [name for name in jobs if name != CARELESS]:
        place = scratch / name.replace(" ", "-")
        place.mkdir()
        bench = Bench(name, jobs[name], place, given.seed)
        for attack in given.attack or ATTACKS:
            if attack in ("two", "power") and jobs[name].ranks > 1:
                continue
            tally = bench.attack(attack, max(1, round(given.trials * jobs[name].weight)))
            broken += tally.broken
            ends = ", ".join(f"{end} {count}" for end, count in sorted(tally.ends.items()) if end)
            sys.stdout.write(
                f"| {name} | {attack} | {tally.trials} | {tally.moments} | {len(tally.broken)} | {ends} |\n"
            )
            sys.stdout.writelines(f"BROKEN {text}\n" for text in tally.broken)
            sys.stdout.flush()
        shutil.rmtree(place)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
