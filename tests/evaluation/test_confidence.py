"""Images of a pair list: counted once per file, graded by severity."""

import numpy as np
import pytest

from spherecf.embeddings import Embeddings
from spherecf.evaluation import edc, pair_quality, rejection_curve
from spherecf.evaluation._confidence import Images, discard_everything, kappa_histograms, reject_everything


def file(kappa: list[float], **extras: list[float]) -> Embeddings:
    columns = {name: np.array(column) for name, column in extras.items()}
    n = len(kappa)
    return Embeddings(np.eye(n), np.log(kappa), [f"k{i}" for i in range(n)], extras=columns)


def test_a_key_in_two_files_is_two_images() -> None:
    one, other = file([1, 2, 3], norm=[1, 2, 3]), file([10, 20, 30], norm=[4, 5, 6], severity=[0.1, 0.2, 0.3])
    rows = np.array([0, 0, 2]), np.array([1, 2, 0])
    same = Images.of(one, one, *rows, ["kappa", "norm", "severity"], 0)
    assert same.kappa.tolist() == pytest.approx([1, 2, 3]) and same.absent == ["severity"]
    assert same.kappa[same.left].tolist() == pytest.approx([1, 1, 3])
    two = Images.of(one, other, *rows, ["norm"], 0)
    assert two.kappa.tolist() == pytest.approx([1, 3, 10, 20, 30])
    assert two.confidences["norm"][two.right].tolist() == [5, 6, 4]
    assert two.severity is not None and two.severity.tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.3])


def test_curves_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    e = Embeddings(np.eye(60), rng.normal(size=60), [str(i) for i in range(60)])
    left, right, mated = rng.integers(0, 60, 200), rng.integers(0, 60, 200), rng.random(200) < 0.5
    scores = rng.normal(mated)
    images = Images.of(e, e, left, right, ["kappa", "random"], 3)
    quality = pair_quality(e.kappa[left], e.kappa[right])
    found = discard_everything({"s": scores}, mated, images, [("fnmr", 0.1), ("fmr", 0.05)])
    assert [(d.confidence, d.start) for d in found[:2]] == [("kappa", "fnmr<=0.1"), ("kappa", "fmr<=0.05")]
    assert found[0].edc == edc(scores, mated, quality, start_fnmr=0.1)
    assert found[1].edc == edc(scores, mated, quality, fmr=0.05)
    curves = reject_everything({"s": scores}, mated, images, [0.1])
    assert [c.confidence for c in curves] == ["kappa", "random"]
    expected = rejection_curve(scores, mated, images.kappa, 0.1, images=(images.left, images.right))
    assert curves[0].curve == expected


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
    found = kappa_histograms(Images.of(e, e, np.arange(8), np.arange(8), [], 0))
    assert [h.label for h in found] == labels
    assert sum(h.images for h in found) == sum(sum(h.counts) for h in found) == 8
    assert all(h.edges == found[0].edges for h in found)


def test_equal_kappas_still_have_a_histogram() -> None:
    e = file([5, 5])
    found = kappa_histograms(Images.of(e, e, np.array([0]), np.array([1]), [], 0))
    assert sum(found[0].counts) == 2 and found[0].quartiles == pytest.approx([5, 5, 5])
