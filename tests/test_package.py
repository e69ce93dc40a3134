"""The package itself: light imports, import contracts between rooms, documented public names."""

import dataclasses
import enum
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Protocol

import pytest

import spherecf
from spherecf.common import version as version_module

SOURCE = Path(spherecf.__file__).parent
ROOMS = sorted(
    {path.parent.name for path in SOURCE.glob("*/__init__.py") if path.parent.name != "common"}
    | {path.stem for path in SOURCE.glob("[a-z]*.py")}
)
HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "scipy", "matplotlib", "tensorboard")

# Their examples are whole commands (docs/index.md) rather than lines in a docstring.
RUNS = ("demo", "extract", "training")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def public(room: str) -> list[tuple[str, Any]]:
    module = importlib.import_module(f"spherecf.{room}")
    return [(name, getattr(module, name)) for name in getattr(module, "__all__", [])]


def needs_example(member: Any) -> bool:
    """True for functions and classes, except errors, protocols, enumerations and records."""
    if inspect.isclass(member):
        record = dataclasses.is_dataclass(member) or issubclass(member, (tuple, enum.Enum))
        return not (record or issubclass(member, Exception) or Protocol in member.__mro__)
    return inspect.isfunction(member)


@pytest.mark.parametrize(
    "start", ["import spherecf", "from typer.testing import CliRunner; from spherecf.cli import app; "
              "assert CliRunner().invoke(app, ['--help']).exit_code == 0"]
)  # fmt: skip
def test_import_and_help_load_no_heavy_library(start: str) -> None:
    loaded = python(f"import sys; {start}; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("use", ["load()", "export"])
def test_onnxruntime_reports_nothing(tmp_path: Path, use: str) -> None:
    """Its telemetry starts with its import: it leaves an identifier and a queue of events below HOME."""
    code = (
        f"import os, spherecf; spherecf.{use}; import onnxruntime; assert not os.listdir({str(tmp_path)!r})"
    )
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


def test_an_own_choice_about_telemetry_is_kept() -> None:
    name = "ORT_DISABLE_TELEMETRY"
    code = f"import os; os.environ['{name}'] = '0'; import spherecf; print(os.environ['{name}'])"
    assert python(code).strip() == "0"


def test_rooms_are_imported_on_first_use() -> None:
    assert set(spherecf.__all__) == set(ROOMS) - {"cli"} | {"__version__", "load"} == set(dir(spherecf))
    assert python("import spherecf as scf; print(scf.errors.InputError.__name__)").strip() == "InputError"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        spherecf.lod  # noqa: B018


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_and_has_a_docstring(room: str) -> None:
    assert (importlib.import_module(f"spherecf.{room}").__doc__ or "").strip()
    for name, member in public(room):
        if inspect.isclass(member) or inspect.isfunction(member):
            docstring = vars(member).get("__doc__") if inspect.isclass(member) else member.__doc__
            generated = dataclasses.is_dataclass(member) and (docstring or "").startswith(f"{name}(")
            assert docstring and not generated, f"spherecf.{room}.{name} has no docstring"


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in RUNS])
def test_functions_and_classes_have_an_example(room: str) -> None:
    public_names = [(name, member) for name, member in public(room) if needs_example(member)]
    missing = [f"{room}.{name}" for name, member in public_names if ">>> " not in (member.__doc__ or "")]
    assert not missing, f"no example in the docstring of {', '.join(missing)}"


def test_contract_covers_every_room() -> None:
    """Every top-level module is in a layer; other rooms may import only the __init__ of a room."""
    config = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["tool"]["importlinter"]
    layered = {
        name for layer in config["contracts"][0]["layers"] for name in layer.replace("|", ":").split(":")
    }
    modules = {f"spherecf.{path.stem}" for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    modules |= {f"spherecf.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert {name.strip() for name in layered} == modules
    protected = {
        name for contract in config["contracts"][1:] for name in contract.get("protected_modules", ())
    }
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")} - {"common"}
    assert protected == {f"spherecf.{room}.**" for room in rooms}


@pytest.mark.parametrize(
    "file, line",
    [
        ("evaluation/folds.py", "import spherecf.models"),
        ("scoring/pairs.py", "def f():\n    from spherecf.data import open_source"),
        ("models/heads.py", "from spherecf.training import *"),
        ("vmf/functions.py", "from spherecf.common.files import sha256_file"),
        ("calibration/calibration.py", "from spherecf.evaluation import tmr_at_fmr"),
    ],
)
def test_contract_forbids_imports_against_the_layers(tmp_path: Path, file: str, line: str) -> None:
    root = SOURCE.parents[1]
    shutil.copytree(SOURCE, tmp_path / "spherecf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    changed_file = tmp_path / "spherecf" / file
    changed_file.write_text(f"{changed_file.read_text()}\n\n{line}\n")
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1 and " BROKEN" in completed.stdout, completed.stdout + completed.stderr
    assert f"spherecf.{file.split('/')[0]}" in completed.stdout


def test_no_command_opens_a_connection(tmp_path: Path) -> None:
    """Run the commands from photos to decisions while every connection raises an error."""
    script = """
import socket, sys
from pathlib import Path
from typer.testing import CliRunner

def refuse(*arguments, **options):
    raise AssertionError(f"a connection was requested: {arguments}")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
from spherecf.cli import app
from spherecf.data import orl_faces, write_folder
from spherecf.models import load
import numpy as np

folder = Path(sys.argv[1])
model = folder / "model.safetensors"
load().save(model)
write_folder(orl_faces().subset(np.arange(12)), folder / "orl")
first, second = sorted((folder / "orl").rglob("*.*"))[:2]
for words in (
    ["quality", str(folder / "orl")],
    ["compare", str(first), str(second)],
    ["embed", str(model), str(folder / "orl"), str(folder / "e.safetensors"), "--align"],
    ["data", "check", str(folder / "orl"), "--pixels-only"],
):
    result = CliRunner().invoke(app, words)
    print(words[0], result.exit_code, result.exception)
"""
    completed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["quality", "compare", "embed", "data"], completed.stdout
    assert all(line.endswith(" 0 None") for line in lines), lines


def test_environment_records_the_commit_of_a_checkout() -> None:
    if shutil.which("git") is None or not (SOURCE.parents[1] / ".git").exists():
        pytest.skip("no git, or no checkout")
    command = ["git", "-C", str(SOURCE), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    printed = python("from spherecf.common.version import environment; print(environment().get('git'))")
    assert commit in printed


def test_environment_without_git_and_a_package_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    monkeypatch.setattr(version_module, "_RECORDED", ("torch", "spherecf-absent"))
    facts = version_module.environment.__wrapped__()
    assert "git" not in facts and facts["spherecf-absent"] == "absent" and facts["torch"][0].isdigit()
