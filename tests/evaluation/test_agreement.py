"""Metrics agree with published worked examples, with other programs and with counting by hand.

Each metric also has its own tests; this file contains the checks against independent sources.
"""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    det_curve as sklearn_det_curve,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.model_selection import KFold
from tests.evaluation.template_sets import template_toy

from spherecf.data import IjbMeta, TemplateList
from spherecf.embeddings import Embeddings
from spherecf.evaluation import (
    ScoreSplit,
    TemplateOptions,
    auc,
    det_curve,
    edc,
    eer,
    evaluate_identification,
    pair_quality,
    roc,
    tenfold,
    tmr_at_fmr,
)

# The twenty scored instances of T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27
# (2006), figure 3: p is mated, n non-mated.
FAWCETT = {
    0.9: "p", 0.8: "p", 0.7: "n", 0.6: "p", 0.55: "p", 0.54: "p", 0.53: "n", 0.52: "n", 0.51: "p", 0.505: "n",
    0.4: "p", 0.39: "n", 0.38: "p", 0.37: "n", 0.36: "n", 0.35: "n", 0.34: "p", 0.33: "n", 0.3: "p", 0.1: "n",
}  # fmt: skip


def test_the_example_of_fawcett_is_reproduced() -> None:
    """Figure 3 and its text: (0.1, 0.5) at threshold 0.54 has the highest accuracy, 70 %."""
    scores, mated = np.array(list(FAWCETT)), np.array([kind == "p" for kind in FAWCETT.values()])
    curve = roc(scores, mated)
    best = int(np.argmax(curve.true - curve.false))
    assert (curve.thresholds[best], curve.fmr[best], curve.tmr[best]) == (0.54, 0.1, 0.5)
    assert accuracy_score(mated, scores >= 0.54) == 0.7
    entries = tmr_at_fmr(scores, mated, [0.1, 0.2, 0.3, 0.05])
    assert [entry.tmr for entry in entries] == [0.5, 0.5, 0.6, None]
    assert auc(scores, mated) == pytest.approx(0.68)  # 68 of 100 (p, n) pairs are in order
    # between 0.51 and 0.505, FMR rises from .3 to .4 at FNMR .4
    assert eer(scores, mated) == pytest.approx(0.4)
    fmr, fnmr, _ = det_curve(scores, mated)
    assert {(0.1, 0.5), (0.3, 0.4)} <= {(round(x, 9), round(y, 9)) for x, y in zip(fmr, fnmr)}


@pytest.mark.parametrize("ties", [False, True])
def test_det_and_auc_equal_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(0)
    mated = np.arange(3000) % 3 == 0
    scores = rng.normal(mated * 1.5, 1).round(1 if ties else 12)
    fpr, fnr, thresholds = sklearn_det_curve(mated, scores)
    curve = roc(scores, mated)
    rows = np.searchsorted(-curve.thresholds, -thresholds)  # scikit-learn omits the ends
    np.testing.assert_allclose(curve.fmr[rows], fpr, atol=1e-15)
    np.testing.assert_allclose(curve.fnmr[rows], fnr, atol=1e-15)
    split = ScoreSplit.of(scores, mated)
    assert split.eer() == pytest.approx(eer(scores, mated), abs=1e-15)
    assert auc(scores, mated) == pytest.approx(roc_auc_score(mated, scores), abs=1e-14)
    for actual, expected in zip(split.tmr_at_fmr([0.1, 0.01]), tmr_at_fmr(scores, mated, [0.1, 0.01])):
        assert actual == expected
        assert actual.tmr == pytest.approx(max(1 - fnr[fpr <= actual.target]))


