"""The mpmath truth, as read from its committed table and as functions."""

import runpy
from pathlib import Path

import pytest

_ORACLE = Path(__file__).parents[1] / "reference" / "vmf_mpmath.py"


@pytest.fixture(scope="session")
def oracle() -> dict:
    return runpy.run_path(str(_ORACLE))


@pytest.fixture(scope="session")
def truth_table(oracle) -> dict:
    return oracle["table"]()
