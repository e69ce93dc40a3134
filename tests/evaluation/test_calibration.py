"""The calibration protocol: fitted on some people, measured on others, with every number recounted."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from spherecf.calibration import Calibration
from spherecf.data import PairList
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import (
    CalibrationOptions,
    CalibrationReport,
    ScoredPairs,
    check_rule,
    cllr,
    evaluate_calibration,
    min_cllr,
    split_subjects,
)
from spherecf.report import calibration_section

GROUPS, EACH, PHOTOS, PAIRS = 16, 10, 4, 4000


def people(noise: float, seed: int, **provenance: str) -> Embeddings:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(GROUPS * EACH), PHOTOS)
    centres = np.random.default_rng(0).normal(size=(GROUPS * EACH, 12))
    spread = noise * rng.uniform(0.2, 1.2, labels.size)
    mu = centres[labels] + spread[:, None] * rng.normal(size=(labels.size, 12))
    facts = {"model": "m" * 64, "backbone": "b" * 64, "view": "clean", "radius": 32.0} | provenance
    return Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(20 / spread**2),
        [f"p{label:03d}/{i % PHOTOS}" for i, label in enumerate(labels)], labels,
        [f"p{i:03d}" for i in range(GROUPS * EACH)], {"norm": 1 / spread}, provenance=facts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str], np.ndarray]:
    """Half the pairs are mated; the others lie within groups of ten people, as in the folds of a list."""
    rng = np.random.default_rng(1)
    mated = np.arange(PAIRS) % 2 == 0
    a = rng.integers(GROUPS * EACH, size=PAIRS)
    b = np.where(mated, a, a // EACH * EACH + (a + rng.integers(1, EACH, PAIRS)) % EACH)
    photos = rng.integers(PHOTOS, size=PAIRS)
    left = [f"p{p:03d}/{i}" for p, i in zip(a, photos)]
    right = [f"p{p:03d}/{i}" for p, i in zip(b, (photos + rng.integers(1, PHOTOS, PAIRS)) % PHOTOS)]
    return left, right, mated


def run(
    pairs: Any, left: Embeddings | None = None, right: Embeddings | None = None, **options: Any
) -> CalibrationReport:
    left_file = left or people(1.0, 2)
    left_keys, right_keys, mated = pairs
    subjects = options.pop("subjects", None) or ()
    pair_list = PairList(
        "toy", left_keys, right_keys, np.asarray(mated), np.zeros(len(mated), int), *subjects
    )
    condition = {"condition": options.pop("condition")} if "condition" in options else {}
    calibration_options = CalibrationOptions(**{"draws": 0, "alpha": 0.1} | options)
    return evaluate_calibration(left_file, right or left_file, pair_list, calibration_options, **condition)


@pytest.fixture(scope="module")
def report(pairs: Any) -> CalibrationReport:
    return run(pairs, draws=30, targets=(0.1, 0.01, 1e-5))


def test_costs_and_rules_are_measured_on_people_outside_the_fit(
    report: CalibrationReport, pairs: Any
) -> None:
    left, right, mated = pairs
    part, split = split_subjects([k[:4] for k in left], [k[:4] for k in right], [1, 1, 2])
    assert report.split == split == "groups" and report.counts["left_out_mated"] == 0
    e, is_test = people(1.0, 2), part == 2
    cosine = np.einsum("nd,nd->n", e.mu[e.rows(left)].astype(float), e.mu[e.rows(right)])
    cosine_report = report.scores["cosine"]
    llr = report.calibration.llr("cosine", cosine[is_test])
    assert cosine_report.costs[0].cllr == pytest.approx(cllr(llr, mated[is_test]))
    assert cosine_report.min_cllr == pytest.approx(min_cllr(cosine[is_test], mated[is_test]))
    assert cosine_report.costs[0].loss == pytest.approx(cosine_report.costs[0].cllr - cosine_report.min_cllr)
    assert [cost.method for cost in cosine_report.costs] == ["logistic", "isotonic"]
    threshold = report.calibration.threshold("cosine", 0.1)
    fitting = (part == 0) | (part == 1)
    accepted = cosine >= threshold.threshold - 1e-9
    assert threshold.false_matches == (accepted & ~mated & fitting).sum() <= 0.1 * (~mated & fitting).sum()
    check = cosine_report.thresholds[0].checked
    assert (check.false_matches, check.true_matches) == tuple(
        (accepted & k & is_test).sum() for k in (~mated, mated)
    )
    kappa = np.minimum(e.kappa[e.rows(left)], e.kappa[e.rows(right)])
    rule = cosine_report.decisions[0]
    assert rule == check_rule(rule.rule, ScoredPairs(cosine[is_test], kappa[is_test], mated[is_test]))


def test_the_saved_calibration_matches_the_report(report: CalibrationReport, pairs: Any) -> None:
    calibration = report.calibration
    assert (
        calibration.model == "m" * 64
        and calibration.record["view"] == "clean"
        and calibration.record["split"] == "groups"
    )
    assert [r.score for r in calibration.decisions] == ["cosine"] * 4 + ["mls"] * 4
    assert calibration.decisions[0] == report.scores["cosine"].decisions[0].rule
    assert calibration.likelihood["mls"].radius == 32.0 and calibration.likelihood["cosine"].radius is None
    assert calibration.kappa is not None and calibration.kappa.images == report.counts["reference_images"]
    fitting = np.isin(
        split_subjects([k[:4] for k in pairs[0]], [k[:4] for k in pairs[1]], [1, 1, 2])[0], (0, 1)
    )
    assert calibration.kappa.images == len({*np.array(pairs[0])[fitting], *np.array(pairs[1])[fitting]})
    entry = calibration.threshold("mls", 0.01)
    assert entry.fmr_subjects[0] <= entry.fmr <= entry.fmr_subjects[1]
    assert calibration.threshold("mls", 1e-5).unresolved
    level = report.kappa[4]
    assert level.percent == 50 and level.iso == 50 and 0 < level.cosine < 1
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())), model="m" * 64) == calibration


def test_intervals_contain_their_values(report: CalibrationReport) -> None:
    for score in report.scores.values():
        for cost in score.costs:
            assert cost.interval.low <= cost.cllr <= cost.interval.high
        check = score.thresholds[0].checked
        assert check.tmr_subjects[0] <= check.tmr <= check.tmr_subjects[1]
    assert report.resampling == "subject-30/0"


def test_rules_meet_their_bounds_and_coverage_grows_with_them(report: CalibrationReport) -> None:
    for score in report.scores.values():
        assert score.decisions[0].rule.decides and score.decisions[0].coverage > 0.3
        for check in score.decisions:
            assert all(count.upper <= 0.1 for count in check.rule.counts)
        for curve in score.curves:
            assert curve.coverage[-1] >= curve.coverage[0]


def test_the_report_is_complete_as_json_and_as_a_page(report: CalibrationReport) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert "tippett" in text and '"calibration": {"format"' in text
    short = report.to_dict(curves=False)
    assert "calibration" not in short and "tippett" not in short["scores"]["mls"]
    section = calibration_section(report)
    assert section.tables[0].title.startswith("Log-likelihood") and len(section.tables) == 5
    assert len(section.plots) == 1 + 2 + 2
    assert "160 people, divided into disjoint parts" in section.notes[0]
    cells = [cell for table in section.tables[:3] for row in table.rows for cell in row]
    assert "unresolved" in cells
    assert all(len(table.signatures) == len(table.rows) for table in section.tables[:3])
    assert (
        "|split:groups-1+1+2/0|" in section.tables[0].signatures[0]
        and "|r:32|" in section.tables[0].signatures[-1]
    )


def test_the_intervals_of_thresholds_contain_their_rate_and_have_a_width(pairs: Any) -> None:
    report = run(pairs, left=people(0.2, 2), draws=50)
    cells = [cell for row in calibration_section(report).tables[1].rows for cell in row[3:] if cell]
    intervals = [[float(end) for end in cell.split("[")[1].rstrip("]").split(",")] for cell in cells]
    assert any(cell.startswith("1 (") for cell in cells)  # all mated pairs are accepted, in every draw
    assert all(
        low <= float(cell.split()[0]) <= high and low < high for cell, (low, high) in zip(cells, intervals)
    )


def test_impossible_bounds_leave_all_pairs_undecided(pairs: Any) -> None:
    report = run(pairs, alpha=1e-6, scores=("cosine",))
    assert [check.coverage for check in report.scores["cosine"].decisions] == [0] * 4
    assert "no rule meets the bound; all pairs undecided" in [
        row[2] for row in calibration_section(report).tables[2].rows
    ]


def test_disjoint_tests_use_fewer_pairs(pairs: Any) -> None:
    report = run(pairs, scores=("cosine",), alpha=0.3, disjoint=True)
    rule = report.scores["cosine"].decisions[1].rule
    assert rule.tested_on == "disjoint pairs" and "|tested:disjoint|" in report.scores["cosine"].signature
    assert not rule.decides or rule.counts[0].trials <= 40


def test_confidence_method_and_radius_can_be_chosen(pairs: Any) -> None:
    report = run(pairs, scores=("mls",), confidence="norm", method="isotonic", radius=8.0)
    assert report.calibration.likelihood["mls"].kind == "isotonic"
    assert report.calibration.likelihood["mls"].radius == 8.0
    assert report.calibration.decisions[0].confidence == "norm"
    assert [cost.method for cost in report.scores["mls"].costs] == ["isotonic", "logistic"]


def test_two_files_are_calibrated_together(pairs: Any) -> None:
    report = run(pairs, people(1.0, 2), people(1.5, 3, view="cross-v1/0"), scores=("cosine",))
    assert report.calibration.record["view"] == "clean+cross-v1/0"
    assert report.counts["reference_images"] == pytest.approx(GROUPS * EACH * PHOTOS, rel=0.15)


def test_without_people_the_report_warns_that_no_bound_holds(pairs: Any) -> None:
    e = dataclasses.replace(people(1.0, 2), labels=None, identities=())
    report = run(pairs, e, scores=("cosine",))
    assert report.unit == "image" and "no bound holds" in calibration_section(report).notes[1]


def test_bad_input_is_refused(pairs: Any) -> None:
    left, right, mated = pairs
    with pytest.raises(InputError, match="of the model mmm"):
        run(pairs, people(1.0, 2), people(1.0, 2, model="x" * 64))
    with pytest.raises(InputError, match="confidence 'sharpness': not among kappa, norm"):
        run(pairs, confidence="sharpness")
    with pytest.raises(InputError, match="people cannot make 3 disjoint parts"):
        run((left[:1], right[:1], mated[:1]))
    with pytest.raises(InputError, match="both kinds are needed in each part"):
        run((left[::2], right[::2], mated[::2]))


def many_pairs() -> tuple[list[str], list[str], np.ndarray]:
    """As `pairs`, but enough of them to fit a tail."""
    rng = np.random.default_rng(3)
    mated = np.arange(16_000) % 2 == 0
    a = rng.integers(GROUPS * EACH, size=mated.size)
    b = np.where(mated, a, a // EACH * EACH + (a + rng.integers(1, EACH, mated.size)) % EACH)
    photos = rng.integers(PHOTOS, size=(2, mated.size))
    photos[1] = np.where(mated, (photos[0] + 1) % PHOTOS, photos[1])
    sides = (
        [f"p{p:03d}/{i}" for p, i in zip(people_rows, which)] for people_rows, which in zip((a, b), photos)
    )
    return *sides, mated


def test_evidence_is_fitted_measured_and_saved() -> None:
    report = run(many_pairs(), scores=("cosine", "mls", "evidence"), alpha=(0.2, 0.1))
    calibration = report.calibration
    assert (
        list(report.scores)
        == list(calibration.likelihood)
        == list(calibration.thresholds)
        == ["cosine", "mls", "evidence"]
    )
    costs = {score: score_report.costs[0] for score, score_report in report.scores.items()}
    assert costs["evidence"].method == "conditional" and costs["evidence"].cllr < costs["mls"].cllr
    assert [rule.alpha for rule in calibration.decisions] == 3 * ([0.2] * 4 + [0.1] * 4)
    rule = calibration.decision("evidence", error="fmr", alpha=0.1)
    assert (
        rule.decides and Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    )
    assert calibration.thresholds["evidence"].at(0.01).threshold > 0
    assert "conditional" in str(calibration_section(report, plots=False).tables[0].rows)
    evidence_only = run(many_pairs(), scores=("evidence",))
    assert list(evidence_only.scores) == ["evidence"] and evidence_only.scores["evidence"].costs == [
        dataclasses.replace(cost) for cost in report.scores["evidence"].costs
    ]


def test_evidence_from_too_few_pairs_is_refused(pairs: Any) -> None:
    with pytest.raises(InputError, match=r"2000 non-mated pairs; there are \d+"):
        run(pairs, scores=("evidence",))
    with pytest.raises(InputError, match="at least one score and one alpha"):
        run(pairs, alpha=())


def test_costs_fall_with_the_confidence_of_the_pair(report: CalibrationReport) -> None:
    for score in report.scores.values():
        assert [cell.high for cell in score.cells[:-1]] == [cell.low for cell in score.cells[1:]]
        assert sum(cell.pairs for cell in score.cells) == sum(
            b.pairs for b in score.costs[0].reliability.bins
        )
        assert score.cells[0].cllr > score.cells[-1].cllr  # confident pairs are easier
    assert (
        "by kappa of the pair"
        in [table.title for table in calibration_section(report, plots=False).tables][3]
    )
