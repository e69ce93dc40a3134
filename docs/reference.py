"""Write docs/reference/, one page for each room with its public names and its results, from their docstrings.

python docs/reference.py            writes the pages
python docs/reference.py --check    says which page is not what it would write (docs/check.py does so)
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import spherecf

FOLDER = Path(__file__).resolve().parent / "reference"
HEAD = "<!-- Written by `python docs/reference.py` from the docstrings. -->\n\n"
_SECTION = re.compile(r"(Args|Attributes|Shapes|Raises|Returns|Example|Source):(?: (.*))?")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)")


def rooms() -> list[str]:
    return [name for name in spherecf.__all__ if inspect.ismodule(getattr(spherecf, name))]


def public(room: Any) -> dict[str, Any]:
    """Names that a room shows; of a module without ``__all__`` those it defines."""
    if hasattr(room, "__all__"):
        return {name: getattr(room, name) for name in sorted(room.__all__)}
    own = {name: thing for name, thing in vars(room).items() if not name.startswith("_")}
    return {name: own[name] for name in sorted(own) if getattr(own[name], "__module__", "") == room.__name__}


@cache
def results() -> list[type]:
    """Types that callers get and do not construct: what public names return, and what it contains."""
    waiting = [thing for name in rooms() for thing in public(getattr(spherecf, name)).values()]
    listed = {thing for thing in waiting if inspect.isclass(thing)}
    known: set[type] = set()
    while waiting:
        returned = {kind for thing in waiting for hint in contents(thing) for kind in classes(hint)}
        waiting = list(returned - listed - known)
        known.update(waiting)
    return sorted(known, key=attrgetter("__module__", "__name__"))


def contents(thing: Any) -> Iterator[Any]:
    """Type hints of what a function returns, and of the attributes, properties and methods of a class."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) or issubclass(thing, tuple):
            yield from get_type_hints(thing).values()
        for _, method in methods(thing):
            yield from contents(method.fget if isinstance(method, property) else method)
    elif inspect.isroutine(thing):
        function = inspect.unwrap(getattr(thing, "__func__", thing))
        hints = SimpleNamespace(__annotations__={"returns": function.__annotations__.get("return")})
        yield get_type_hints(hints, function.__globals__)["returns"]


def classes(hint: Any) -> Iterator[type]:
    """Classes of this package in a type hint."""
    if inspect.isclass(hint) and hint.__module__.startswith("spherecf.") and hint.__doc__:
        yield hint
    for inner in get_args(hint):
        yield from classes(inner)


def page(name: str) -> str:
    room = getattr(spherecf, name)
    text = f"{HEAD}# spherecf.{name}\n\n{markdown(inspect.getdoc(room) or '')}\n"
    text += "".join(f"\n{entry(key, thing)}" for key, thing in public(room).items())
    own = [kind for kind in results() if kind.__module__.split(".")[1] == name]
    if own:
        text += (
            "\n# Results\n\nTypes of what the names above return or contain; callers do not construct them.\n"
        )
    return text + "".join(f"\n{entry(kind.__name__, kind)}" for kind in own)


def entry(name: str, thing: Any) -> str:
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return f"## {name}\n\n    {name}: {type(thing).__name__}\n"
    text = f"## {name}\n\n{signature(name, thing)}\n{markdown(inspect.getdoc(thing) or '')}\n"
    for key, method in methods(thing) if inspect.isclass(thing) else ():
        text += f"\n### {name}.{key}\n\n{signature(key, method)}\n{markdown(inspect.getdoc(method) or '')}\n"
    return text


def methods(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods that a class defines and documents itself."""
    for key, value in vars(thing).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not key.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield key, value if isinstance(value, property) else function


def signature(name: str, thing: Any) -> str:
    """As code, a parameter a line where one line is too long."""
    if isinstance(thing, property):
        return f"    {name}\n"
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):  # of a class that is made otherwise
        return f"    {name}\n"
    parameters = [
        str(p.replace(annotation=p.empty, default=_in_order(p.default)))
        for p in found.parameters.values()
        if p.name not in ("self", "cls")
    ]
    line = f"{name}({', '.join(parameters)})"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"        {p},\n" for p in parameters) + "    )"
    return f"    {line}\n"


def _in_order(default: object) -> object:
    """Sets print their elements in another order each time."""
    return sorted(default) if isinstance(default, set | frozenset) else default


def markdown(doc: str) -> str:
    """A docstring as Markdown: sections get a heading, their entries a list, examples a block of code."""
    parts, lines, section = [], doc.splitlines(), ""
    for number, line in enumerate(lines):
        if begins := _SECTION.fullmatch(line):
            section = begins[1]
            parts += ["", f"**{section}:** {begins[2] or ''}".strip(), ""]
            if section == "Example":
                parts.append("```python")
        elif section == "Example" and (line.startswith("    ") or not line):
            parts.append(line[4:])
        elif section and line.startswith("    "):
            stated = _ENTRY.fullmatch(line[4:])
            parts.append(f"- `{stated[1]}`: {stated[2]}" if stated else f"  {line[4:].strip()}")
        else:
            section = section if not line else ""
            parts.append(line)
        ends = number + 1 == len(lines) or (lines[number + 1] and lines[number + 1][0] != " ")
        if section == "Example" and ends and parts[-1] != "```python":
            while not parts[-1]:
                parts.pop()
            parts += ["```", ""]
            section = ""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip()


def main(arguments: list[str]) -> str | None:
    pages = {FOLDER / f"{name}.md": page(name) for name in rooms()}
    written = {path: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    if "--check" in arguments:
        stale = [path.name for path in {**pages, **written} if pages.get(path) != written.get(path)]
        return f"docs/reference is not what the docstrings say: {', '.join(stale)}" if stale else None
    FOLDER.mkdir(exist_ok=True)
    for path in written.keys() - pages.keys():
        path.unlink()
    for path, text in pages.items():
        path.write_text(text, "utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
