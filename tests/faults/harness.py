"""Fault injection: disturb a command at any of its file operations, then run it again.

The second run must end as if the first had not been disturbed.

    python -m tests.faults.harness --trials 200                    all attacks on all jobs, as a table
    python -m tests.faults.harness --trials 5 --attack kill --job embed

The process imports everything once; each trial is a fork of it. A preloaded library (shim.c) counts the calls
that change files in the trial's folder. An attack strikes at one of these calls, drawn without replacement
until all have been hit. Then the command runs again, undisturbed, in another fork. Its result must equal
that of an undisturbed run, no file may be left over, and a process that survives the attack must end with
one of SphereCF's errors.

    kill    kill -9, or half a write and then kill -9; every fourth trial at a random time instead
    signal  SIGINT and SIGTERM in turn
    full    no space from this call on (ENOSPC); there is space again for the second run
    eio     this one call fails (EIO)
    clock   the wall clock jumps forwards and backwards at every reading, by a minute, a day or ten years
    two     the process is stopped, a second one runs the same command, then the first continues
    power   the calls up to this one are recorded, and a folder is built that a power cut may leave (disk.py)
"""

import argparse
import ctypes
import errno
import faulthandler
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

from tests.faults.disk import Disk, read_calls

HERE, MEMORY = Path(__file__).parent, Path("/dev/shm")
COUNT, KILL, TEAR, SIGNAL, FAIL, FULL = range(6)
ATTACKS = ("kill", "signal", "full", "eio", "clock", "two", "power")
# A trial hangs if it takes MAX_SECONDS, or a minute more than MAX_SLOWDOWN undisturbed runs.
MAX_SECONDS, MAX_SLOWDOWN = 600.0, 50


def preload(arguments: Sequence[str]) -> int:
    """Compile the shim, run this module under it in a new process, and return its exit code."""
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
    """The disturbance of a trial.

    Attributes:
        action: one of COUNT (nothing), KILL, TEAR, SIGNAL, FAIL, FULL.
        call_number: number of the call at which the action happens, from 1.
        error: the errno, or the number of the signal.
        jump: seconds by which the clock jumps.
        log: file descriptor to which calls are recorded; 0 records nothing.
        after: continue the count of the trial that is already running.
    """

    action: int = COUNT
    call_number: int = 0
    error: int = 0
    jump: int = 0
    log: int = 0
    after: bool = False