def test_tenfold_accuracy_equals_the_common_scripts() -> None:
    """KFold over the list: the best threshold of nine folds, among all scores, is applied to the tenth."""
    rng = np.random.default_rng(1)
    mated = np.arange(600) // 30 % 2 == 0
    scores = rng.normal(mated * 2.0, 1)
    accuracies = []
    for train, test in KFold(10, shuffle=False).split(scores):
        thresholds = np.sort(scores[train])[::-1]
        train_accuracy = ((scores[train] >= thresholds[:, None]) == mated[train]).mean(1)
        accuracies.append(accuracy_score(mated[test], scores[test] >= thresholds[np.argmax(train_accuracy)]))
    result = tenfold(scores, mated, np.arange(600) // 60)
    assert result.accuracies == pytest.approx(accuracies)
    assert (result.mean, result.std) == (
        pytest.approx(np.mean(accuracies)),
        pytest.approx(np.std(accuracies)),
    )


def test_error_versus_discard_equals_a_hand_calculation() -> None:
    """As defined by Schlett et al. (arXiv 2303.13294): minimum quality per pair, ties together, step curve.

    Ten mated pairs, three below the threshold .6 (marked x); by quality: 20x 20 35x 40 40 55x 60 80 85 99.
    """
    left = [90, 20, 35, 95, 40, 70, 60, 80, 90, 100]
    right = [20, 80, 50, 40, 40, 55, 75, 85, 85, 99]
    scores = [0.10, 0.60, 0.15, 0.70, 0.80, 0.12, 0.90, 0.75, 0.65, 0.95]
    quality = [*pair_quality(left, right), 0]  # the last pair is non-mated, so never counted
    result = edc([*scores, 0.2], [*[1] * 10, 0], quality, start_fnmr=0.3, limits=[0.2, 0.3, 0.6])
    assert result.threshold == 0.6 and result.start == pytest.approx(3 / 10)
    assert result.discard_fraction == pytest.approx([0, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert result.fnmr == pytest.approx([3 / 10, 2 / 8, 1 / 7, 1 / 5, 0, 0, 0, 0])
    assert result.pauc["0.2"] == pytest.approx(0.06)
    assert result.pauc["0.3"] == pytest.approx(0.06 + 0.1 * 2 / 8)
    assert result.pauc["0.6"] == pytest.approx(0.085 + 0.2 / 7 + 0.1 / 5)
    assert result.pauc_normalised == pytest.approx(
        {"0.2": 1.0, "0.3": 17 / 18, "0.6": (0.105 + 0.2 / 7) / 0.18}
    )


def test_identification_equals_a_hand_calculation() -> None:
    """Coordinates are the scores of four people on the axes: ranks 1, 2, 1, 4; two probes are non-mated."""
    probes = np.array([
        [0.90, 0.10, 0.20, 0.10], [0.10, 0.60, 0.70, 0.20], [0.30, 0.20, 0.50, 0.10],
        [0.50, 0.51, 0.49, 0.40], [0.45, 0.10, 0.10, 0.10], [0.10, 0.10, 0.65, 0.10],
    ])  # fmt: skip
    last_coordinate = np.sqrt(1 - (probes**2).sum(1, keepdims=True))
    ids = np.arange(10)
    meta = IjbMeta(
        "toy", [f"{i}.jpg" for i in ids], ids, ids, galleries={"G1": TemplateList(ids[:4], ids[:4])},
        probes=TemplateList(ids[4:], np.array([0, 1, 2, 3, 8, 9])),
    )  # fmt: skip
    e = Embeddings(np.vstack([np.eye(4, 5), np.hstack([probes, last_coordinate])]), np.zeros(10), meta.files)
    report = evaluate_identification(
        e, meta, TemplateOptions(modes=["N0"], scores=["cosine"], targets=[1.0, 0.5, 0.1], draws=0)
    )
    result = report.results[0].galleries[0]
    assert result.cmc == [0.5, 0.75, 0.75, 1.0] and result.ranks["5"].value == 1.0
    loose, half, strict = result.tpir
    assert (loose.tpir, half.tpir, half.fnir, half.false_positives) == (0.5, 0.5, 0.5, 1)
    assert half.threshold == pytest.approx(0.5) and strict.tpir is None and strict.unresolved is not None
    rank_2 = evaluate_identification(
        e, meta, TemplateOptions(modes=["N0"], scores=["cosine"], targets=[0.5], draws=0), max_rank=2
    )
    assert rank_2.results[0].galleries[0].tpir[0].tpir == 0.75  # the second probe counts, too: .6 at rank 2


def test_identification_equals_scikit_learn_and_an_exhaustive_search() -> None:
    toy = template_toy(seed=3)
    report = evaluate_identification(
        toy.embeddings,
        toy.meta,
        TemplateOptions(modes=["N0"], scores=["cosine"], targets=[0.2, 0.5], draws=0),
    )
    pooled = {}
    for template in np.unique(toy.meta.templates):
        media = [
            np.mean([toy.embeddings.mu[toy.embeddings.keys.index(toy.meta.files[i])] for i in rows], 0)
            for medium in np.unique(toy.meta.media[toy.meta.templates == template])
            if (rows := np.flatnonzero((toy.meta.templates == template) & (toy.meta.media == medium))).size
        ]
        pooled[int(template)] = np.sum(media, 0) / np.linalg.norm(np.sum(media, 0))
    ids, people = toy.meta.probes
    for result in report.results[0].galleries:
        enrolled, names = toy.meta.galleries[result.gallery]
        scores = np.array([[pooled[p] @ pooled[g] for g in enrolled.tolist()] for p in ids.tolist()])
        is_mated = np.isin(people, names)
        truth = np.array([names.tolist().index(s) for s in people[is_mated].tolist()])
        for rank in (1, 5):
            expected = top_k_accuracy_score(truth, scores[is_mated], k=rank, labels=np.arange(len(names)))
            assert result.ranks[str(rank)].value == pytest.approx(expected)
        non_mated_maxima, is_rank_one = scores[~is_mated].max(1), scores[is_mated].argmax(1) == truth
        for entry in result.tpir:
            rates = [
                np.mean(is_rank_one & (scores[is_mated].max(1) >= t))
                for t in [np.inf, *scores.ravel()]
                if np.mean(non_mated_maxima >= t) <= entry.target
            ]
            assert entry.tpir == pytest.approx(max(rates)) and entry.fnir == pytest.approx(1 - max(rates))
