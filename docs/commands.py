"""Write docs/commands.md, the reference of all commands, from the commands themselves.

python docs/commands.py            writes the page
python docs/commands.py --check    says if the page is not what it would write (docs/check.py does so)
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).resolve().parent / "commands.md"
HEAD = """# Which commands are there?

JSON goes to stdout, tables, messages and progress to stderr. Exit codes: 0 done, whatever the decision;
1 failed, with one line that says what to do (also where stdout is full, closed, or a pipe that nobody reads);
2 wrong usage; 130 interrupted. `spherecf --key-file=FILE ...`, or the variable SPHERECF_KEY_FILE, names the
key of encrypted galleries and embeddings files. This page is written by `python docs/commands.py`
from what `--help` says.
"""


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    inner: dict[str, Any] = getattr(command, "commands", {})
    if not inner:
        yield name, command
    for verb in sorted(inner):
        yield from walk(f"{name} {verb}", inner[verb])


def cell(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def usage(name: str, command: Any) -> str:
    words = [argument.shown for argument in arguments(command)]
    return " ".join([name, *words, "[OPTIONS]"] if options(command) else [name, *words])


class Argument(NamedTuple):
    """What the page says of one positional argument."""

    name: str
    shown: str
    help: str


def arguments(command: Any) -> list[Argument]:
    found = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.name.upper()
            shown = f"{name}..." if parameter.nargs != 1 else name
            shown = shown if parameter.required else f"[{shown}]"
            found.append(Argument(name, shown, parameter.help or ""))
    return found


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]


def kind(option: Any) -> str:
    return {"Path": "PATH", "int": "NUMBER", "float": "NUMBER"}.get(annotation(option), "TEXT")


def annotation(option: Any) -> str:
    stated = option.type_descriptor.annotation
    return getattr(stated, "__name__", str(stated))


def option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    given = "" if option.is_flag else f" {kind(option)}"
    default = option.default
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    stated = f"`{default}`" if plain and str(default) else "required" if option.required else ""
    return f"| {names}{given} | {cell(option.help or '')} | {stated} |"


def section(name: str, command: Any) -> str:
    example = re.sub(r"^Example: ", "", command.epilog or "")
    parts = [f"## {name}", f"    {usage(name, command)}", *paragraphs(command.help or "")]
    if own := [argument for argument in arguments(command) if argument.help]:
        parts.append("\n".join(f"- {argument.name}: {cell(argument.help)}" for argument in own))
    if rows := [option_row(option) for option in options(command)]:
        parts.append("\n".join(["| option | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join([*parts, "Example:", f"    {example}"])


def paragraphs(text: str) -> list[str]:
    return [cell(part) for part in re.split(r"\n\s*\n", text.strip())]


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a command without an example.
    """
    import typer.main

    from spherecf.cli import app

    found = list(walk("spherecf", typer.main.get_command(app)))
    if bare := [name for name, command in found if not (command.epilog or "").startswith("Example: ")]:
        raise ValueError(f"every help text ends with `Example: ...`, these do not: {', '.join(bare)}")
    return "\n".join([HEAD, *(section(name, command) + "\n" for name, command in found)])


def main(arguments: list[str]) -> int:
    wanted = page()
    if "--check" not in arguments:
        PAGE.write_text(wanted)
        return 0
    return int(not PAGE.exists() or PAGE.read_text() != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
