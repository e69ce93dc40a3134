"""Calibrations as JSON: an accepted one can be evaluated, and is unchanged after saving and loading."""

import json
import math
from dataclasses import replace
from typing import Literal

import numpy as np
from tests.fuzz.harness import fuzz

from spherecf.calibration import Calibration, DecisionRule, ErrorCount, KappaScale, fit_calibration
from spherecf.common.parsing import parse_json
from spherecf.errors import InputError


def seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    mated = rng.random(40) < 0.5
    count = ErrorCount("false matches", 1, 500, 0.0095)
    rules = [
        DecisionRule("mls", 64.0, "kappa", 2.0, 1.0, 30.0, "both", 0.01, 0.05, counts=(count,), fnmr=0.01),
        DecisionRule("cosine", None, "norm", None, None, -math.inf, "fmr", 0.1, 0.1),
    ]

    def fit(method: Literal["logistic", "isotonic"]) -> Calibration:
        calibration = fit_calibration(
            model="m" * 64, data="d" * 64, mated=mated, radius=64.0,
            kappa=KappaScale.fit(rng.gamma(2, 50, 5), dim=128, population="5 images"),
            scores={"cosine": rng.normal(mated, 0.7), "mls": rng.normal(5 * mated, 5) - 300},
            method=method, targets=(0.5, 0.1, 0.001),
        )  # fmt: skip
        record = {"flip": "none", "counts": [1, None, True]}
        return replace(calibration, decisions=tuple(rules), record=record)

    logistic = fit("logistic")
    entry = logistic.thresholds["cosine"].entries[1]
    infinite = replace(logistic.thresholds["cosine"], entries=(replace(entry, threshold=math.inf),))
    variants = {
        "logistic": logistic,
        "isotonic": fit("isotonic"),
        "an infinite threshold": replace(logistic, thresholds={"cosine": infinite}),
        "empty": Calibration("m", "d"),
    }
    return {name: json.dumps(calibration.to_dict()).encode() for name, calibration in variants.items()}


@fuzz(seeds, name="calibrations", tokens=[b'"inf"', b"null", b"64.0", b'"isotonic"', b"-0.0"])
def test_calibrations(data: bytes) -> None:
    facts = parse_json(data, "c.json", "a calibration")
    if not isinstance(facts, dict):
        raise InputError("a calibration is an object")  # as for every header
    calibration = Calibration.from_dict(facts)
    assert (
        Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False))) == calibration
    )
    with np.errstate(over="ignore"):
        for score in calibration.likelihood:
            assert np.isfinite(calibration.llr(score, [-400.0, 0.0, 1.0])).all()
    for score, table in calibration.thresholds.items():
        for entry in table.entries:
            assert calibration.threshold(score, entry.target).target == entry.target
    for rule in calibration.decisions:
        assert set(rule.decide([0.0, 3.0], 40.0)) <= {"match", "undecided", "non_match"}
    if calibration.kappa is not None:
        percentiles = calibration.kappa.percentile([0.0, 1.0, 1e3])
        assert ((percentiles >= 0) & (percentiles <= 100)).all() and (np.diff(percentiles) >= 0).all()
        assert np.isfinite(calibration.kappa.kappa_at(50.0))
