"""The pair protocol as a whole: correct numbers, separate failures, and bad input reported."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import Toy, embeddings

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import eer, tenfold, tmr_at_fmr
from spherecf.scoring import mutual_likelihood_score


def test_reported_numbers_equal_the_metrics(toy: Toy) -> None:
    report = toy.report(right=toy.degraded)
    a, b = toy.clean.rows(toy.left), toy.degraded.rows(toy.right)
    mls = mutual_likelihood_score(
        torch.from_numpy(toy.clean.mu[a]).double(), torch.from_numpy(toy.clean.kappa[a]).double(),
        torch.from_numpy(toy.degraded.mu[b]).double(), torch.from_numpy(toy.degraded.kappa[b]).double(),
    ).numpy()  # fmt: skip
    mls_report = report.scores["mls"]
    expected = tenfold(mls, toy.mated, toy.folds)
    assert mls_report.tenfold.accuracies == pytest.approx(expected.accuracies)
    assert mls_report.accuracy.value == expected.mean and mls_report.eer.value == pytest.approx(
        eer(mls, toy.mated)
    )
    assert [entry.tmr for entry in mls_report.tmr] == [
        e.tmr for e in tmr_at_fmr(mls, toy.mated, [0.1, 0.01, 0.001])
    ]
    cosine = (toy.clean.mu[a].astype(float) * toy.degraded.mu[b]).sum(1)
    assert report.scores["cosine"].tenfold.mean == tenfold(cosine, toy.mated, toy.folds).mean
    difference = report.differences["mls-cosine:eer"]
    assert difference.value == pytest.approx(mls_report.eer.value - report.scores["cosine"].eer.value)
    repeated = 400 - len({*zip(toy.left, toy.right)})
    assert report.counts == {
        "images": len({*a.tolist()}) + len({*b.tolist()}), "pairs": 400, "mated": 200, "non_mated": 200,
        "subjects": 40, "failed_images": 0, "failed_pairs": 0, "contradictions": 0,
        "repeated_pairs": repeated,
    }  # fmt: skip
    assert report.absent_confidences == ["detector_score", "sharpness"]


def test_pairs_whose_label_contradicts_the_people_are_counted(toy: Toy) -> None:
    people = [[key.split("/")[0] for key in keys] for keys in (toy.left, toy.right)]
    wrong = toy.mated.copy()
    wrong[:3] ^= True
    report = dataclasses.replace(toy, mated=wrong).report()
    assert report.resampling == "none" and report.counts["contradictions"] == 3
    assert toy.report(subjects=people).counts["contradictions"] == 0
    # Without people nothing can be said.
    bare = dataclasses.replace(toy.clean, labels=None, identities=[])
    assert dataclasses.replace(toy, mated=wrong).report(bare).counts["contradictions"] == 0


def test_repeated_pairs_are_counted_in_either_order(toy: Toy) -> None:
    columns = toy.left, toy.right, toy.mated, toy.folds
    left, right, mated, folds = (list(column[:100]) for column in columns)
    few = dataclasses.replace(toy, left=left, right=right, mated=np.array(mated), folds=np.array(folds))
    twice = dataclasses.replace(
        few, left=left + right[:7], right=right + left[:7], mated=np.array(mated + mated[:7]),
        folds=np.array(folds + folds[:7]),
    )  # fmt: skip
    once = few.report().counts["repeated_pairs"]
    assert twice.report().counts["repeated_pairs"] == once + 7
    # Between two files, the same keys in the other order are another pair.
    across = [case.report(toy.clean, toy.degraded).counts["repeated_pairs"] for case in (few, twice)]
    assert across[0] == across[1]


def test_unresolved_targets_have_no_numbers(toy: Toy) -> None:
    report = toy.report(draws=50)
    mls = report.scores["mls"]
    assert mls.tmr[2].tmr is None and "needs at least 1000 non-mated pairs, there are 200" in str(
        mls.tmr[2].unresolved
    )
    assert mls.measure("tmr@0.001") is None and set(mls.tmr_intervals) == {"0.1", "0.01"}
    assert "mls-cosine:tmr@0.001" not in report.differences and "mls-cosine:tmr@0.01" in report.differences


def test_skipped_images_are_failures_to_acquire_and_never_scored(toy: Toy) -> None:
    lost_keys = toy.left[0], toy.right[7]
    kept_rows = [row for row, key in enumerate(toy.clean.keys) if key not in lost_keys]
    part = dataclasses.replace(
        toy.clean.select(kept_rows), skipped=[(key, "truncated JPEG") for key in lost_keys]
    )
    scored = np.array([not {a, b} & set(lost_keys) for a, b in zip(toy.left, toy.right)])
    report = toy.report(part, extra_scores={"one": np.where(scored, toy.mated, np.nan)})
    assert report.counts["pairs"] == scored.sum() < 400 and report.counts["failed_pairs"] == (~scored).sum()
    assert report.counts["failed_images"] == 2 and report.failures == sorted(
        (k, "truncated JPEG") for k in lost_keys
    )
    assert report.scores["one"].accuracy.value == 1.0
    rows = [toy.clean.rows(np.array(side)[scored]) for side in (toy.left, toy.right)]
    cosine = (toy.clean.mu[rows[0]].astype(float) * toy.clean.mu[rows[1]]).sum(1)
    expected = tenfold(cosine, toy.mated[scored], toy.folds[scored])
    assert report.scores["cosine"].tenfold.accuracies == expected.accuracies


def test_the_signature_contains_all_inputs_and_settings(toy: Toy) -> None:
    report = toy.report(right=toy.degraded, condition="clean/degraded", draws=20, seed=5)
    parts = dict(part.split(":", 1) for part in report.scores["mls"].signature.split("|")[1:])
    assert (
        parts["condition"] == "clean/degraded"
        and parts["pairs"] == f"sha256:{toy.pairs().fingerprint()[:12]}"
    )
    assert parts["view"] == "clean+cross-v1/0" and parts["backbone"] == "sha256:bbbbbbbbbbbb"
    assert parts["embeddings"].count("sha256:") == 2 and parts["ci"] == "subject-20/5" and parts["r"] == "64"
    assert {"data", "model", "score", "fmr", "spherecf"} <= set(parts)
    assert "|r:" not in report.scores["cosine"].signature


def test_the_radius_comes_from_the_provenance_and_shifts_all_scores_equally(toy: Toy) -> None:
    at_8 = embeddings(np.full(240, 0.5), 2, radius=8.0)
    default, explicit = toy.report(at_8), toy.report(at_8, radius=64.0)
    assert "|r:8|" in default.scores["mls"].signature and "|r:64|" in explicit.scores["mls"].signature
    assert default.scores["mls"].eer == explicit.scores["mls"].eer
    bare = Embeddings(at_8.mu, at_8.log_kappa, at_8.keys)
    assert "|r:64|" in toy.report(bare).scores["mls"].signature


def test_without_subjects_images_are_resampled(toy: Toy) -> None:
    unknown = dataclasses.replace(toy.clean, labels=np.full(240, -1), identities=())
    unlabelled = dataclasses.replace(toy.clean, labels=None, identities=())
    for embeddings_file in (unknown, unlabelled):
        report = toy.report(embeddings_file, draws=20)
        assert report.resampling == "image-20/0" and report.counts["subjects"] == 0
        assert "|ci:image-20/0|" in report.scores["cosine"].signature
    people = [key.split("/")[0] for key in toy.left], [key.split("/")[0] for key in toy.right]
    named, by_labels = toy.report(unlabelled, draws=20, subjects=people), toy.report(draws=20)
    assert named.resampling == "subject-20/0" and named.scores["mls"].eer == by_labels.scores["mls"].eer


def test_log_lines_have_the_common_format(toy: Toy) -> None:
    lines = toy.report(step=7).log_lines()
    assert lines[0].startswith("[toy][7]Accuracy-Flip: 0.") and lines[1].startswith(
        "[toy:mls][7]Accuracy-Flip: "
    )


def test_the_report_serialises_to_json(toy: Toy) -> None:
    report = toy.report(right=toy.degraded, draws=20)
    content = report.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    short = report.to_dict(curves=False)
    assert (
        "rejection" not in short and "det" not in short["scores"]["mls"] and short["counts"] == report.counts
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ["cosine", "euclid"]}, "'euclid'.*unknown, expected any of"),
        ({"scores": []}, "none requested"),
        ({"extra_scores": {"mls": np.zeros(400)}}, "'mls': this name is already used"),
        ({"extra_scores": {"mine": np.zeros(399)}}, r"'mine': expected \(400,\), got \(399,\)"),
        ({"extra_scores": {"mine": ["x"] * 400}}, "extra score 'mine': expected real numbers"),
        ({"extra_scores": {"mine": np.full(400, np.nan)}}, "'mine': 400 of 400 pairs are NaN"),
        ({"targets": [0.0]}, "FMR target"),
        ({"subjects": (["a"], ["b"])}, "toy: expected columns of equal length"),
        ({"draws": 10, "subjects": (["a"] * 400, ["a"] * 400)}, "at least 2 subjects"),
        ({"draws": -1}, "draws: expected 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_bad_options_are_refused(toy: Toy, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy.report(**options)


def test_embeddings_of_two_recognisers_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="dimension 16, right 2"):
        toy.report(right=Embeddings(np.eye(2), np.zeros(2), ["a", "b"]))
    other_recogniser = embeddings(np.full(240, 0.5), 2, backbone="c" * 64)
    with pytest.raises(InputError, match=r"backbone sha256:bbbbbbbbbbbb, right of sha256:cccccccccccc"):
        toy.report(right=other_recogniser)


def test_without_cosine_there_are_no_differences_to_it(toy: Toy) -> None:
    report = toy.report(scores=["mls"])
    assert list(report.scores) == ["mls"] and report.differences == {}
