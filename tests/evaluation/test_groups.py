"""Rates by group against loops: one threshold for all, thresholds per group, and the spread."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from tests.evaluation.conftest import Toy
from tests.evaluation.template_sets import template_toy
from tests.reference import ijb_slow

from spherecf.errors import InputError
from spherecf.evaluation import (
    TemplateOptions,
    by_group,
    evaluate_ijb,
    extra_groups,
    pair_groups,
    template_groups,
    tenfold,
    tmr_at_fmr,
)
from spherecf.evaluation.groups import BETWEEN
from spherecf.report import group_table

RNG = np.random.default_rng(0)
N = 400
MATED = RNG.random(N) < 0.4
SCORES = np.round(RNG.normal(size=N) + 1.5 * MATED, 1)  # with many ties
LEFT, RIGHT = RNG.choice(["A", "B", "C", ""], N, p=[0.4, 0.3, 0.25, 0.05]), RNG.choice(["A", "B"], N)
RIGHT = np.where(RNG.random(N) < 0.9, LEFT, RIGHT)
TARGETS = [0.3, 0.05, 1e-4]


def test_every_rate_equals_the_slow_reference() -> None:
    folds = np.arange(N) % 5
    report = by_group(SCORES, MATED, LEFT, RIGHT, TARGETS, folds=folds)
    is_grouped = (LEFT != "") & (RIGHT != "")
    assert report.ungrouped == (~is_grouped).sum()
    assert report.overall == tmr_at_fmr(SCORES[is_grouped], MATED[is_grouped], TARGETS)
    threshold = max(
        sorted({*SCORES[is_grouped].tolist(), np.inf}, reverse=True),
        key=lambda t: accuracy_score(MATED[is_grouped], SCORES[is_grouped] >= t),
    )
    assert report.accuracy_threshold == threshold
    assert [group.group for group in report.groups] == ["A", "B", "C", BETWEEN]
    for group in report.groups:
        rows = is_grouped & (
            (LEFT != RIGHT) if group.group == BETWEEN else (group.group == LEFT) & (group.group == RIGHT)
        )
        s, m = SCORES[rows], MATED[rows]
        assert (group.mated, group.non_mated) == (m.sum(), (~m).sum())
        assert group.accuracy == accuracy_score(m, s >= threshold)
        assert group.own_accuracy == tenfold(s, m, folds[rows]).mean
        for entry, overall in zip(group.at, report.overall):
            assert entry.fmr == np.mean(s[~m] >= overall.threshold) and entry.tmr == np.mean(
                s[m] >= overall.threshold
            )
        expected = [ijb_slow.tmr_at(s[m].tolist(), s[~m].tolist(), target) for target in TARGETS]
        assert [entry.tmr for entry in group.own] == expected
    assert len(report.groups[0].at) == 2 and report.overall[2].unresolved is not None
    within = report.groups[:3]
    fmr = [group.at[0].fmr for group in within]
    assert report.spread["fmr@0.3"] == max(fmr) / min(fmr)
    assert report.spread["error"] == max(1 - g.accuracy for g in within) / min(1 - g.accuracy for g in within)
    assert set(report.spread) == {"error", "fmr@0.3", "fnmr@0.3", "fmr@0.05", "fnmr@0.05"}
    everything = report.to_dict()
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything
    note = group_table(report, "toy").note
    assert note.endswith(f". {report.ungrouped} pairs with an image of unknown group are left out.")


def test_a_group_without_non_mated_pairs_has_no_own_rates() -> None:
    report = by_group([3, 1, 2, 0, 5], [1, 0, 1, 0, 1], list("AABBC"), list("AABBC"), 0.5)
    mated_only = report.groups[2]
    assert mated_only.at[0].fmr is None and mated_only.own == [] and mated_only.own_accuracy is None
    assert report.spread["fmr@0.5"] is None and report.spread["fnmr@0.5"] == 1.0
    table = group_table(report, "toy")
    assert table.rows[2] == ["most accurate", "C", "1", "0", "–", "–", "1.0000", "–"]
    assert table.rows[-1] == ["FMR ≤ 0.5", "largest / smallest", "", "", "–", "1.00 (FNMR)", "", ""]


def test_a_spread_over_a_zero_rate_is_infinite() -> None:
    report = by_group([3, 1, 2, 2.5], [1, 0, 1, 0], list("AABB"), list("AABB"), 0.5)
    assert [group.at[0].fmr for group in report.groups] == [0.0, 1.0] and report.spread["fmr@0.5"] == np.inf
    assert group_table(report, "toy").rows[-1][4] == "∞" and report.to_dict()["spread"]["fmr@0.5"] == "inf"


def test_without_folds_the_own_accuracy_is_at_the_best_threshold() -> None:
    report = by_group([3, 1, 2, 2.5], [1, 0, 1, 0], list("AABB"), list("AABB"), 0.5)
    assert [group.own_accuracy for group in report.groups] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (["A"] * 4, r"at least two, the pairs are of \['A'\]"),
        (["A"] * 3, "one per side of"),
        ([""] * 4, r"of \[\]"),
    ],
)
def test_bad_groups_are_refused(left: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_group([3, 1, 2, 0], [1, 0, 1, 0], left, left, 0.5)


def test_a_list_with_only_cross_group_pairs_is_evaluated() -> None:
    report = by_group([3, 1, 2], [1, 0, 0], list("AAA"), list("BBB"), 0.5)
    assert [group.group for group in report.groups] == [BETWEEN]
    assert report.spread == {"error": None, "fmr@0.5": None, "fnmr@0.5": None}
    assert group_table(report, "toy").rows[-1][4] == "–"


def test_pairs_are_grouped_by_image_person_or_extra(toy: Toy) -> None:
    e = toy.clean
    by_person = {name: "odd" if int(name[1:]) % 2 else "even" for name in e.identities}
    images = {key: by_person[key.split("/")[0]] for key in e.keys}
    arguments = (e, e, toy.pairs())
    by_image = pair_groups(*arguments, images, "image")
    by_subject = pair_groups(*arguments, by_person, "subject")
    assert by_image == by_subject and set(by_image) == {"cosine", "mls"}
    a = np.array([images[key] for key in toy.left])
    b = np.array([images[key] for key in toy.right])
    rows = e.rows(toy.left), e.rows(toy.right)
    cosine = (e.mu[rows[0]].astype(float) * e.mu[rows[1]]).sum(1)
    expected = by_group(cosine, toy.mated, a, b, [1e-1, 1e-2, 1e-3], folds=toy.folds)
    assert by_image["cosine"].groups[0].own_accuracy == expected.groups[0].own_accuracy
    severity = dataclasses.replace(e, extras={"severity": np.arange(len(e)) % 3})
    assert set(extra_groups(severity, "severity").values()) == {"0", "1", "2"}
    cameras = dataclasses.replace(e, extras={"camera": 1234567 + np.arange(len(e)) % 2})
    assert set(extra_groups(cameras, "camera").values()) == {"1234567", "1234568"}
    with pytest.raises(InputError, match=r"no extra 'age' \(they have: severity\)"):
        extra_groups(severity, "age")
    other_recogniser = dataclasses.replace(e, provenance={**e.provenance, "backbone": "x" * 64})
    with pytest.raises(InputError, match="scores between two recognisers are meaningless"):
        pair_groups(e, other_recogniser, *arguments[2:], images, "image")
    with pytest.raises(InputError, match="no image has a group; they look like 'p"):
        pair_groups(*arguments, {"x": "A"}, "image")
    with pytest.raises(InputError, match="groups of 'template'"):
        pair_groups(*arguments, images, "template")


def test_templates_are_grouped_by_template_person_or_image() -> None:
    toy = template_toy()
    people = toy.meta.subjects()
    by_person = {str(s): "odd" if s % 2 else "even" for s in people.values()}
    named = template_groups(toy.meta, by_person, "subject")
    by_template = {str(t): group for t, group in named.items()}
    assert template_groups(toy.meta, by_template, "template") == named | {
        t: "" for t in np.unique(toy.meta.templates).tolist() if t not in named
    }
    images = {f: named.get(t, "odd") for f, t in zip(toy.meta.files[:-1], toy.meta.templates.tolist())}
    by_image = template_groups(toy.meta, images, "image")
    mixed = int(toy.meta.templates[-1])  # contains an image of another person
    assert all(by_image[t] == named[t] for t in named if t != mixed)
    with pytest.raises(InputError, match="expected template, subject or image"):
        template_groups(toy.meta, images, "person")
    report = evaluate_ijb(
        toy.embeddings, toy.meta, TemplateOptions(modes=["K1"], targets=[0.1], draws=0), groups=named
    )
    for result in report.results:
        groups = result.groups
        assert groups is not None and [g.group for g in groups.groups] == ["even", "odd", BETWEEN]
        assert groups.overall == result.tmr and groups.ungrouped == 0
        assert sum(g.mated for g in groups.groups) == report.counts["mated"]
    assert report.to_dict()["results"][0]["groups"]["groups"][0]["group"] == "even"
