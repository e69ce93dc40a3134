"""Check what the pages promise: links, commands, code and paths. Nothing is downloaded and no command is run.

    python docs/check.py [PAGE.md ...]

- relative links and their anchors resolve, and docs/index.md leads to every page beside it;
- each `spherecf ...` names an existing verb and only options it has; so do make, and scripts behind `python`;
- Python blocks compile, the names they take from spherecf are public, and blocks with `>>>` run as doctests;
- files named as `src/...`, `docs/...`, `benchmarks/...` and the like exist;
- docs/commands.md and docs/reference/ are what their scripts write, and every command has an example;
  examples of the reference take nothing but public names, and need no name that they do not import;
  THIRD_PARTY.md names the packages that pyproject.toml names;
- no path of somebody's machine and no address of a package registry stands in pages, code or recipes.
"""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import symtable
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # pages show the benchmarks too
ROOMS = r"(?:src|docs|tests|benchmarks|recipes|\.ci)"  # folders whose files a page may name
SHELL = ("", "bash", "console", "sh", "shell", "indented")  # most pages fence commands without a language
MACHINE = re.compile(r"(?<![\w.:/-])/(?:work|tmp|opt|root|home/\w+)(?![\w-])|\bC:\\Users")
REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|debian|anaconda|conda|download\.pytorch|rubygems)\.(?:org|com)\b"
)


class Problem(NamedTuple):
    """Something a page promises and the repository does not keep."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}: {self.text}"


class Block(NamedTuple):
    """Code of a page: number of its first line, language (`indented` without fence), lines."""

    line: int
    language: str
    lines: list[str]


def split_page(text: str) -> tuple[list[tuple[int, str]], list[Block]]:
    """Numbered lines of prose, and the code blocks."""
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence: Block | None = None
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*(?:```|~~~)\s*(\S*)", line):
            if fence is None:
                fence = Block(number + 1, match[1].lower(), [])
            else:
                blocks.append(fence)
                fence = None
        elif fence is not None:
            fence.lines.append(line)
        elif line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            if not before.startswith("    "):
                blocks.append(Block(number, "indented", []))
            blocks[-1].lines.append(line[4:])
        else:
            prose.append((number, line))
        before = line
    if fence is not None:
        raise SyntaxError(f"the code block opened in line {fence.line - 1} is never closed")
    return prose, blocks


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts make them, and those set by hand."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for _, line in split_page(text)[0]:
        if line.startswith("#"):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#").strip()).lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            number = 0
            while (name := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(name)
    return found


def check_links(page: Path, prose: list[tuple[int, str]]) -> Iterator[Problem]:
    """Relative links and images, with anchors."""
    for number, line in prose:
        for target in re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield Problem(page, number, f"link to {target}: there is no file {path}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
                yield Problem(page, number, f"link to {target}: {file.name} has no anchor #{anchor}")


def check_named_files(page: Path, prose: list[tuple[int, str]]) -> Iterator[Problem]:
    """Files and folders of the repository that are named anywhere; a pattern must match something."""
    for number, line in prose:
        for name in dict.fromkeys(re.findall(rf"(?<![\w/.-])(?<!\]\(){ROOMS}/[\w./*-]*", line)):
            name = name.rstrip(".")
            if not (any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()):
                yield Problem(page, number, f"there is no {name} in the repository")


def commands(first: int, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Words of every command of a block: continuation lines joined, comments and variables taken off."""
    number = 0
    while number < len(lines):
        start, text = number, lines[number]
        while text.endswith("\\") and number + 1 < len(lines):
            number += 1
            text = text[:-1] + lines[number]
        number += 1
        for part in re.split(r"&&|\|\||;|\s\|\s", text):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue  # prose or output, not a command
            while words and (words[0] == "$" or re.match(r"\w+=", words[0])):
                del words[0]
            if words:
                yield first + start, words


