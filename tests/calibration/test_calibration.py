"""The calibration as a container: tied to its model, versioned, and unchanged by JSON."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule, KappaScale, fit_calibration
from spherecf.errors import InputError, ModelError

RULES = [
    DecisionRule("mls", 64.0, "kappa", 2.0, 1.0, 30.0, "both", 0.01, 0.05),
    DecisionRule("mls", 64.0, "kappa", 2.0, 2.0, 30.0, "fmr", 0.001, 0.05),
]


@pytest.fixture(params=["logistic", "isotonic"])
def fitted(request: pytest.FixtureRequest) -> Calibration:
    rng = np.random.default_rng(0)
    mated = rng.random(300) < 0.5
    calibration = fit_calibration(
        model="m" * 64, data="d" * 64, mated=mated, radius=64.0,
        kappa=KappaScale.fit(rng.gamma(2, 50, 90), dim=128, population="90 images"),
        scores={"cosine": rng.normal(mated, 0.7), "mls": rng.normal(5 * mated, 5) - 300},
        method=request.param, targets=(0.1, 0.001),
    )  # fmt: skip
    return replace(calibration, decisions=tuple(RULES), record={"flip": "none"})


def test_everything_by_name(fitted: Calibration) -> None:
    assert fitted.llr("cosine", [9.0])[0] > 0 > fitted.llr("mls", [-400.0], radius=64.0)[0]
    assert fitted.threshold("mls", 0.1).false_matches > 0 and fitted.threshold("mls", 0.001).threshold is None
    assert fitted.decision("mls") == RULES[0] and fitted.decision("mls", error="fmr") == RULES[1]
    assert fitted.decision("mls", alpha=0.001) == RULES[1]
    assert fitted.kappa is not None and fitted.kappa.images == 90
    assert (fitted.likelihood["cosine"].radius, fitted.likelihood["mls"].radius) == (None, 64.0)


def test_the_best_rule_is_that_of_the_best_score_with_this_bound() -> None:
    names = ("mls", "mls-template", "evidence", "evidence-template", "evidence-templates")
    rules = {
        (name, error, alpha): DecisionRule(name, 64.0, "kappa", 2.0, 1.0, 30.0, error, alpha, 0.05)
        for name in names for error in ("both", "fmr") for alpha in (0.01, 0.001)
    }  # fmt: skip
    every = Calibration("m" * 64, "d" * 64, decisions=tuple(rules.values()))
    for templates, name in enumerate(names[2:]):
        assert every.best_decision(0.001, templates) == rules[name, "fmr", 0.001]
    some = [rule for key, rule in rules.items() if "evidence" not in key[0]]
    plain = replace(every, decisions=tuple(some))
    best = [plain.best_decision(0.01, templates).score for templates in range(3)]
    assert best == ["mls", "mls-template", "mls-template"]
    with pytest.raises(InputError, match=r"false match rate of 0\.1; there are rules for 0\.0"):
        every.best_decision(0.1)


def test_repr_lists_the_contents(fitted: Calibration) -> None:
    knots = len(fitted.kappa.log_kappa)
    assert repr(fitted) == (
        f"Calibration(kappa: {knots} knots; likelihood: cosine, mls; thresholds: cosine, mls; "
        f"decisions: 2 rules; model={'m' * 12}..., data={'d' * 12}...)"
    )
    nothing = repr(Calibration("m" * 64, "d" * 64))
    assert "kappa: none; likelihood: none; thresholds: none; decisions: 0 rules" in nothing


def test_through_json(fitted: Calibration) -> None:
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text), model="m" * 64) == fitted
    assert len(text) < 20_000


def test_another_model_is_refused(fitted: Calibration) -> None:
    with pytest.raises(ModelError, match=f"{'m' * 64}, this is the model {'x' * 64}"):
        Calibration.from_dict(fitted.to_dict(), model="x" * 64)


def test_unknown_or_damaged_files_are_refused(fitted: Calibration) -> None:
    facts = fitted.to_dict()
    with pytest.raises(InputError, match="version 3, this spherecf reads 1 to 2"):
        Calibration.from_dict(facts | {"version": 3})
    with pytest.raises(InputError, match="got the format None"):
        Calibration.from_dict({})
    for damaged in ({"likelihood": {"mls": {"kind": "magic"}}}, {"kappa": {}}, {"decisions": [{}]}):
        with pytest.raises(InputError, match="damaged"):
            Calibration.from_dict(facts | damaged)
    del facts["thresholds"]
    with pytest.raises(InputError, match=r"damaged.*thresholds"):
        Calibration.from_dict(facts)


def leaves(facts: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to every value that is not a container."""
    parts = facts.items() if isinstance(facts, dict) else enumerate(facts) if isinstance(facts, list) else ()
    if not parts:
        yield path
    for key, value in parts:
        yield from leaves(value, (*path, key))


