"""The pair protocol as a whole: right numbers, failures set apart, bad input named."""

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


def test_numbers_are_those_of_the_metrics(toy: Toy) -> None:
    report = toy.report(right=toy.degraded)
    a, b = toy.clean.rows(toy.left), toy.degraded.rows(toy.right)
    mls = mutual_likelihood_score(
        torch.from_numpy(toy.clean.mu[a]).double(), torch.from_numpy(toy.clean.kappa[a]).double(),
        torch.from_numpy(toy.degraded.mu[b]).double(), torch.from_numpy(toy.degraded.kappa[b]).double(),
    ).numpy()  # fmt: skip
    found = report.scores["mls"]
    expected = tenfold(mls, toy.mated, toy.folds)
    assert found.tenfold.accuracies == pytest.approx(expected.accuracies)
    assert found.accuracy.value == expected.mean and found.eer.value == pytest.approx(eer(mls, toy.mated))
    assert [entry.tmr for entry in found.tmr] == [
        e.tmr for e in tmr_at_fmr(mls, toy.mated, [0.1, 0.01, 0.001])
    ]
    cosine = (toy.clean.mu[a].astype(float) * toy.degraded.mu[b]).sum(1)
    assert report.scores["cosine"].tenfold.mean == tenfold(cosine, toy.mated, toy.folds).mean
    difference = report.differences["mls-cosine:eer"]
    assert difference.value == pytest.approx(found.eer.value - report.scores["cosine"].eer.value)
    assert report.counts == {
        "images": len({*a.tolist()}) + len({*b.tolist()}), "pairs": 400, "mated": 200, "non_mated": 200,
        "subjects": 40, "failed_images": 0, "failed_pairs": 0,
    }  # fmt: skip
    assert report.absent_confidences == ["detector_score", "sharpness"]


def test_a_target_without_enough_pairs_has_no_number_anywhere(toy: Toy) -> None:
    report = toy.report(draws=50)
    mls = report.scores["mls"]
    assert mls.tmr[2].tmr is None and "needs at least 1000 non-mated pairs, there are 200" in str(
        mls.tmr[2].unresolved
    )
    assert mls.measure("tmr@0.001") is None and set(mls.tmr_intervals) == {"0.1", "0.01"}
    assert "mls-cosine:tmr@0.001" not in report.differences and "mls-cosine:tmr@0.01" in report.differences


def test_skipped_images_are_failures_to_acquire_and_never_scored(toy: Toy) -> None:
    gone = toy.left[0], toy.right[7]
    stay = [row for row, key in enumerate(toy.clean.keys) if key not in gone]
    part = dataclasses.replace(toy.clean.select(stay), skipped=[(key, "truncated JPEG") for key in gone])
    scored = np.array([not {a, b} & set(gone) for a, b in zip(toy.left, toy.right)])
    report = toy.report(part, extra_scores={"one": np.where(scored, toy.mated, np.nan)})
    assert report.counts["pairs"] == scored.sum() < 400 and report.counts["failed_pairs"] == (~scored).sum()
    assert report.counts["failed_images"] == 2 and report.failures == sorted(
        (k, "truncated JPEG") for k in gone
    )
    assert report.scores["one"].accuracy.value == 1.0
    rows = [toy.clean.rows(np.array(side)[scored]) for side in (toy.left, toy.right)]
    cosine = (toy.clean.mu[rows[0]].astype(float) * toy.clean.mu[rows[1]]).sum(1)
    expected = tenfold(cosine, toy.mated[scored], toy.folds[scored])
    assert report.scores["cosine"].tenfold.accuracies == expected.accuracies


def test_the_signature_names_what_the_number_depends_on(toy: Toy) -> None:
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


def test_radius_comes_from_the_provenance_and_shifts_every_score_alike(toy: Toy) -> None:
    at_8 = embeddings(np.full(240, 0.5), 2, radius=8.0)
    default, given = toy.report(at_8), toy.report(at_8, radius=64.0)
    assert "|r:8|" in default.scores["mls"].signature and "|r:64|" in given.scores["mls"].signature
    assert default.scores["mls"].eer == given.scores["mls"].eer
    bare = Embeddings(at_8.mu, at_8.log_kappa, at_8.keys)
    assert "|r:64|" in toy.report(bare).scores["mls"].signature


def test_without_people_images_are_drawn_and_the_signature_says_so(toy: Toy) -> None:
    unknown = dataclasses.replace(toy.clean, labels=np.full(240, -1), identities=())
    none = dataclasses.replace(toy.clean, labels=None, identities=())
    for nobody in (unknown, none):
        report = toy.report(nobody, draws=20)
        assert report.resampling == "image-20/0" and report.counts["subjects"] == 0
        assert "|ci:image-20/0|" in report.scores["cosine"].signature
    people = [key.split("/")[0] for key in toy.left], [key.split("/")[0] for key in toy.right]
    named, by_labels = toy.report(none, draws=20, subjects=people), toy.report(draws=20)
    assert named.resampling == "subject-20/0" and named.scores["mls"].eer == by_labels.scores["mls"].eer


def test_log_lines(toy: Toy) -> None:
    lines = toy.report(step=7).log_lines()
    assert lines[0].startswith("[toy][7]Accuracy-Flip: 0.") and lines[1].startswith(
        "[toy:mls][7]Accuracy-Flip: "
    )


def test_plain_data_for_json(toy: Toy) -> None:
    report = toy.report(right=toy.degraded, draws=20)
    everything = report.to_dict()
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything
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
        ({"extra_scores": {"mine": np.full(400, np.nan)}}, "'mine': 400 of 400 pairs are NaN"),
        ({"targets": [0.0]}, "FMR target"),
        ({"subjects": (["a"], ["b"])}, "toy: expected columns of equal length"),
        ({"draws": 10, "subjects": (["a"] * 400, ["a"] * 400)}, "at least 2 subjects"),
        ({"draws": -1}, "draws: expected 0"),
    ],
)
def test_bad_options(toy: Toy, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy.report(**options)


def test_two_recognisers_are_not_compared(toy: Toy) -> None:
    with pytest.raises(InputError, match="dimension 16, right 2"):
        toy.report(right=Embeddings(np.eye(2), np.zeros(2), ["a", "b"]))
    other = embeddings(np.full(240, 0.5), 2, backbone="c" * 64)
    with pytest.raises(InputError, match=r"backbone sha256:bbbbbbbbbbbb, right of sha256:cccccccccccc"):
        toy.report(right=other)
