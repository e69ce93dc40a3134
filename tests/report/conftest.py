"""The toy data set of the evaluation's tests."""

from tests.evaluation.conftest import toy

__all__ = ["toy"]