def check_command(page: Path, number: int, words: list[str], app: Any) -> Iterator[Problem]:
    """One command: `spherecf`, `python -m studies`, `python script.py` and `make` are known, others pass."""
    for at in range(1, len(words) - 1):
        if words[at] == "-m" and words[at + 1] in ("spherecf", "studies"):  # started by python or torchrun
            words = words[at + 1 :]
            break
    program = Path(words[0]).name
    if program in ("spherecf", "studies"):
        for text in unknown_words(words[1:], app if program == "spherecf" else studies(), program):
            yield Problem(page, number, text)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words[1:]:
            if re.fullmatch(r"[\w-]+", word) and not word.startswith("-") and word not in targets:
                yield Problem(page, number, f"Makefile has no target {word!r} (it has {', '.join(targets)})")
    elif program.startswith("python") and len(words) > 1 and re.match(ROOMS + r"/.*\.py$", words[1]):
        script = ROOT / words[1]
        text = script.read_text() if script.exists() else ""
        for word in words[2:] if text else []:
            option = word.split("=")[0]
            if option.startswith("--") and f'"{option}"' not in text:
                yield Problem(page, number, f"{words[1]} has no option {option}")


@cache
def studies() -> Any:
    """The commands of `python -m studies`."""
    import typer.main

    return typer.main.get_command(importlib.import_module("studies.__main__").app)


def unknown_words(words: list[str], command: Any, verb: str) -> Iterator[str]:
    """Verbs and options of a command line that ``verb`` does not have."""
    for word in words:
        options = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        option = word.split("=")[0]
        if re.match(r"--?[a-z]", word):
            if option not in options | {"--help"}:
                known = ", ".join(sorted(name for name in options if name.startswith("-")))
                yield f"`{verb}` has no option {option} (it has {known or 'none'})"
        elif verbs := getattr(command, "commands", {}):
            if re.match(r"[.<>…\[]", word):
                return  # a placeholder for any verb
            for name in word.split("|"):
                if name not in verbs:
                    yield f"`{verb}` has no verb {name!r} (it has {', '.join(sorted(verbs))})"
                    return
            command, verb = verbs[word.split("|")[0]], f"{verb} {word}"


def check_python(page: Path, block: Block, names: dict[str, Any]) -> Iterator[Problem]:
    """A Python block compiles and takes only public names; with `>>>` it is run as a doctest."""
    source = "\n".join(block.lines) + "\n"
    if ">>> " in source:
        for example in doctest.DocTestParser().get_examples(source):
            yield from check_names(page, block.line + example.lineno, ast.parse(example.source))
        test = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), block.line - 1)
        runner = doctest.DocTestRunner(
            optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
        )
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        names.update(test.globs)
        if runner.failures:
            yield Problem(page, block.line, "this doctest fails:\n" + "".join(report).rstrip())
        return
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield Problem(
            page, block.line + (error.lineno or 1) - 1, f"this Python does not compile: {error.msg}"
        )
        return
    yield from check_names(page, block.line, tree)


