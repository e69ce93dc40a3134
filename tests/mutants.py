"""Mutation testing: each small change to the code must make a test of its room (sub-package) fail.

    python -m tests.mutants                                  all rooms
    python -m tests.mutants vmf calibration                  only these
    python -m tests.mutants losses --sample 300 --seed 1     a random sample of mutants
    python -m tests.mutants --again                          only those of mutants.log that survived

The mutations are those of Cosmic Ray: + for -, < for <=, a number one larger or smaller, `not`, and so on.
Cosmic Ray's own runner starts Python and imports torch for each mutant. Here pytest collects the tests once,
coverage lists the tests that run each statement, and each mutant is a fork: its code is patched into the
functions, and the tests that run its statement are run, the fastest first, until one fails. A mutant also
counts as killed if its tests take more than ten times their usual processor time plus five seconds.

Not mutated, because survival would say nothing about the tests: annotations, strings, decorators, class
bodies, constants that affect only speed, and Triton kernels (compiled from their source). Tests marked `slow`
or `compiler` are not run; if a statement has many tests, only the fastest ten seconds of them are.
"""

import argparse
import ast
import gc
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import parso
import pytest
from _pytest.runner import runtestprotocol
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator
from coverage import Coverage
from hypothesis import Phase, settings

SOURCE = Path("src/spherecf").resolve()
# Room: its mutated files, and their tests, to which the doctests of the files are added.
ROOMS = {
    "vmf": ("vmf/*.py", "tests/vmf"),
    "scoring": ("scoring/*.py", "tests/scoring"),
    "calibration": ("calibration/*.py", "tests/calibration"),
    "rates": (
        "evaluation/rates.py",
        "tests/evaluation/test_rates.py tests/evaluation/test_large.py tests/evaluation/test_nearest.py",
    ),
    "losses": ("losses/*.py", "tests/losses"),
}
KERNELS = {"vmf/fused.py", "scoring/fused.py", "losses/blockwise_kernels.py"}
# Constants that affect only speed and memory; tests check that results do not depend on them.
SPEED = {
    "blockwise": "_BLOCK_BYTES",
    "distributions": "_BLOCK",
    "kernels": "_CHUNK _EAGER_ELEMENTS_PER_THREAD _EAGER_ELEMENTS_ON_GPU",
    "matrix": "_CELLS _MIN_ROWS _BLOCK_ELEMENTS _WORTH_COMPILING",
    "rates": "_TAIL",
    "reductions": "_BLOCK_CELLS _MAXIMA",
    "template_pairs": "_STRIP_CELLS _SPARSE _PAIRS _SHARP_PAIRS _GATHERED",
    "templates": "_LOOKUPS _BLOCK",
}
# Those of Cosmic Ray's 250 operators that resemble a typing error. Others, such as a shift in place of a
# product, end in a TypeError and would only embellish the table.
BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_Mul Pow_Mul BitOr_BitAnd BitAnd_BitOr"
COMPARISON = "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
UNARY = "Delete_USub Delete_Not Delete_Invert"
OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd NumberReplacer "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer ZeroIterationForLoop"
)
OPERATORS = [
    *(f"ReplaceBinaryOperator_{name}" for name in BINARY.split()),
    *(f"ReplaceComparisonOperator_{name}" for name in COMPARISON.split()),
    *(f"ReplaceUnaryOperator_{name}" for name in UNARY.split()),
    *OTHERS.split(),
]
PYTEST = [
    # Plain asserts: pytest's assertion rewriting would replace the module loader that Patch uses.
    *("-q", "-s", "-n0", "--assert=plain", "-m", "not slow and not compiler"),
    *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:warnings"),
]
MAX_TEST_SECONDS = 10.0  # processor time for the tests of one mutant
LOG = Path("mutants.log")


@dataclass(frozen=True)
class Mutant:
    """One change: the ``occurrence``-th that an operator of Cosmic Ray finds in a file."""

    path: Path
    operator: str
    occurrence: int
    position: tuple[int, int]  # line and column
    lines: range  # lines whose tests are run
    kind: str  # "body" (of a function), "default" (of a parameter), "constant" (of the module) or "speed"

    def code(self) -> str:
        """The mutated file. This also changes the cached tree, so call it only in a fork."""
        return MutationVisitor(self.occurrence, _operator(self.operator)).walk(_tree(self.path)).get_code()

    @property
    def key(self) -> str:
        """Name in the log; it stays the same as long as the text of the line does."""
        line, column = self.position
        text = self.path.read_text().splitlines()[line - 1].strip()
        return f"{self.path.relative_to(SOURCE)} {self.operator} {self.occurrence % 2} {column} {text}"


