"""A rule says match, non-match or undecided, and nothing else."""

import json
import math

import pytest

from spherecf.calibration import Decision, DecisionRule, ErrorCount
from spherecf.errors import InputError

COUNTS = (ErrorCount("wrong decisions", 1, 500, 0.0095),)
RULE = DecisionRule("mls", 64.0, "kappa", 2.0, 1.0, 30.0, "both", 0.01, 0.05, "disjoint pairs", COUNTS)
NOTHING = DecisionRule("cosine", None, "norm", None, None, -math.inf, "fmr", 0.1, 0.1)


def test_the_borders() -> None:
    said = RULE.decide([2.0, 1.99, 1.0, 0.99, 2.0], [30.0, 99.0, 99.0, 99.0, 29.9])
    assert said.tolist() == ["match", "undecided", "undecided", "non_match", "undecided"]
    assert said[0] == Decision.MATCH and RULE.decide(5.0, 40.0) == Decision.MATCH
    assert RULE.decide([[5.0], [0.0]], [40.0, 1.0]).tolist() == [
        ["match", "undecided"],
        ["non_match", "undecided"],
    ]


def test_no_rule_decides_nothing() -> None:
    assert not NOTHING.decides and RULE.decides
    assert set(NOTHING.decide([-1e9, 0.0, 1e9], 1e9).tolist()) == {"undecided"}


@pytest.mark.parametrize(
    "rule", [RULE, DecisionRule("s", None, "norm", None, None, -math.inf, "fmr", 0.1, 0.1)]
)
def test_through_json(rule: DecisionRule) -> None:
    assert DecisionRule.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False))) == rule


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="reject <= accept"):
        DecisionRule("s", None, "kappa", 1.0, 2.0, 0.0, "both", 0.01, 0.05)
    with pytest.raises(InputError, match="both thresholds or none"):
        DecisionRule("s", None, "kappa", 1.0, None, 0.0, "both", 0.01, 0.05)
    with pytest.raises(InputError, match="confidences: 1 of 1 are NaN"):
        RULE.decide(1.0, float("nan"))