def check_names(page: Path, first: int, tree: ast.AST) -> Iterator[Problem]:
    """Names taken from spherecf are public; ``first`` is the number of the code's first line."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if id(node) in inner:
            continue  # a part of a longer dotted name, which is looked at as a whole
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spherecf":
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names if alias.name.split(".")[0] == "spherecf"]
        elif isinstance(node, ast.Attribute) and re.match(r"(scf|spherecf)\.", ast.unparse(node)):
            wanted = [re.sub(r"^scf\.", "spherecf.", ast.unparse(node))]
        else:
            continue
        for name in wanted:
            if problem := not_public(name):
                yield Problem(page, first + node.lineno - 1, problem)


def check_reference(page: Path) -> Iterator[Problem]:
    """Examples of the reference need no name beside those of their page, numpy as np and torch."""
    text = page.read_text()
    known = {*vars(builtins), *re.findall(r"(?m)^## (\w+)$", text), "np", "torch"}
    for block in split_page(text)[1]:
        examples = doctest.DocTestParser().get_examples("\n".join(block.lines) + "\n")
        source = "".join(example.source for example in examples)
        for name in sorted(free_names(symtable.symtable(source, page.name, "exec")) - known):
            yield Problem(page, block.line, f"the example does not import {name}")
        for example in examples:
            yield from check_names(page, block.line + example.lineno, ast.parse(example.source))


def free_names(table: symtable.SymbolTable) -> set[str]:
    """Global names that code uses and does not define."""
    defined = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    used = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_global() or table.get_type() == "module"
    }
    return used.union(*map(free_names, table.get_children())) - (
        defined if table.get_type() == "module" else set()
    )


def not_public(name: str) -> str:
    """Why a dotted name is not a public one, or ""; what lies behind a call is not looked at."""
    thing: Any = importlib.import_module("spherecf")
    for part in name.split("(")[0].split(".")[1:]:
        try:
            outer, thing = thing, getattr(thing, part)
        except (AttributeError, ImportError):
            return f"there is no {name}"
        if part not in getattr(outer, "__all__", [part]) and not inspect.ismodule(thing):
            return f"{name} is not public"
    return ""


def check_page(page: Path, app: Any) -> list[Problem]:
    """All problems of one page."""
    text = page.read_text()
    try:
        prose, blocks = split_page(text)
    except SyntaxError as error:
        return [Problem(page, 1, str(error.msg))]
    problems = [*check_links(page, prose), *check_named_files(page, list(enumerate(text.splitlines(), 1)))]
    for number, line in prose:
        for inline in re.findall(r"`((?:spherecf|make|python) [^`]+)`", line):
            for _, words in commands(number, [inline]):
                problems += check_command(page, number, words, app)
    names: dict[str, Any] = {}
    for block in blocks:
        if block.language in SHELL:
            for number, words in commands(block.line, block.lines):
                problems += check_command(page, number, words, app)
        if block.language in ("python", "py") or (
            block.language == "indented"
            and re.match(r">>> |from \w[\w.]* import |import \w+", block.lines[0])
        ):
            problems += check_python(page, block, names)
    return problems


def check_foreign(file: Path) -> list[Problem]:
    """Paths of somebody's machine and registry addresses."""
    return [
        Problem(file, number, f"{found[0]!r} is known to one machine only: say it in general terms")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if (found := MACHINE.search(line) or REGISTRY.search(line))
    ]


def check_index(folder: Path) -> list[Problem]:
    """docs/index.md must lead to every page beside it."""
    index = folder / "index.md"
    text = index.read_text()
    return [
        Problem(index, 1, f"no link leads to {page.name}")
        for page in sorted(folder.glob("*.md"))
        if page != index and f"]({page.name}" not in text
    ]


def check_generated() -> Iterator[Problem]:
    """The pages made of --help and of docstrings are what these say now."""
    for name in ("commands", "licences", "reference"):
        script = ROOT / "docs" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, script, "--check"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"{name} differs"])[-1]
            yield Problem(script, 1, f"{last}: run python docs/{name}.py")


def main(arguments: list[str]) -> int:
    """Print every problem as `file:line: what`; 1 if there is one."""
    import typer.main

    from spherecf.cli import app

    pages = [Path(name).resolve() for name in arguments] or [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
    ]
    root = typer.main.get_command(app)
    problems = [problem for page in sorted(pages) for problem in check_page(page, root)]
    files = list(pages)
    if not arguments:
        problems += [*check_index(ROOT / "docs"), *check_generated()]
        problems += [
            problem for page in (ROOT / "docs/reference").glob("*.md") for problem in check_reference(page)
        ]
        folders = ("src", "tests", "benchmarks", "recipes", "docs")
        files += [
            file for folder in folders for end in ("py", "toml") for file in ROOT.glob(f"{folder}/**/*.{end}")
        ]
        files += [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "pyproject.toml"]
    problems += [problem for file in sorted(files) for problem in check_foreign(file)]
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {len(files)} files: {len(problems) or 'no'} problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