@cache
def _tree(path: Path) -> Any:
    return parso.parse(path.read_text())


@cache
def _operator(name: str) -> Any:
    return get_operator(f"core/{name}")()


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, except in the parts that are not mutated."""
    spans = _spans(ast.parse(path.read_text()), path.stem)
    nodes = list(ast_nodes(_tree(path)))
    for name in OPERATORS:
        positions = (start for node in nodes for start, _ in _operator(name).mutation_positions(node))
        for occurrence, position in enumerate(positions):
            inside = [span for span in spans if span.start <= position < span.end]
            innermost = max(inside, key=lambda span: span.start, default=None)
            if innermost and innermost.kind:
                yield Mutant(path, name, occurrence, position, innermost.lines, innermost.kind)


class _Span(NamedTuple):
    """A statement or part of one; start and end are (line, column); an empty kind means it is not mutated."""

    start: tuple[int, int]
    end: tuple[int, int]
    kind: str
    lines: range


def _spans(tree: ast.Module, module: str) -> list[_Span]:
    spans: list[_Span] = []

    def add(node: Any, kind: str, first: int = 0, last: int = 0) -> None:
        start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
        spans.append(_Span(start, end, kind, range(first, last + 1)))

    def visit(node: Any, within: Any) -> None:
        branches = [node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())]
        names = ("body", "orelse", "finalbody")
        inner = [statement for part in branches for name in names for statement in getattr(part, name, ())]
        if isinstance(node, ast.FunctionDef):
            add(node, "")
            if not isinstance(within, ast.FunctionDef):
                for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    add(default, "default", node.body[0].lineno, node.end_lineno or 0)
        elif isinstance(within, ast.FunctionDef):
            last = max(node.lineno, inner[0].lineno - 1) if inner else node.end_lineno
            add(node, "body", node.lineno, last)
        else:
            add(node, _constant(node, module) if within is tree else "")
        if isinstance(node, ast.AnnAssign):
            add(node.annotation, "")
        holder = node if isinstance(node, ast.FunctionDef | ast.ClassDef) or within is tree else within
        for statement in inner:
            visit(statement, holder)

    for statement in tree.body:
        visit(statement, tree)
    return spans


def _constant(node: ast.stmt, module: str) -> str:
    if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Subscript):  # a type alias
        return ""
    names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return "speed" if names & {*SPEED.get(module, "").split()} else "constant"


class Patch:
    """Patches a mutant into an imported module; used in a fork."""

    def __init__(self, path: Path, functions: list[FunctionType]) -> None:
        parts = ("spherecf", *path.relative_to(SOURCE).with_suffix("").parts)
        self.path, self.module = path, sys.modules[".".join(parts).removesuffix(".__init__")]
        self.functions = [f for f in functions if f.__code__.co_filename == str(path)]

    def apply(self, mutant: Mutant) -> str:
        """Apply the mutant and return the changed line."""
        code = mutant.code()
        tree = ast.parse(code)
        if mutant.kind == "body":
            compiled = self.module.__loader__.source_to_code(code.encode(), str(self.path))  # type: ignore
            codes = {(item.co_qualname, item.co_firstlineno): item for item in _codes(compiled)}
            for function in self.functions:
                old = function.__code__
                function.__code__ = codes.get((old.co_qualname, old.co_firstlineno), old)
        elif mutant.kind == "constant":
            self._constant(next(node for node in tree.body if node.end_lineno >= mutant.position[0]))
        else:
            definitions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            self._defaults(next(node for node in definitions if node.body[0].lineno == mutant.lines[0]))
        return code.splitlines()[mutant.position[0] - 1].strip()

    def _constant(self, statement: ast.stmt) -> None:
        namespace = dict(vars(self.module))
        exec(compile(ast.Module([statement], []), str(self.path), "exec"), namespace)
        names = [
            n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        ]
        old = {name: vars(self.module)[name] for name in names}
        for module in [module for name, module in sys.modules.items() if name.startswith("spherecf")]:
            for name in names:  # also in modules that imported it
                if vars(module).get(name) is old[name]:
                    setattr(module, name, namespace[name])

        def new(value: object) -> object:
            return next((namespace[name] for name in names if old[name] is value), value)

        for function in self.functions:  # and where it is a default value
            function.__defaults__ = tuple(map(new, function.__defaults__ or ())) or None
            function.__kwdefaults__ = {k: new(v) for k, v in (function.__kwdefaults__ or {}).items()} or None

    def _defaults(self, node: ast.FunctionDef) -> None:
        first = min(line.lineno for line in (node, *node.decorator_list))
        names = [argument.arg for argument in node.args.kwonlyargs]
        pairs = [pair for pair in zip(names, node.args.kw_defaults, strict=True) if pair[1]]
        for function in self.functions:
            if function.__name__ == node.name and first <= function.__code__.co_firstlineno <= node.lineno:
                function.__defaults__ = tuple(map(self._value, node.args.defaults)) or None
                function.__kwdefaults__ = {name: self._value(value) for name, value in pairs} or None

    def _value(self, node: Any) -> object:
        return eval(compile(ast.Expression(node), str(self.path), "eval"), vars(self.module))


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def in_fork(work: Callable[[], object], seconds: float = 0) -> tuple[int, object]:
    """Run the work in a fork, within ``seconds`` of processor time; exit status and returned value."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as channel:
        if not (child := os.fork()):
            try:
                if seconds:
                    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                channel.write(pickle.dumps(work()))
                channel.flush()
                os._exit(0)
            except BaseException:
                os._exit(9)
        status = os.waitpid(child, 0)[1]
        channel.seek(0)
        content = channel.read()
        return status, pickle.loads(content) if content else None


