"""Images of a pair list: counted once per file, and grouped by severity."""

import numpy as np
import pytest

from spherecf.embeddings import Embeddings
from spherecf.evaluation import edc, pair_quality, rejection_curve
from spherecf.evaluation.pairs import Images, edc_curves, kappa_histograms, rejection_curves


def file(kappa: list[float], **extras: list[float]) -> Embeddings:
    columns = {name: np.array(column) for name, column in extras.items()}
    n = len(kappa)
    return Embeddings(np.eye(n), np.log(kappa), [f"k{i}" for i in range(n)], extras=columns)


def test_a_key_in_two_files_is_two_images() -> None:
    clean, degraded = (
        file([1, 2, 3], norm=[1, 2, 3]),
        file([10, 20, 30], norm=[4, 5, 6], severity=[0.1, 0.2, 0.3]),
    )
    rows = np.array([0, 0, 2]), np.array([1, 2, 0])
    one_file = Images.of(clean, clean, *rows, ["kappa", "norm", "severity"], 0)
    assert one_file.kappa.tolist() == pytest.approx([1, 2, 3]) and one_file.absent == ["severity"]
    assert one_file.kappa[one_file.left].tolist() == pytest.approx([1, 1, 3])
    two_files = Images.of(clean, degraded, *rows, ["norm"], 0)
    assert two_files.kappa.tolist() == pytest.approx([1, 3, 10, 20, 30])
    assert two_files.confidences["norm"][two_files.right].tolist() == [5, 6, 4]
    assert two_files.severity is not None and two_files.severity.tolist() == pytest.approx(
        [0, 0, 0.1, 0.2, 0.3]
    )


def test_curves_equal_the_metrics() -> None:
    rng = np.random.default_rng(0)
    e = Embeddings(np.eye(60), rng.normal(size=60), [str(i) for i in range(60)])
    left, right, mated = rng.integers(0, 60, 200), rng.integers(0, 60, 200), rng.random(200) < 0.5
    scores = rng.normal(mated)
    images = Images.of(e, e, left, right, ["kappa", "random"], 3)
    quality = pair_quality(e.kappa[left], e.kappa[right])
    edc_results = edc_curves({"s": scores}, mated, images, [("fnmr", 0.1), ("fmr", 0.05)])
    assert [(d.confidence, d.start) for d in edc_results[:2]] == [
        ("kappa", "fnmr<=0.1"),
        ("kappa", "fmr<=0.05"),
    ]
    assert edc_results[0].edc == edc(scores, mated, quality, start_fnmr=0.1)
    assert edc_results[1].edc == edc(scores, mated, quality, fmr=0.05)
    curves = rejection_curves({"s": scores}, mated, images, [0.1])
    assert [c.confidence for c in curves] == ["kappa", "random"]
    expected = rejection_curve(scores, mated, images.kappa, 0.1, images=(images.left, images.right))
    assert curves[0].curve == expected


def test_derived_confidences_and_oracle_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    e = Embeddings(np.eye(40), rng.normal(2, 1, 40), [str(i) for i in range(40)],
                   log_precision=rng.normal(size=(40, 40)))  # fmt: skip
    left, right, mated = rng.integers(0, 40, 300), rng.integers(0, 40, 300), rng.random(300) < 0.5
    scores = rng.normal(mated)
    images = Images.of(e, e, left, right, ["kappa", "mean_resultant", "precision", "oracle"], 3)
    assert images.oracle and images.absent == []
    assert images.confidences["precision"] == pytest.approx(e.log_precision.mean(1))
    order = np.argsort(images.confidences["kappa"])
    assert (np.diff(images.confidences["mean_resultant"][order]) > 0).all()
    edcs = {d.confidence: d.edc for d in edc_curves({"s": scores}, mated, images, [("fnmr", 0.1)])}
    assert list(edcs) == ["kappa", "mean_resultant", "precision", "oracle"]
    assert edcs["mean_resultant"] == edcs["kappa"] != edcs["precision"]
    failing = int((scores[mated] < edcs["oracle"].threshold).sum())
    expected = [max(failing - k, 0) / (mated.sum() - k) for k in range(mated.sum())]
    assert edcs["oracle"].fnmr == pytest.approx(expected)  # each discarded pair removes one error
    curves = {r.confidence: r.curve.tmr for r in rejection_curves({"s": scores}, mated, images, [0.1, 1e-4])}
    assert set(curves["oracle"]) == {None}  # the smallest target is unresolved
    curves = {r.confidence: r.curve.tmr for r in rejection_curves({"s": scores}, mated, images, [0.1])}
    assert curves["oracle"][0] == curves["kappa"][0] and curves["oracle"][4] > curves["kappa"][4]


def test_missing_precisions_are_reported() -> None:
    e = file([1, 2, 3])
    assert Images.of(e, e, np.array([0]), np.array([1]), ["precision"], 0).absent == ["precision"]
    assert not Images.of(e, e, np.array([0]), np.array([1]), ["kappa"], 0).oracle


@pytest.mark.parametrize(
    ("severity", "labels"),
    [
        (None, ["all images"]),
        ([0.0] * 8, ["clean"]),
        ([0, 0, 1, 1, 2, 2, 2, 2], ["clean", "severity 1", "severity 2"]),
        (
            [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            ["clean", *(f"severity {a} to {b}" for a, b in
              (("0.10", "0.25"), ("0.25", "0.40"), ("0.40", "0.55"), ("0.55", "0.70")))],
        ),
    ],
)  # fmt: skip
def test_histograms_count_every_image_once(severity: list[float] | None, labels: list[str]) -> None:
    kappa = [1, 2, 4, 8, 16, 32, 64, 128]
    e = file(kappa, **({} if severity is None else {"severity": severity}))
    histograms = kappa_histograms(Images.of(e, e, np.arange(8), np.arange(8), [], 0))
    assert [h.label for h in histograms] == labels
    assert sum(h.images for h in histograms) == sum(sum(h.counts) for h in histograms) == 8
    assert all(h.edges == histograms[0].edges for h in histograms)


def test_equal_kappas_still_have_a_histogram() -> None:
    e = file([5, 5])
    histograms = kappa_histograms(Images.of(e, e, np.array([0]), np.array([1]), [], 0))
    assert sum(histograms[0].counts) == 2 and histograms[0].quartiles == pytest.approx([5, 5, 5])
