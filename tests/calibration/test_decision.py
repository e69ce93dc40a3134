"""Decision rules: match, non-match or undecided."""

import json
import math
from dataclasses import replace

import pytest

from spherecf.calibration import Decision, DecisionRule, ErrorCount, ThresholdEntry, ThresholdTable
from spherecf.errors import InputError

COUNTS = (ErrorCount("wrong decisions", 1, 500, 0.0095),)
RULE = DecisionRule("mls", 64.0, "kappa", 2.0, 1.0, 30.0, "both", 0.01, 0.05, "disjoint pairs", COUNTS)
NOTHING = DecisionRule("cosine", None, "norm", None, None, -math.inf, "fmr", 0.1, 0.1)


def test_decisions_at_the_thresholds() -> None:
    decisions = RULE.decide([2.0, 1.99, 1.0, 0.99, 2.0], [30.0, 99.0, 99.0, 99.0, 29.9])
    assert decisions.tolist() == ["match", "undecided", "undecided", "non_match", "undecided"]
    assert decisions[0] == Decision.MATCH and RULE.decide(5.0, 40.0) == Decision.MATCH
    assert RULE.decide([[5.0], [0.0]], [40.0, 1.0]).tolist() == [
        ["match", "undecided"],
        ["non_match", "undecided"],
    ]


def test_a_rule_without_thresholds_leaves_all_undecided() -> None:
    assert not NOTHING.decides and RULE.decides
    assert set(NOTHING.decide([-1e9, 0.0, 1e9], 1e9).tolist()) == {"undecided"}


@pytest.mark.parametrize(
    "rule", [RULE, DecisionRule("s", None, "norm", None, None, -math.inf, "fmr", 0.1, 0.1)]
)
def test_through_json(rule: DecisionRule) -> None:
    assert DecisionRule.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False))) == rule


def test_a_rule_saved_under_the_earlier_name_of_min_confidence() -> None:
    facts = RULE.to_dict()
    facts["least_confidence"] = facts.pop("min_confidence")
    assert DecisionRule.from_dict(facts) == RULE


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0}, {"alpha": 1.0}, {"delta": 0.0}, {"delta": 1.0}, {"fnmr": None}, {"fnmr": 1.0},
        {"radius": None}, {"radius": 0.5}, {"reject": 2.0}, {"min_confidence": math.inf},
        {"extrapolated": (0.0, 1.0)}, {"extrapolated": (0.3, 0.3)}, {"accept": math.inf},
    ],
)  # fmt: skip
def test_valid_rules(changes: dict) -> None:
    rule = replace(RULE, **changes)
    assert DecisionRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": -1e-9}, {"alpha": 1.001}, {"delta": -1e-9}, {"delta": 1.001}, {"fnmr": -1e-9},
        {"fnmr": 1.001}, {"radius": 0.0}, {"radius": -1.0}, {"radius": math.inf}, {"reject": 2.001},
        {"reject": None}, {"accept": None}, {"accept": math.nan}, {"min_confidence": math.nan},
        {"extrapolated": (-0.1, 0.5)}, {"extrapolated": (0.5, 1.1)}, {"extrapolated": (0.5, 0.4)},
    ],
)  # fmt: skip
def test_invalid_rules_are_refused(changes: dict) -> None:
    with pytest.raises(InputError):
        replace(RULE, **changes)


def test_there_are_no_more_errors_than_trials() -> None:
    assert ErrorCount("x", 5, 5, 1.0).errors == 5 and ErrorCount("x", 0, 0, 0.0).trials == 0
    for errors, trials, upper in ((6, 5, 1.0), (-1, 5, 0.5), (1, -1, 0.5), (1, 5, 1.1), (1, 5, -0.1)):
        with pytest.raises(InputError, match=r"^x: "):
            ErrorCount("x", errors, trials, upper)
    with pytest.raises(InputError, match=r"at most 2\^53"):
        ErrorCount("x", 1, 2**53 + 1, 1.0)
    assert ErrorCount("x", 1, 2**53, 1.0).trials == 2**53


ENTRY = ThresholdEntry(0.1, 1.5, 1, 10, 9, 10, 0.1, 0.9, (0.0, 0.3), (0.6, 1.0), (0.0, 0.5), (0.5, 1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 1.0}, {"false_matches": 0, "fmr": 0.0}, {"false_matches": 10, "fmr": 1.0},
        {"true_matches": 0, "tmr": 0.0}, {"true_matches": 10, "tmr": 1.0}, {"threshold": math.inf},
        {"fmr_subjects": None, "tmr_subjects": None}, {"fmr_exact": (0.2, 0.2)}, {"tmr_subjects": (0.0, 1.0)},
        {"mated": 9}, {"non_mated": 1},
        dict.fromkeys(
            ("threshold", "false_matches", "true_matches", "fmr", "tmr", "fmr_exact", "tmr_exact")
        ),
    ],
)  # fmt: skip
def test_valid_threshold_entries(changes: dict) -> None:
    entry = replace(ENTRY, **changes)
    table = ThresholdTable("mls", 64.0, (entry,))
    assert ThresholdTable.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False))) == table


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 0.0}, {"target": 1.1}, {"threshold": math.nan}, {"threshold": -math.inf}, {"mated": 0},
        {"non_mated": 0}, {"false_matches": 11}, {"true_matches": 11}, {"false_matches": -1},
        {"true_matches": -1}, {"fmr": 1.1}, {"tmr": -0.1}, {"fmr_exact": (0.3, 0.2)},
        {"tmr_exact": (-0.1, 0.2)}, {"fmr_subjects": (0.2, 1.1)}, {"tmr_subjects": (0.3, 0.2)},
        *({name: None} for name in (
            "threshold", "false_matches", "true_matches", "fmr", "tmr", "fmr_exact", "tmr_exact")),
    ],
)  # fmt: skip
def test_invalid_threshold_entries_are_refused(changes: dict) -> None:
    with pytest.raises(InputError, match=r"^threshold for FMR"):
        replace(ENTRY, **changes)


def test_targets_of_a_table_descend_and_its_thresholds_do_not() -> None:
    first, same, lower = (replace(ENTRY, threshold=threshold) for threshold in (1.5, 1.5, 1.4))
    table = ThresholdTable("mls", None, (first, replace(same, target=0.01)))
    assert table.at(0.01 * (1 + 1e-12)).target == 0.01
    for entries in ((first, same), (replace(first, target=0.05), same), (first, replace(lower, target=0.01))):
        with pytest.raises(InputError, match="descending target"):
            ThresholdTable("mls", None, entries)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="reject <= accept"):
        DecisionRule("s", None, "kappa", 1.0, 2.0, 0.0, "both", 0.01, 0.05)
    with pytest.raises(InputError, match="both thresholds or none"):
        DecisionRule("s", None, "kappa", 1.0, None, 0.0, "both", 0.01, 0.05)
    with pytest.raises(InputError, match="confidences: 1 of 1 are NaN"):
        RULE.decide(1.0, float("nan"))
