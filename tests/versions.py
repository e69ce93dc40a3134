"""Run the test suite with other versions of Python, torch and NumPy.

    python tests/versions.py python3.11,2.6.0,2.0.* python3.14,newest,newest
    make versions VERSIONS="python3.11,2.6.0,2.0.* python3.14,newest,newest"

Each argument names a Python executable and versions of torch and NumPy, as pip accepts them after ``==``;
``newest`` leaves the choice to pip. For each argument, a virtual environment with the extra ``dev`` is
created in the folder, and `pytest` runs in it, in one process. The bounds of pyproject.toml on torch and
NumPy are ignored, so that versions outside them can be tried. Results are written to `FOLDER/results.json`. A
completed suite is not run again; one that was interrupted or could not be installed is. Then the table is
printed. An environment takes up to 7 GB: delete the folder afterwards. The exit code is 1 if a test failed or
a suite could not be run.
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
PROBE = (
    "import json, platform, torch, numpy;"
    "print(json.dumps([platform.python_version(), torch.__version__, numpy.__version__]))"
)


def requirements(project: dict[str, Any], extra: str = "dev") -> list[str]:
    """Requirements of the project and an extra, including nested extras, without the pinned packages."""
    extras, result = project["optional-dependencies"], []
    pending = [*project["dependencies"], f"spherecf[{extra}]"]
    for line in pending:  # grows during the loop
        nested = re.fullmatch(r"spherecf\[(.+)\]", line)
        if nested:
            pending += [requirement for name in nested[1].split(",") for requirement in extras[name.strip()]]
        elif re.match(r"[\w.-]+", line)[0] not in PINNED:
            result.append(line)
    return result


def pins(torch: str, numpy: str) -> list[str]:
    """The pinned packages as pip requirements."""
    versions = zip(PINNED, (torch, numpy))
    return [name if version == NEWEST else f"{name}=={version}" for name, version in versions]


class NotInstalled(Exception):
    """The reason why an environment could not be created, in one line."""


def run_step(command: list[str]) -> None:
    """Run a step of the installation; on failure, the reason is its first ERROR line or its last line."""
    try:
        completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        raise NotInstalled(str(error)) from None
    if completed.returncode:
        text = completed.stderr or completed.stdout
        lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
        raise NotInstalled(next((line for line in lines if line.startswith("ERROR:")), lines[-1]))


def install(python: str, torch: str, numpy: str, folder: Path) -> str:
    """Create a virtual environment with the project, its extra and the pins; the path of its Python."""
    python_path = str(folder / "bin" / "python")
    run_step([python, "-m", "venv", str(folder)])
    pip = [python_path, "-m", "pip", "install", "--quiet"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    run_step([*pip, *pins(torch, numpy), *requirements(project)])
    run_step([*pip, "--no-deps", "--editable", str(ROOT)])
    return python_path


def counted(report: Path) -> dict[str, Any]:
    """Numbers of passed and skipped tests in pytest's XML report, and the names of those that failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}


def try_out(combination: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Install a combination and run its suite; returns versions and counts, or an error."""
    python, torch, numpy = combination.split(",")
    environment = folder / re.sub(r"[^\w.-]+", "_", f"{Path(python).name}-{torch}-{numpy}")
    result: dict[str, Any] = {"asked": combination}
    try:
        python_path = install(python, torch, numpy, environment)
        probe = subprocess.run([python_path, "-c", PROBE], capture_output=True, text=True)
        if probe.returncode:
            raise NotInstalled(probe.stderr.strip().splitlines()[-1])
    except NotInstalled as error:
        return result | {"error": str(error)}
    report = environment / "report.xml"
    report.unlink(missing_ok=True)
    with (environment / "pytest.log").open("w") as log:
        command = [python_path, "-m", "pytest", "-n0", f"--junit-xml={report}", *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    result["versions"] = json.loads(probe.stdout)
    if code not in (0, 1) or not report.exists():
        return result | {"error": f"pytest ended with {code}: see {log.name}"}
    return result | counted(report)


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, followed by the names of the failed tests."""
    headers = "Python", "torch", "NumPy", "passed", "failed", "skipped"
    rows, failures = [headers, ["---"] * len(headers)], []
    for result in results:
        failed = result.get("failed", [])
        if "error" in result:
            cells = [result["error"], "", ""]
        else:
            cells = [result["passed"], len(failed), result["skipped"]]
        rows.append([*result.get("versions", result["asked"].split(",")), *cells])
        failures += [f"- {result['asked']}: `{test}`" for test in failed]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines + [""] * bool(failures) + failures)


def parse_combination(text: str) -> str:
    """Validate an argument."""
    if len(text.split(",")) != 3 or not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected PYTHON,TORCH,NUMPY, got {text!r}")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("combinations", nargs="+", type=parse_combination, metavar="PYTHON,TORCH,NUMPY")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "versions", help="environments and results"
    )
    parser.add_argument(
        "--pytest", action="append", default=[], help="an argument for pytest; may be repeated"
    )
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    saved_results = json.loads(file.read_text()) if file.exists() else []
    results = {result["asked"]: result for result in saved_results if "error" not in result}
    for combination in options.combinations:
        if combination not in results:
            results[combination] = try_out(combination, folder, options.pytest)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(list(results.values()), indent=2))
            partial.replace(file)
    selected = [results[combination] for combination in options.combinations]
    sys.stdout.write(table(selected) + "\n")
    return int(any("error" in result or result["failed"] for result in selected))


if __name__ == "__main__":
    sys.exit(main())
