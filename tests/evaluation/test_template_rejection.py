"""Open-set rejection of a template benchmark: pooled, searched, failures counted."""

import dataclasses

import numpy as np
import pytest

from spherecf.data import IjbMeta, TemplateList
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import OpenSet, RejectionOptions, evaluate_rejection, evaluate_template_rejection
from spherecf.evaluation.rejection import _template_confidences
from spherecf.evaluation.templates import find_images
from spherecf.scoring import pool_templates

PEOPLE, EACH, DIM = 40, 4, 12
OPTIONS = RejectionOptions([0.2], draws=0, trials=6)


@pytest.fixture
def benchmark() -> tuple[Embeddings, IjbMeta]:
    """Each template has two images in one medium and one in another; two galleries of 20 people."""
    rng = np.random.default_rng(0)
    template_subjects = np.repeat(np.arange(PEOPLE), EACH)
    templates = np.repeat(np.arange(PEOPLE * EACH) * 3 + 5, 3)
    media = np.tile([1, 1, 2], PEOPLE * EACH)
    noise = rng.uniform(0.2, 1.2, templates.size)
    mu = rng.normal(size=(PEOPLE, DIM))[np.repeat(template_subjects, 3)] + noise[:, None] * rng.normal(
        size=(templates.size, DIM)
    )
    names = [f"{i}.jpg" for i in range(templates.size)]
    e = Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(40 / noise**2), names,
        extras={"norm": rng.uniform(5, 20, templates.size)},
    )  # fmt: skip
    ids = np.unique(templates)
    enrolled, is_probe = ids[::EACH], np.arange(ids.size) % EACH > 0
    galleries = {
        name: TemplateList(enrolled[part], np.arange(PEOPLE)[part])
        for name, part in (("G1", slice(0, 20)), ("G2", slice(20, 40)))
    }
    shuffle = rng.permutation(int(is_probe.sum()))
    probes = TemplateList(ids[is_probe][shuffle], template_subjects[is_probe][shuffle])
    return e, IjbMeta("toy", names, templates, media, galleries=galleries, probes=probes)


def test_results_equal_evaluate_rejection_on_pooled_templates(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    reports = evaluate_template_rejection(e, meta, OPTIONS)
    assert list(reports) == ["G1", "G2"] and reports["G1"].name == "toy/G1"
    assert reports["G1"].counts["mated"] == reports["G1"].counts["non_mated"] == 30
    pooled = pool_templates(e.mu, e.kappa, meta.templates, meta.media)
    gallery = pooled.select(np.arange(0, 80, EACH))
    probe_rows = np.flatnonzero(np.arange(160) % EACH > 0)
    test = OpenSet(
        gallery, np.arange(20), pooled.select(probe_rows), np.repeat(np.arange(PEOPLE), EACH)[probe_rows]
    )
    expected = evaluate_rejection(test, OPTIONS, name="toy/G1")
    for entry in expected.prr:
        assert reports["G1"].at(entry.confidence, 0.2).prr == pytest.approx(entry.prr) or entry.prr == (
            reports["G1"].at(entry.confidence, 0.2).prr
        )
    line = reports["G1"].at("norm", 0.2).signature
    assert (
        "toy/G1/open-set|meta:sha256:" in line
        and "|pool:media-mean+kappa|" in line
        and "|mode:N0D0F?K1|" in line
    )


def test_confidences_are_means_over_media(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    norm = _template_confidences(e, find_images(e, meta))["norm"]
    norms = e.extras["norm"][:3]
    assert norm[0] == pytest.approx(((norms[0] + norms[1]) / 2 + norms[2]) / 2) and norm.shape == (160,)
    scored = dataclasses.replace(meta, detector_score=np.arange(480, dtype=np.float32))
    assert _template_confidences(e, find_images(e, scored))["detector_score"][1] == pytest.approx(
        (3.5 + 5) / 2
    )


def test_failures_to_acquire_are_counted_and_never_searched(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    lost_rows = [*range(3), *range(15, 18)]  # gallery template of person 0, first probe of person 1
    part = e.select([row for row in range(480) if row not in lost_rows])
    counts = evaluate_template_rejection(part, meta, OPTIONS, galleries=["G1"])["G1"].counts
    assert counts["failed_gallery"] == 1
    # all three probes of person 0, who is not enrolled, and the lost one
    assert counts["failed_probes"] == 3 + 1
    total = counts["probes"] + counts["validation_probes"]
    assert total + counts["failed_probes"] == 120


def test_a_probe_in_the_gallery_is_refused(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    with pytest.raises(InputError, match=r"toy: gallery G2: 20 templates are in the gallery and among the"):
        evaluate_template_rejection(
            e, dataclasses.replace(meta, probes=meta.galleries["G2"]), OPTIONS, galleries=["G2"]
        )


def test_image_precisions_become_a_template_confidence(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    log_precision = np.repeat(np.arange(480.0)[:, None], DIM, 1) / 100
    e = dataclasses.replace(e, log_precision=log_precision)
    column = _template_confidences(e, find_images(e, meta))["precision"]
    assert column[1] == pytest.approx(((0.03 + 0.04) / 2 + 0.05) / 2)
    report = evaluate_template_rejection(e, meta, OPTIONS, galleries=["G1"])["G1"]
    assert "precision" not in report.absent_confidences and report.at("precision", 0.2) is not None


def test_templates_pooled_by_precision_keep_their_own(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    """The confidence is that of the pooled template, not the mean over its images."""
    e, meta = benchmark
    e = dataclasses.replace(e, log_precision=np.random.default_rng(1).normal(size=(len(e), DIM)))
    reports = [
        evaluate_template_rejection(e, meta, OPTIONS, galleries=["G1"], mode=mode)["G1"]
        for mode in ("N0D0K1", "precision")
    ]
    values = [report.at("precision", 0.2).prr.value for report in reports]
    assert values[0] != values[1] and all("precision" not in r.absent_confidences for r in reports)


def test_missing_lists_and_scores_are_reported(benchmark: tuple[Embeddings, IjbMeta]) -> None:
    e, meta = benchmark
    with pytest.raises(InputError, match=r"galleries and probes are needed but missing: .*1N_probe.csv"):
        evaluate_template_rejection(
            e, dataclasses.replace(meta, probes=None, absent={"1N_probe.csv": "no such file"})
        )
    with pytest.raises(InputError, match="D1 needs detector scores"):
        evaluate_template_rejection(e, meta, mode="D1")
