"""Write THIRD_PARTY.md: the licences of the packages that SphereCF needs at run time, from their metadata.

python docs/licences.py            writes the page, from the packages installed here
python docs/licences.py --check    says if it does not list what pyproject.toml names (docs/check.py does so)
"""

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "THIRD_PARTY.md"
HEAD = """# Under which licences do the packages come that it needs?

SphereCF itself is Apache-2.0 ([LICENSE](LICENSE)). This page lists what it and its extras bring at run time
(not `dev`), from the metadata of the packages. Bundled libraries have licences of their own, in the packages.
Written by `python docs/licences.py` on Linux with torch's wheel for the CPU; the default one brings packages
of NVIDIA, too.

| package | needed by | licence |
| ------- | --------- | ------- |
"""


def declared() -> dict[str, str]:
    """Packages that pyproject.toml names, each with what needs it: SphereCF itself or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"spherecf": project["dependencies"], **project["optional-dependencies"]}
    return {
        canonicalize_name(Requirement(text).name): who
        for who, texts in reversed(wanted.items())  # the package itself has the last word
        for text in texts
        if who not in ("dev", "audit") and not text.startswith("spherecf[")
    }


def licence(found: Distribution) -> str:
    """The expression, or else the classifiers, or else the first line of the text."""

    def all_of(name: str) -> list[str]:
        return [str(text).strip() for text in found.metadata.get_all(name) or []]

    classifiers = [text.split(" :: ") for text in all_of("Classifier") if text.startswith("License ::")]
    named = ", ".join(words[-1] for words in classifiers if words[-1] != "OSI Approved")
    texts = [line for text in all_of("License") for line in text.splitlines()]
    return next(filter(None, [*all_of("License-Expression"), named, *texts, "see the package"]))


def rows() -> list[str]:
    """A line for each package and all that it needs, wherever it is installed."""
    needed = declared()
    waiting, missing = list(needed), []
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            missing.append(name)
            continue
        for requirement in map(Requirement, requires):
            other = canonicalize_name(requirement.name)
            if other not in needed and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
                needed[other] = name
                waiting.append(other)
    if missing:
        sys.exit(f"not installed: {', '.join(sorted(missing))}; pip install -e '.[dev]'")
    return [f"| {name} | {needed[name]} | {licence(distribution(name))} |\n" for name in sorted(needed)]


def outdated() -> list[str]:
    """Packages that pyproject.toml names and the page does not, or the other way round."""
    wanted, listed = declared(), re.findall(r"^\| ([\w.-]+) +\| ([\w.-]+) ", PAGE.read_text(), re.MULTILINE)
    return sorted({*wanted} ^ {name for name, who in listed if who in wanted.values()})


def main(arguments: list[str]) -> None:
    """Write the page, or say what it lacks."""
    if arguments != ["--check"]:
        PAGE.write_text(HEAD + "".join(rows()))
    elif names := outdated():
        sys.exit(f"{PAGE.name} differs in {', '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