def failure(items: list[pytest.Item], before: Callable[[pytest.Item], object] = id) -> str | None:
    """Run the tests up to the first failure and return its name; ``before`` is called before each test."""
    for item, following in zip(items, [*items[1:], None]):
        before(item)
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return None


def paths_of(room: str) -> list[Path]:
    """The mutated files of a room, then its tests."""
    sources, tests = ROOMS[room]
    files = [file for file in sorted(SOURCE.glob(sources)) if str(file.relative_to(SOURCE)) not in KERNELS]
    return [*files, *(Path(test).resolve() for test in tests.split())]


class Room:
    """Coverage of a room: the tests that run each line of its files, and their processor times."""

    def __init__(self, name: str, items: list[pytest.Item]) -> None:
        self.name, own_paths = name, set(paths_of(name))
        own_items = [item for item in items if own_paths & {item.path, *item.path.parents}]
        self.items = {item.nodeid: item for item in own_items}
        self.files = [str(path) for path in own_paths if SOURCE in path.parents]
        status, measurement = in_fork(lambda: self._measure(own_items))
        if not isinstance(measurement, tuple):
            sys.exit(f"{name}: {measurement or status} without any mutation")
        self.tests, self.seconds = measurement

    def _measure(self, items: list[pytest.Item]) -> object:
        coverage = Coverage(data_file=None, include=self.files)
        starts: list[tuple[str, float]] = []

        def record_start(item: pytest.Item) -> None:
            coverage.switch_context(item.nodeid)
            starts.append((item.nodeid, time.process_time()))

        coverage.start()
        if failed := failure(items, record_start):
            return f"{failed} fails"
        coverage.stop()
        ends = [start for _, start in starts[1:]] + [time.process_time()]
        seconds = {name: end - start for (name, start), end in zip(starts, ends, strict=True)}
        return {file: coverage.get_data().contexts_by_lineno(file) for file in self.files}, seconds

    def covering(self, mutant: Mutant) -> list[pytest.Item]:
        """The tests that run the mutant's lines, fastest first; for a constant, those that run its file."""
        lines = self.tests[str(mutant.path)]
        chosen = lines if mutant.kind == "constant" else mutant.lines
        names = {name for line in chosen for name in lines.get(line, ())} - {""}
        ordered = sorted(names, key=self.seconds.__getitem__)
        ends = accumulate(map(self.seconds.__getitem__, ordered))
        return [self.items[name] for name, end in zip(ordered, ends) if end < MAX_TEST_SECONDS]

    def try_mutant(self, mutant: Mutant, patch: Patch) -> tuple[str, str]:
        """`killed` and the failed test; or `survived` or `not run` (by any test), and the changed line."""
        items = self.covering(mutant)

        def work() -> tuple[str, str]:
            try:
                line = patch.apply(mutant)
            except (TypeError, ValueError, NameError, ArithmeticError) as error:  # from a new constant
                return "killed", repr(error)
            if not items:
                return "not run", line
            failed = failure(items)
            return ("killed", failed) if failed else ("survived", line)

        seconds = 5 + 10 * sum(self.seconds[item.nodeid] for item in items)
        status, verdict = in_fork(work, seconds)
        if verdict is None and os.waitstatus_to_exitcode(status) > 0:
            sys.exit(f"{mutant.key}: ended with {status}")
        return verdict or ("killed", "the time limit")  # type: ignore[return-value]


