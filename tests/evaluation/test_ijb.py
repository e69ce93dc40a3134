"""IJB 1:1 against the slow reference: failures, modes, and independence of order and chunks."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from tests.evaluation.template_sets import TemplateToy, template_toy
from tests.reference import ijb_slow

from spherecf.data import IjbMeta, TemplatePairs
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import TemplateOptions, evaluate_ijb
from spherecf.scoring import cosine_score, mutual_likelihood_score

TARGETS = (0.3, 0.1, 0.02, 1e-3, 1e-6)


@pytest.fixture(scope="module")
def toy() -> TemplateToy:
    return template_toy()


def slow_scores(toy: TemplateToy, weights: np.ndarray, score: str) -> np.ndarray:
    meta, e = toy.meta, toy.embeddings
    pooled = ijb_slow.pooled(e, meta.files, meta.templates, meta.media, weights)
    mu, kappa = {t: x[0] for t, x in pooled.items()}, {t: x[1] for t, x in pooled.items()}
    sides = [
        torch.tensor(np.array([column[t] for t in side.tolist()]))
        for side in meta.pairs[:2]
        for column in (mu, kappa)
    ]
    if score == "cosine":
        return cosine_score(sides[0], sides[2]).numpy()
    return mutual_likelihood_score(*sides).numpy()


def weights_of(toy: TemplateToy, mode: str) -> np.ndarray:
    rows = toy.embeddings.rows(toy.meta.files)
    weights = np.ones(len(toy.meta))
    weights = weights * (toy.embeddings.extras["norm"][rows] if "N1" in mode else 1)
    weights = weights * (toy.meta.detector_score if "D1" in mode else 1)
    return weights * (toy.embeddings.kappa[rows] if "K1" in mode else 1)


@pytest.mark.parametrize("mode", ["N0D0F1K0", "N1D0F1K0", "N0D1F1K0", "N1D1F1K0", "N0D0F1K1", "N0D1F1K1"])
@pytest.mark.parametrize("score", ["cosine", "mls"])
def test_every_mode_equals_the_slow_reference(toy: TemplateToy, mode: str, score: str) -> None:
    report = evaluate_ijb(
        toy.embeddings, toy.meta, TemplateOptions(modes=[mode], scores=[score], targets=TARGETS, draws=0)
    )
    values = slow_scores(toy, weights_of(toy, mode), score)
    mated, non_mated = values[toy.meta.pairs.mated].tolist(), values[~toy.meta.pairs.mated].tolist()
    (result,) = report.results
    assert result.mode == mode
    for entry in result.tmr:
        assert entry.tmr == ijb_slow.tmr_at(mated, non_mated, entry.target)
        assert (entry.mated, entry.non_mated) == (len(mated), len(non_mated))
    fmr, tmr, _ = roc_curve(toy.meta.pairs.mated, values, drop_intermediate=False)
    for entry in result.tmr:
        if entry.tmr is not None:
            assert entry.tmr == pytest.approx(tmr[fmr <= entry.target].max())
    assert result.tmr[-1].unresolved is not None and "needs at least 1000000" in result.tmr[-1].unresolved


def test_all_modes_are_reported_with_their_differences(toy: TemplateToy) -> None:
    report = evaluate_ijb(toy.embeddings, toy.meta, TemplateOptions(targets=TARGETS, draws=20))
    names = [
        "mean, cosine",
        "norm, cosine",
        "detector, cosine",
        "kappa, cosine",
        "kappa, mls",
        "precision, pfe",
    ]
    assert [result.name for result in report.results] == names and not report.notes
    assert report.resampling == "subject-20/0" and report.counts["people"] == 24
    mean_cosine, kappa_mls = report.results[0], report.results[4]
    difference = report.differences["kappa, mls:tmr@0.1"]
    assert (
        difference.value == kappa_mls.tmr[1].tmr - mean_cosine.tmr[1].tmr and difference.interval is not None
    )
    assert (
        set(kappa_mls.tmr_intervals) == {"0.3", "0.1", "0.02"}
        and "mean, cosine:tmr@0.1" not in report.differences
    )
    draws = report.resampled["kappa, mls:tmr@0.1"] - report.resampled["mean, cosine:tmr@0.1"]
    assert difference.interval.low == np.quantile(draws, 0.025)
    content = report.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert "det" not in report.to_dict(curves=False)["results"][0]


def test_precision_pooling_and_pfe_score_equal_the_definition(toy: TemplateToy) -> None:
    report = evaluate_ijb(
        toy.embeddings, toy.meta, TemplateOptions(modes=["precision"], targets=TARGETS, draws=0)
    )
    e, meta = toy.embeddings, toy.meta
    rows, tau = e.rows(meta.files), np.exp(e.log_precision.astype(np.float64))
    pooled = {}
    for t in np.unique(meta.templates).tolist():
        rows_of_template = np.flatnonzero(meta.templates == t)
        media = [
            rows_of_template[meta.media[rows_of_template] == m]
            for m in np.unique(meta.media[rows_of_template])
        ]
        total = sum(tau[rows[m]].mean(0) for m in media)
        mean = sum((tau[rows[m]] * e.mu[rows[m]]).mean(0) for m in media) / total
        pooled[t] = mean / np.linalg.norm(mean), 1 / total
    values = []
    for a, b in zip(meta.pairs.left.tolist(), meta.pairs.right.tolist()):
        v = pooled[a][1] + pooled[b][1]
        values.append(-0.5 * ((pooled[a][0] - pooled[b][0]) ** 2 / v + np.log(v)).sum())
    values = np.array(values)
    mated, non_mated = values[meta.pairs.mated].tolist(), values[~meta.pairs.mated].tolist()
    assert [entry.tmr for entry in report.results[0].tmr] == [
        ijb_slow.tmr_at(mated, non_mated, t) for t in TARGETS
    ]


def test_the_signature_contains_meta_mode_pooling_and_score(toy: TemplateToy) -> None:
    result = evaluate_ijb(
        toy.embeddings, toy.meta, TemplateOptions(modes=["D1K1"], scores=["mls"], draws=0)
    ).results[0]
    assert result.signature.startswith(f"toy/1:1|meta:sha256:{toy.meta.fingerprint()[:12]}|")
    assert "|flip:sum|" in result.signature
    assert (
        "|mode:N0D1F1K1|pool:media-mean+detector*kappa|score:mls|r:64|fmr:at-most|ci:none|"
        in result.signature
    )
    cosine = evaluate_ijb(toy.embeddings, toy.meta, TemplateOptions(modes=["N0"], draws=10, seed=3)).results[
        0
    ]
    assert "|score:cosine|fmr:at-most|ci:subject-10/3|" in cosine.signature


def without_images(e: Embeddings, lost_files: set[str], skipped: bool) -> Embeddings:
    part = e.select([row for row, key in enumerate(e.keys) if key not in lost_files])
    return dataclasses.replace(
        part, skipped=[(key, "truncated JPEG") for key in lost_files] if skipped else []
    )


@pytest.mark.parametrize("skipped", [True, False])
def test_missing_images_are_failures_to_acquire(toy: TemplateToy, skipped: bool) -> None:
    meta = toy.meta
    emptied = int(meta.pairs.left[0])
    lost_files = {f for f, t in zip(meta.files, meta.templates.tolist()) if t == emptied}
    single_loss = next(
        f for f, t in zip(meta.files, meta.templates.tolist()) if t != emptied and f.endswith("_1.jpg")
    )
    e = without_images(toy.embeddings, lost_files | {single_loss}, skipped)
    report = evaluate_ijb(e, meta, TemplateOptions(modes=["K1"], scores=["cosine"], targets=TARGETS, draws=0))
    failed_pairs = (meta.pairs.left == emptied) | (meta.pairs.right == emptied)
    assert report.failed_templates == [emptied] and report.counts["failed_templates"] == 1
    assert (
        report.counts["failed_pairs"] == failed_pairs.sum()
        and report.counts["pairs"] == (~failed_pairs).sum()
    )
    reason = "truncated JPEG" if skipped else "not among the embeddings"
    assert sorted(report.failures) == sorted((key, reason) for key in lost_files | {single_loss})
    pooled = ijb_slow.pooled(e, meta.files, meta.templates, meta.media, weights_of(toy, "K1"))
    scored_pairs = [
        (a, b, m) for a, b, m in zip(*(c.tolist() for c in meta.pairs)) if a in pooled and b in pooled
    ]
    values = [(float(pooled[a][0] @ pooled[b][0]), m) for a, b, m in scored_pairs]
    expected = [
        ijb_slow.tmr_at([v for v, m in values if m], [v for v, m in values if not m], t) for t in TARGETS
    ]
    assert [entry.tmr for entry in report.results[0].tmr] == expected


def test_subjects_come_from_the_lists_or_from_connected_templates(toy: TemplateToy) -> None:
    without_lists = dataclasses.replace(toy.meta, galleries={}, probes=None)
    report = evaluate_ijb(
        toy.embeddings, without_lists, TemplateOptions(modes=["N0"], targets=TARGETS, draws=20)
    )
    assert report.resampling == "component-20/0" and "|ci:component-20/0|" in report.results[0].signature
    flipped_labels = toy.meta.pairs.mated.copy()
    flipped_labels[:3] ^= True
    mislabelled = dataclasses.replace(toy.meta, pairs=toy.meta.pairs._replace(mated=flipped_labels))
    notes = evaluate_ijb(
        toy.embeddings, mislabelled, TemplateOptions(modes=["N0"], targets=TARGETS, draws=0)
    ).notes
    assert notes == ["3 pairs have a label that contradicts the subjects of their templates."]


def test_results_do_not_depend_on_the_order_of_pairs_and_entries(toy: TemplateToy) -> None:
    rng = np.random.default_rng(5)
    entries, pairs = rng.permutation(len(toy.meta)), rng.permutation(len(toy.meta.pairs.mated))
    shuffled = dataclasses.replace(
        toy.meta, files=[toy.meta.files[i] for i in entries], templates=toy.meta.templates[entries],
        media=toy.meta.media[entries], detector_score=toy.meta.detector_score[entries],
        pairs=type(toy.meta.pairs)(*(column[pairs] for column in toy.meta.pairs)),
    )  # fmt: skip
    original = evaluate_ijb(toy.embeddings, toy.meta, TemplateOptions(targets=TARGETS, draws=0))
    reordered = evaluate_ijb(toy.embeddings, shuffled, TemplateOptions(targets=TARGETS, draws=0))
    for a, b in zip(original.results, reordered.results):
        assert [e.true_matches for e in a.tmr] == [e.true_matches for e in b.tmr]


def with_changes(toy: TemplateToy, **parts: Any) -> Embeddings:
    return dataclasses.replace(toy.embeddings, **parts)


def test_pairs_of_a_template_with_itself_are_noted(toy: TemplateToy) -> None:
    left, right, mated = (column.copy() for column in toy.meta.pairs)
    rows = np.flatnonzero(mated)[:2]
    left[rows] = right[rows]
    meta = dataclasses.replace(toy.meta, pairs=TemplatePairs(left, right, mated))
    notes = evaluate_ijb(toy.embeddings, meta, TemplateOptions(modes=["N0"], draws=0)).notes
    assert notes == ["2 pairs compare a template with itself; they are counted as labelled."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ["N2"]}, "expected a name like N0D0F1K1, or precision, got 'N2'"),
        ({"modes": [""]}, "expected a name like"),
        ({"modes": ["F0"]}, "F0 needs embeddings without the mirrored image, .* embed without --flip"),
        ({"scores": ["euclid"]}, "score: expected any of cosine, mls, pfe"),
        ({"modes": ["N0"], "scores": ["pfe"]}, "pfe goes with mode precision, not with N0D0F1K0"),
        ({"draws": -1}, "draws: expected 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"targets": [0.0]}, "FMR target"),
        ({"targets": [2.0]}, "FMR target"),
    ],
)
def test_bad_options_are_refused(toy: TemplateToy, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_ijb(toy.embeddings, toy.meta, TemplateOptions(**{"draws": 0} | options))


def test_flip_modes_must_match_the_embeddings(toy: TemplateToy) -> None:
    plain = with_changes(toy, provenance={"flip": "none"})
    with pytest.raises(InputError, match=r"F1 needs embeddings with the mirrored image added, .*--flip`"):
        evaluate_ijb(plain, toy.meta, TemplateOptions(modes=["F1"], draws=0))
    assert evaluate_ijb(plain, toy.meta, TemplateOptions(modes=["N0"], draws=0)).results[0].mode == "N0D0F0K0"
    unrecorded = with_changes(toy, provenance={})
    with pytest.raises(InputError, match="do not record whether mirrored images were added"):
        evaluate_ijb(unrecorded, toy.meta, TemplateOptions(modes=["F1"], draws=0))
    assert (
        evaluate_ijb(unrecorded, toy.meta, TemplateOptions(modes=["N0"], draws=0)).results[0].mode
        == "N0D0F?K0"
    )


def test_missing_columns_limit_the_modes_and_are_noted(toy: TemplateToy) -> None:
    bare = with_changes(toy, extras={}, log_precision=None, provenance={"log_kappa": "constant"})
    meta = dataclasses.replace(toy.meta, detector_score=None)
    report = evaluate_ijb(bare, meta, TemplateOptions(targets=TARGETS, draws=0))
    assert [result.name for result in report.results] == ["mean, cosine"]
    assert [note.split(":")[1][:9] for note in report.notes] == [" mode N1", " mode D1", " pooling "]
    report_of_kappa = evaluate_ijb(
        bare, meta, TemplateOptions(modes=["K1"], scores=["cosine"], targets=TARGETS, draws=0)
    )
    assert (
        report_of_kappa.notes[0].startswith("kappa is constant")
        and "|kappa:constant|" in report_of_kappa.results[0].signature
    )
    for mode, message in (("N1", "extra `norm`"), ("D1", "name_5pts_score"), ("precision", "log_precision")):
        with pytest.raises(InputError, match=message):
            evaluate_ijb(bare, meta, TemplateOptions(modes=[mode], draws=0))
    with pytest.raises(InputError, match="pfe needs embeddings with log_precision"):
        evaluate_ijb(bare, meta, TemplateOptions(scores=["pfe"], draws=0))


def test_sets_without_scorable_pairs_are_refused(toy: TemplateToy) -> None:
    entries = IjbMeta(
        "toy", toy.meta.files, toy.meta.templates, toy.meta.media, absent={"x_pair_label.txt": "gone"}
    )
    with pytest.raises(
        InputError, match=r"a list of template pairs is needed but missing: x_pair_label.txt \(gone\)"
    ):
        evaluate_ijb(toy.embeddings, entries, TemplateOptions(draws=0))
    other_keys = with_changes(toy, keys=[f"x/{key}" for key in toy.embeddings.keys])
    with pytest.raises(InputError, match=r"none of its \d+ images is among .* they must match"):
        evaluate_ijb(other_keys, toy.meta, TemplateOptions(draws=0))
    mated = {int(t) for side in toy.meta.pairs[:2] for t in side[toy.meta.pairs.mated]}
    lost_files = {f for f, t in zip(toy.meta.files, toy.meta.templates.tolist()) if t in mated}
    with pytest.raises(InputError, match=r"0 mated and .* non-mated; error rates need both kinds"):
        evaluate_ijb(without_images(toy.embeddings, lost_files, True), toy.meta, TemplateOptions(draws=0))
    zero_norm = with_changes(
        toy, extras={"norm": np.where(toy.meta.templates[:-1] == toy.meta.templates[0], 0, 1)}
    )
    with pytest.raises(InputError, match=r"1 of 72 templates have no direction, .*all its weights are 0"):
        evaluate_ijb(zero_norm, toy.meta, TemplateOptions(modes=["N1"], draws=0))
