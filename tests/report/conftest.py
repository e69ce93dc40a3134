"""Provides the toy data set of the evaluation tests."""

from tests.evaluation.conftest import toy

__all__ = ["toy"]