class Session:
    """pytest plugin that runs the mutants in place of the collected tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        log = LOG.read_text().splitlines() if options.again else []
        self.verdicts = {key: verdict for key, verdict, _ in map(json.loads, log)}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # shared by all forks
        functions = [f for f in gc.get_objects() if type(f) is FunctionType]
        gc.freeze()  # so that forks do not copy unchanged memory
        rows = [self._room(Room(name, session.items), functions) for name in self.options.rooms]
        gc.unfreeze()
        say("\n| package | mutants | tried | killed | survived | not run by any test |")
        say("| --- | --- | --- | --- | --- | --- |", *rows, sep="\n")
        return True

    def _room(self, room: Room, functions: list[FunctionType]) -> str:
        patches = {file: Patch(Path(file), functions) for file in room.files}
        mutants = [mutant for file in sorted(room.files) for mutant in mutants_of(Path(file))]
        chosen = random.Random(self.options.seed).sample(mutants, len(mutants))[: self.options.sample]
        mutants = [mutant for mutant in mutants if mutant.kind != "speed"]
        chosen = [mutant for mutant in chosen if mutant.kind != "speed"]
        if self.options.again:
            chosen = [mutant for mutant in mutants if mutant.key in self.verdicts]
        seconds = sum(room.seconds.values())
        say(f"{room.name}: {len(room.items)} tests, {seconds:.0f} s; {len(mutants)} mutants")
        counts: Counter[str] = Counter()
        with LOG.open("a") as log:
            for mutant in chosen:
                old_verdict = self.verdicts.get(mutant.key)
                if old_verdict == "killed":
                    counts[old_verdict] += 1
                    continue
                verdict, line = room.try_mutant(mutant, patches[str(mutant.path)])
                if verdict == "not run":
                    verdict = old_verdict or verdict  # with --tests, only some tests run
                counts[verdict] += 1
                log.write(json.dumps([mutant.key, verdict, line]) + "\n")
                log.flush()
                if verdict != "killed":
                    position = f"{mutant.path.relative_to(SOURCE)}:{mutant.position[0]} {mutant.operator}"
                    say(f"{verdict}: {position}, {len(room.covering(mutant))} tests\n    {line}")
        numbers = (
            len(mutants),
            len(chosen),
            *(counts[verdict] for verdict in ("killed", "survived", "not run")),
        )
        return f"| {room.name} | {' | '.join(f'{number:,}' for number in numbers)} |"


say = partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing; see the docstring of this file.")
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--sample", type=int, help="number of mutants of each room, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order in which mutants are tried")
    parser.add_argument("--tests", nargs="+", help="run only these tests")
    parser.add_argument("--again", action="store_true", help=f"try only the mutants of {LOG} that survived")
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(ROOMS)}")
    if not options.again:
        LOG.unlink(missing_ok=True)
    sys.modules["triton"] = None  # type: ignore[assignment]  # its kernels are not mutated, and its interpreter is slow
    # Any failing example is enough: do not shrink it, and do not save it.
    phases = [Phase.explicit, Phase.generate]
    settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    settings.load_profile("mutants")
    chosen = options.tests or [str(path) for room in options.rooms for path in paths_of(room)]
    sys.exit(pytest.main([*chosen, *PYTEST], plugins=[Session(options)]))


if __name__ == "__main__":
    main()