def test_values_of_another_type_are_refused(fitted: Calibration) -> None:
    """Every replaced value is refused or kept unchanged (a description, an optional value)."""
    text = json.dumps(replace(fitted, kappa=KappaScale(8, "two", 2, (1.0, 2.0), (0.0, 50.0))).to_dict())
    for path in leaves(json.loads(text)):
        for wrong in (None, True, -1, 1.5, 10**30, math.nan, math.inf, "x", [], {}, [["x"]]):
            facts = json.loads(text)
            holder = facts
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = wrong
            try:
                opened = Calibration.from_dict(facts)
            except InputError:
                continue
            text_again = json.dumps(opened.to_dict(), allow_nan=False)
            assert Calibration.from_dict(json.loads(text_again)) == opened


@pytest.mark.parametrize(
    "changes",
    [
        {"likelihood": {"cosine": {"kind": "logistic", "score": "mls", "radius": None, "slope": 1.0,
                                   "offset": 0.0, "mated": 3, "non_mated": 3}}},
        {"thresholds": {"mls": {"score": "mls", "radius": 64.0, "entries": [
            {"target": 0.1, "threshold": 1.0, "false_matches": 9, "non_mated": 5, "true_matches": 1,
             "mated": 5, "fmr": 0.1, "tmr": 0.2, "fmr_exact": [0.0, 0.1], "tmr_exact": [0.0, 0.1]}]}}},
        {"record": []},
        {"decisions": {}},
        {"model": 3},
    ],
    ids=["another score", "more matches than pairs", "a list", "an object", "a number"],
)  # fmt: skip
def test_inconsistent_parts_are_refused(fitted: Calibration, changes: dict) -> None:
    with pytest.raises(InputError, match="damaged"):
        Calibration.from_dict(fitted.to_dict() | changes)


def test_default_fmr_targets() -> None:
    made = fit_calibration(model="m", data="d", scores={"s": [0.1, 0.3, 0.2, 0.4]}, mated=[0, 0, 1, 1])
    assert [entry.target for entry in made.thresholds["s"].entries] == [1e-2, 1e-3, 1e-4]


def test_messages_list_what_is_available(fitted: Calibration) -> None:
    with pytest.raises(InputError, match="'pfe'; there is one for cosine, mls"):
        fitted.llr("pfe", [1.0])
    with pytest.raises(InputError, match="radius 64, these scores have radius 32"):
        fitted.llr("mls", [1.0], radius=32.0)
    with pytest.raises(InputError, match=r"no decision rule for cosine.* are: mls both <= 0\.01"):
        fitted.decision("cosine")
    with pytest.raises(InputError, match="at least one score"):
        fit_calibration(model="m", data="d", scores={}, mated=[])
    with pytest.raises(InputError, match="calibration method 'platt': expected one of logistic, isotonic"):
        fit_calibration(model="m", data="d", scores={"s": [0.1, 0.2]}, mated=[0, 1], method="platt")