@dataclass
class Tally:
    """Results of one attack on one job."""

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
        self.seconds = MAX_SECONDS
        self.counter = mmap.mmap(-1, 8)  # shared with all forks
        self.initial = scratch / "initial"
        self.initial.mkdir()
        self.wait_for(self.fork(self.initial, lambda: job.start(self.initial), Strike()))
        start = time.monotonic()
        folder = self.reset_folder()
        code, text = self.wait_for(self.work(folder, Strike()))
        self.seconds = time.monotonic() - start
        assert code == 0, f"{name}: the undisturbed run ends with {code}: {text}"
        self.moments = self.count
        self.expected, self.files = self.observe(folder)
        second_folder = self.reset_folder()
        self.wait_for(self.work(second_folder, Strike()))
        assert self.observe(second_folder)[0] == self.expected, f"{name}: two undisturbed runs differ"

    @property
    def count(self) -> int:
        """Number of calls so far in this trial."""
        return int(struct.unpack("l", self.counter[:8])[0])

    def reset_folder(self) -> Path:
        """The folder of a trial, reset to the initial state; always the same path."""
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.initial, folder)
        return folder

    def fork(self, folder: Path, work: Callable[[], object], strike: Strike) -> int:
        """Start a trial and return its process id."""
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
            with (self.scratch / "stderr").open("wb") as stream:
                os.dup2(stream.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            faulthandler.register(signal.SIGUSR1)
            shared = ctypes.addressof(ctypes.c_long.from_buffer(self.counter))
            self.shim.faults_arm(
                str(folder).encode(), ctypes.c_long(strike.call_number), ctypes.c_long(strike.action),
                ctypes.c_long(strike.error), ctypes.c_long(strike.log), ctypes.c_void_p(shared),
                ctypes.c_long(strike.jump),
            )  # fmt: skip
            work()
        except BaseException as error:
            code = code_of(error)
        os._exit(code)

    def work(self, folder: Path, strike: Strike) -> int:
        """Start the job and return its process id."""
        acknowledge = self.shim.faults_acknowledge
        return self.fork(
            folder, lambda: self.job.run(folder, lambda text: acknowledge(text.encode())), strike
        )

    def wait_for(self, child: int) -> tuple[int, str]:
        """Wait for a trial, and kill its process group; exit code (negative for a signal) and stderr."""
        status, deadline = None, time.monotonic() + min(MAX_SECONDS, 60 + MAX_SLOWDOWN * self.seconds)
        while status is None:
            finished_pid, raw_status = os.waitpid(child, os.WNOHANG)
            if finished_pid:
                status = os.waitstatus_to_exitcode(raw_status)
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.001)
        if status is None:
            os.killpg(child, signal.SIGUSR1)  # the stacks of all its processes, to stderr
            time.sleep(1)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # ranks that still wait for one that has exited
        if status is None:
            os.waitpid(child, 0)
        text = (self.scratch / "stderr").read_text(errors="replace")[-6000:]
        return (HANGS if status is None else status), text

    def observe(self, folder: Path) -> tuple[Any, list[str]]:
        """The result, read through the public API in a separate process, and the names of the files."""
        answer = self.scratch / "answer"
        answer.unlink(missing_ok=True)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        child = self.fork(
            folder, lambda: answer.write_text(json.dumps(self.job.result(folder), sort_keys=True)), Strike()
        )
        code, text = self.wait_for(child)
        return (json.loads(answer.read_text()) if code == 0 else f"no result: {text}"), files

    def surviving(self, folder: Path, acknowledged: set[str]) -> set[str]:
        """The acknowledged texts whose effect is still there; all or none if the job cannot list them."""
        if self.job.surviving is None:
            return acknowledged if self.observe(folder)[0] == self.expected else set()
        answer = self.scratch / "answer"
        answer.unlink(missing_ok=True)
        child = self.fork(
            folder, lambda: answer.write_text(json.dumps(sorted(self.job.surviving(folder)))), Strike()
        )
        code, text = self.wait_for(child)
        assert code == 0, f"does not open: {text}"
        return set(json.loads(answer.read_text()))

    def finish(self, folder: Path) -> str:
        """Run the command again, undisturbed, and describe what is wrong afterwards; "" if nothing is."""
        code, text = self.wait_for(self.work(folder, Strike()))
        if code:
            return f"the same command again ends with {code}: {text}"
        result, files = self.observe(folder)
        if result != self.expected:
            return f"another result: {_difference(self.expected, result)}"
        if files != self.files:
            return f"files left over or missing: {sorted(set(files) ^ set(self.files))}"
        return ""

    def draw_moments(self, trials: int) -> Iterator[int]:
        """Numbers of the calls to strike at: all of them in random order, repeated until there are enough."""
        order: list[int] = []
        for _ in range(trials):
            order = order or self.random.sample(range(1, self.moments + 1), self.moments)
            yield order.pop()

    def attack(self, kind: str, trials: int) -> Tally:
        """Run the trials of one attack."""
        tally = Tally(moments=self.moments)
        for number, call_number in enumerate(self.draw_moments(trials)):
            tally.trials += 1
            try:
                outcome, problem = getattr(self, f"_{kind}")(call_number, number)
            except AssertionError as error:
                outcome, problem = "", str(error)
            tally.ends[outcome] += 1
            if problem:
                tally.broken.append(f"{self.name}, {kind} at {call_number}: {problem}")
        return tally

    def _kill(self, call_number: int, number: int) -> tuple[str, str]:
        folder = self.reset_folder()
        if number % 4 == 3:  # at a random time rather than at a call
            child = self.work(folder, Strike())
            time.sleep(self.random.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)  # wait_for ends its ranks
            code, _ = self.wait_for(child)
        else:
            code, text = self.wait_for(self.work(folder, Strike((KILL, TEAR)[number % 2], call_number)))
            # One rank is killed; the other reports this, or is killed as by torchrun.
            allowed = (-9, 9, 3) if self.job.ranks > 1 else (-9, 9)
            assert code in (*allowed, 0), f"ends with {code}: {text}"
        return ("finished" if code == 0 else "killed"), self.finish(folder)

    def _signal(self, call_number: int, number: int) -> tuple[str, str]:
        folder, signal_number = self.reset_folder(), (signal.SIGINT, signal.SIGTERM)[number % 2]
        code, text = self.wait_for(self.work(folder, Strike(SIGNAL, call_number, int(signal_number))))
        allowed = (0, 130, -int(signal_number), int(signal_number), *((3,) if self.job.ranks > 1 else ()))
        assert code in allowed, f"{signal_number.name} ends with {code}: {text}"
        return ("finished" if code == 0 else "interrupted"), self.finish(folder)

    def _failing(self, strike: Strike) -> tuple[str, str]:
        folder = self.reset_folder()
        code, text = self.wait_for(self.work(folder, strike))
        assert code in (0, 3), f"{os.strerror(strike.error)} ends with {code}: {text}"
        assert code == 0 or text.count("refused: ") <= self.job.ranks, text
        return ("finished" if code == 0 else "refused"), self.finish(folder)

    def _full(self, call_number: int, number: int) -> tuple[str, str]:
        return self._failing(Strike(FULL, call_number, errno.ENOSPC))

    def _eio(self, call_number: int, number: int) -> tuple[str, str]:
        return self._failing(Strike(FAIL, call_number, errno.EIO))

    def _clock(self, call_number: int, number: int) -> tuple[str, str]:
        folder = self.reset_folder()
        jump = self.random.choice((60, 86_400, 10 * 365 * 86_400))
        code, text = self.wait_for(self.work(folder, Strike(jump=jump)))
        assert code == 0, f"ends with {code}: {text}"
        return "finished", self.finish(folder)

    def _two(self, call_number: int, number: int) -> tuple[str, str]:
        """Stop a run at a call, start a second run of the command, then let the first continue."""
        folder = self.reset_folder()
        first = self.work(folder, Strike(SIGNAL, call_number, int(signal.SIGSTOP)))
        _, status = os.waitpid(first, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return "finished", ""
        try:
            outcome = self._second(folder, first)
            first_code, text = self.wait_for(first)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(first, signal.SIGKILL)
        assert first_code == 0, f"the first ends with {first_code}: {text}"
        return outcome, self.finish(folder)

    def _second(self, folder: Path, first: int) -> str:
        (self.scratch / "stderr").unlink()
        second = self.work(folder, Strike(after=True))
        deadline = time.monotonic() + 3 * self.seconds + 1
        while _is_running(second) and time.monotonic() < deadline:
            time.sleep(0.002)
        waited = _is_running(second)
        os.killpg(first, signal.SIGCONT)
        code, text = self.wait_for(second)
        assert code in (0, 3), f"the second ends with {code}: {text}"
        # "unknown" if the first was stopped after it took the lock and before it wrote its process id.
        # "locked" if it was stopped inside a gallery transaction: SQLite does not know the process id.
        reasons = (f"in use by process {first}", "in use by process unknown", "is locked")
        explained = any(reason in text for reason in reasons)
        assert code == 0 or explained, f"the second run does not name the first: {text}"
        return "the second waited" if waited else "the second was refused" if code else "both wrote"

    def _power(self, call_number: int, number: int) -> tuple[str, str]:
        if number == 0:
            self._record()
        cut = min(call_number, len(self.calls))
        folder = self.reset_folder()
        shutil.rmtree(folder)
        disk = Disk(self.calls[:cut], self.initial, self.root)
        acknowledged = disk.write_state(folder, number % 4, self.random)
        if acknowledged and (lost := acknowledged - self.surviving(folder, acknowledged)):
            return "", f"acknowledged and lost: {sorted(lost)}"
        return f"variant {number % 4}", self.finish(folder)

    def _record(self) -> None:
        folder, log = self.reset_folder(), self.scratch / "log"
        with log.open("wb") as stream:
            os.set_inheritable(stream.fileno(), True)
            code, text = self.wait_for(self.work(folder, Strike(log=stream.fileno())))
        assert code == 0, text
        self.root, self.calls = folder, list(read_calls(log.read_bytes()))


HANGS = 98


def _is_running(child: int) -> bool:
    status = Path(f"/proc/{child}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _difference(expected: Any, result: Any) -> str:
    if isinstance(expected, dict) and isinstance(result, dict):
        changed_keys = [key for key in {*expected, *result} if expected.get(key) != result.get(key)]
        return "; ".join(f"{key}: {expected.get(key)} became {result.get(key)}"[:600] for key in changed_keys)
    return f"{expected} became {result}"[:1500]


def main() -> int:
    """Run the requested attacks; prints a row for each job and attack, then the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--attack", action="append", choices=ATTACKS)
    parser.add_argument("--job", action="append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "SPHERECF_FAULTS" not in os.environ:
        return preload(sys.argv[1:])

    from tests.faults.jobs import CARELESS, World, make_jobs, prepare_forks, small_batches

    scratch = Path(os.environ["SPHERECF_FAULTS"])
    small_batches()
    prepare_forks()
    jobs, broken = make_jobs(World(scratch / "world")), []
    sys.stdout.write("| command | attack | trials | calls | failed | ends |\n|---|---|---|---|---|---|\n")
    for name in options.job or [name for name in jobs if name != CARELESS]:
        folder = scratch / name.replace(" ", "-")
        folder.mkdir()
        bench = Bench(name, jobs[name], folder, options.seed)
        for attack in options.attack or ATTACKS:
            if attack in ("two", "power") and jobs[name].ranks > 1:
                continue
            tally = bench.attack(attack, max(1, round(options.trials * jobs[name].weight)))
            broken += tally.broken
            ends = ", ".join(f"{outcome} {count}" for outcome, count in sorted(tally.ends.items()) if outcome)
            sys.stdout.write(
                f"| {name} | {attack} | {tally.trials} | {tally.moments} | {len(tally.broken)} | {ends} |\n"
            )
            sys.stdout.writelines(f"FAILED {text}\n" for text in tally.broken)
            sys.stdout.flush()
        shutil.rmtree(folder)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
