"""The documentation pages pass docs/check.py, and faulty pages fail."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from spherecf.cli import app

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "check.py"
COMMANDS = typer.main.get_command(app)


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def problems(check: ModuleType, folder: Path, text: str) -> list[str]:
    page = folder / "page.md"
    page.write_text(text)
    return [f"{problem.line}: {problem.text}" for problem in check.check_page(page, COMMANDS)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# A\n\n[b](gone.md)", "3: link to gone.md: there is no file gone.md"),
        ("# A title\n\n[b](#other)", "3: link to #other: page.md has no anchor #other"),
        ("```bash\nspherecf data look faces/\n```", "2: `spherecf data` has no verb 'look' (it has"),
        ("a\n\n    spherecf data inspect \\\n      x/ --jsn", "3: `spherecf data inspect` has no option --"),
        ("Say `spherecf data inspect faces --fast`.", "1: `spherecf data inspect` has no option --fast"),
        ("```bash\nX=1 venv/bin/spherecf --verson\n```", "2: `spherecf` has no option --verson"),
        ("```bash\npip list && spherecf date\n```", "2: `spherecf` has no verb 'date'"),
        ("```\nspherecf --key-file=k evaluate pairs e\n```", "2: `spherecf evaluate` has no verb 'pairs'"),
        ("```\ntorchrun --nproc-per-node 2 -m spherecf train heads\n```", "2: `spherecf train` has no verb"),
        ("```\npython -m studies promise LFW\n```", "2: `studies` has no verb 'promise' (it has cohort"),
        ("```bash\npython benchmarks/tenfold.py --faster\n```", "2: benchmarks/tenfold.py has no option"),
        ("```bash\nmake sandwich\n```", "2: Makefile has no target 'sandwich'"),
        ("Look into `src/spherecf/gone.py`.", "1: there is no src/spherecf/gone.py in the repository"),
        ("`docs/*.xyz`", "1: there is no docs/*.xyz in the repository"),
        ("```python\n\nx = (\n```", "3: this Python does not compile"),
        ("```python\nfrom spherecf.data import open_sauce\n```", "2: there is no spherecf.data.open_sauce"),
        ("```python\nimport spherecf as scf\nscf.data.Bin.pears\n```", "3: there is no spherecf.data.Bin"),
        ("```python\nfrom spherecf.data import Subset\n```", "2: spherecf.data.Subset is not public"),
        ("```python\n>>> import spherecf\n>>> _ = spherecf.data.Subset\n```", "3: spherecf.data.Subset is"),
        ("```python\n>>> 1 + 1\n3\n```", "2: this doctest fails"),
        ("text\n```bash\nls", "1: the code block opened in line 2 is never closed"),
    ],
)  # fmt: skip
def test_each_kind_of_mistake_is_reported(
    check: ModuleType, tmp_path: Path, text: str, expected: str
) -> None:
    messages = problems(check, tmp_path, text)
    assert len(messages) == 1 and messages[0].startswith(expected), messages


def test_a_page_without_mistakes_passes(check: ModuleType, tmp_path: Path) -> None:
    text = """# One (1) title: `x`

[up](#one-1-title-x) and [again](#one-1-title-x-1), `src/spherecf/vmf/functions.py`,
`spherecf data inspect|convert`

# One (1) title: `x`

    OMP_NUM_THREADS=1 python benchmarks/backbone_engines.py --images 8   # a comment
    spherecf data convert faces/ faces_rec/ --to rec > report.json && make unit

```python
import spherecf as scf

source = scf.data.open_source("faces/")
```

```python
>>> x = 3
```

```python
>>> x + 1
4
```
"""
    assert problems(check, tmp_path, text) == []


@pytest.mark.parametrize(
    "text", ["see /" + "work/x", "cd /" + "tmp", "pip install --index https://pypi" + ".org/simple"]
)
def test_machine_specific_paths_and_hosts_are_reported(check: ModuleType, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"fine: a/work/b, https://example.com/tmp.html\n{text}\n")
    (problem,) = check.check_foreign(page)
    assert problem.line == 2 and str(problem).startswith(f"{page}:2: ")


def test_examples_that_need_more_than_their_page_are_reported(check: ModuleType, tmp_path: Path) -> None:
    (page := tmp_path / "data.md").write_text(
        "## first\n\n```python\n>>> from math import pi\n>>> def area(r):\n...     return pi * np.ones(r)\n"
        ">>> [first(area(r)) for r in range(3)]\n>>> lambda: second(Path())\n```\n"
    )
    messages = [problem.text for problem in check.check_reference(page)]
    assert messages == [f"the example does not import {name}" for name in ("Path", "second")]


def test_pages_without_a_link_from_the_index_are_reported(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("[a](a.md#part)")
    (tmp_path / "a.md").touch()
    assert check.check_index(tmp_path) == []
    (tmp_path / "b.md").touch()
    assert [problem.text for problem in check.check_index(tmp_path)] == ["no link leads to b.md"]
