"""Does the suite pass on other versions of Python, torch and NumPy?

    python tests/versions.py python3.11,2.6.0,2.0.* python3.14,newest,newest
    make versions VERSIONS="python3.11,2.6.0,2.0.* python3.14,newest,newest"

Each argument is an executable, and versions of torch and NumPy as pip takes them after ``==``; ``newest``
leaves the choice to pip. For each, a virtual environment with the extra ``dev`` is made in the folder, and
`pytest` runs in it, in one process. Bounds of pyproject.toml on torch and NumPy do not count, in order to try
what lies beyond them. Results are in `FOLDER/results.json`: a suite that ran is not run again, and what was
interrupted or could not be installed is tried again. Then the table is printed. An environment takes up to
7 GB: delete the folder afterwards. The exit code is 1 if a test failed or a suite could not be run.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
NEWEST = "newest"
PINNED = ("torch", "numpy")
ASK = (
    "import json, platform, torch, numpy;"
    "print(json.dumps([platform.python_version(), torch.__version__, numpy.__version__]))"
)


def requirements(project: dict[str, Any], extra: str = "dev") -> list[str]:
    """What the project and an extra need, with extras that this one names, but without what is pinned."""
    extras, found = project["optional-dependencies"], []
    pending = [*project["dependencies"], f"spherecf[{extra}]"]
    for line in pending:  # grows on the way
        own = re.fullmatch(r"spherecf\[(.+)\]", line)
        if own:
            pending += [each for name in own[1].split(",") for each in extras[name.strip()]]
        elif re.match(r"[\w.-]+", line)[0] not in PINNED:
            found.append(line)
    return found


def pins(torch: str, numpy: str) -> list[str]:
    """Requirements of pip."""
    return [name if asked == NEWEST else f"{name}=={asked}" for name, asked in zip(PINNED, (torch, numpy))]


class NotInstalled(Exception):
    """Why an environment could not be made, in one line."""


def ordered(command: list[str]) -> None:
    """Run a step of the installation; its last line of error is the reason."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        raise NotInstalled(str(error)) from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"]
        raise NotInstalled(next((line for line in lines if line.startswith("ERROR:")), lines[-1]))


def install(python: str, torch: str, numpy: str, folder: Path) -> str:
    """The Python of a virtual environment with the project, its extra and the pins."""
    own = str(folder / "bin" / "python")
    ordered([python, "-m", "venv", str(folder)])
    pip = [own, "-m", "pip", "install", "--quiet"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ordered([*pip, *pins(torch, numpy), *requirements(project)])
    ordered([*pip, "--no-deps", "--editable", str(ROOT)])
    return own


def counted(report: Path) -> dict[str, Any]:
    """Passed, failed and skipped tests of pytest's XML report, and the names of those that failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}


def try_out(combination: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Install a combination and run its suite: versions and counts, or why there are none."""
    python, torch, numpy = combination.split(",")
    place = folder / re.sub(r"[^\w.-]+", "_", f"{Path(python).name}-{torch}-{numpy}")
    result: dict[str, Any] = {"asked": combination}
    try:
        own = install(python, torch, numpy, place)
        asked = subprocess.run([own, "-c", ASK], capture_output=True, text=True)
        if asked.returncode:
            raise NotInstalled(asked.stderr.strip().splitlines()[-1])
    except NotInstalled as error:
        return result | {"error": str(error)}
    report = place / "report.xml"
    report.unlink(missing_ok=True)
    with (place / "pytest.log").open("w") as log:
        command = [own, "-m", "pytest", "-n0", f"--junit-xml={report}", *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    result["versions"] = json.loads(asked.stdout)
    if code not in (0, 1) or not report.exists():
        return result | {"error": f"pytest ended with {code}: see {log.name}"}
    return result | counted(report)


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown, and the names of tests that failed."""
    heads = "Python", "torch", "NumPy", "passed", "failed", "skipped"
    rows, named = [heads, ["---"] * len(heads)], []
    for one in results:
        failed = one.get("failed", [])
        counts = [one["error"], "", ""] if "error" in one else [one["passed"], len(failed), one["skipped"]]
        rows.append([*one.get("versions", one["asked"].split(",")), *counts])
        named += [f"- {one['asked']}: `{test}`" for test in failed]
    return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in rows] + [""] * bool(named) + named)


def combination(text: str) -> str:
    """An argument, checked."""
    if len(text.split(",")) != 3 or not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected PYTHON,TORCH,NUMPY, got {text!r}")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("combinations", nargs="+", type=combination, metavar="PYTHON,TORCH,NUMPY")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "versions", help="environments and results"
    )
    parser.add_argument("--pytest", action="append", default=[], help="an argument for pytest; repeatable")
    asked = parser.parse_args(arguments)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    known = json.loads(file.read_text()) if file.exists() else []
    results = {one["asked"]: one for one in known if "error" not in one}
    for each in asked.combinations:
        if each not in results:
            results[each] = try_out(each, folder, asked.pytest)
            fresh = file.with_suffix(".partial")
            fresh.write_text(json.dumps(list(results.values()), indent=2))
            fresh.replace(file)
    shown = [results[each] for each in asked.combinations]
    sys.stdout.write(table(shown) + "\n")
    return int(any("error" in one or one["failed"] for one in shown))


if __name__ == "__main__":
    sys.exit(main())
