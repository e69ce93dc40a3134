"""1:N search against the slow reference: ranks with ties, and thresholds from non-mated probes."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from tests.evaluation.template_sets import TemplateToy, template_toy
from tests.reference import ijb_slow

from spherecf.data import IjbMeta, TemplateList
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import (
    GalleryResult,
    TemplateOptions,
    evaluate_identification,
    templates as templates_module,
)
from spherecf.scoring import mutual_likelihood_score, pool_templates

TARGETS = (0.5, 0.1, 0.05, 1e-3)


@pytest.fixture(scope="module")
def toy() -> TemplateToy:
    return template_toy()


def slow_search(toy: TemplateToy, gallery: str, score: str) -> list:
    """Ranks and scores of every probe by plain loops, with kappa pooling."""
    meta, e = toy.meta, toy.embeddings
    pooled = ijb_slow.pooled(e, meta.files, meta.templates, meta.media, e.kappa[e.rows(meta.files)])
    probes = list(zip(*(column.tolist() for column in meta.probes)))
    enrolled = list(zip(*(column.tolist() for column in meta.galleries[gallery])))
    ids = sorted(pooled)
    mu, kappa = torch.tensor(np.array([pooled[t][0] for t in ids])), torch.tensor([pooled[t][1] for t in ids])
    table = mu @ mu.T
    if score == "mls":
        kappa = kappa.double()
        table = mutual_likelihood_score(mu[:, None], kappa[:, None], mu[None], kappa[None])
    row_of = {t: i for i, t in enumerate(ids)}
    values = table.tolist()
    return ijb_slow.search(probes, enrolled, lambda a, b: values[row_of[a]][row_of[b]])


def check_gallery(result: GalleryResult, slow: list, max_rank: int) -> None:
    ranks = np.array([rank for rank, _, _ in slow if rank is not None])
    assert result.mated == ranks.size and result.non_mated == len(slow) - ranks.size
    for rank in (1, 5, 10):
        assert result.ranks[str(rank)].value == np.mean(ranks <= rank)
    assert result.cmc == pytest.approx([np.mean(ranks <= k) for k in range(1, result.enrolled + 1)])
    for entry in result.tpir:
        expected = ijb_slow.tpir_at(slow, entry.target, max_rank)
        assert entry.tpir == expected and (expected is not None or "needs at least 1000" in entry.unresolved)
        assert expected is None or entry.fnir == 1 - expected


@pytest.mark.parametrize("score", ["cosine", "mls"])
@pytest.mark.parametrize("max_rank", [1, 3])
def test_both_galleries_equal_the_slow_reference(toy: TemplateToy, score: str, max_rank: int) -> None:
    report = evaluate_identification(
        toy.embeddings,
        toy.meta,
        TemplateOptions(modes=["K1"], scores=[score], targets=TARGETS, draws=0),
        max_rank=max_rank,
    )
    (result,) = report.results
    for gallery in result.galleries:
        check_gallery(gallery, slow_search(toy, gallery.gallery, score), max_rank)
    for name, measure in result.mean.items():
        kind, level = name.split("@") if "@" in name else name.split("-")
        values = [
            g.ranks[level].value
            if kind == "rank"
            else next(e.tpir for e in g.tpir if e.target == float(level))
            for g in result.galleries
        ]
        assert measure.value == pytest.approx(np.mean(values))
    assert "tpir@0.001" not in result.mean and {"rank-1", "tpir@0.1"} <= set(result.mean)


def test_rank_k_equals_the_top_k_accuracy_of_scikit_learn(toy: TemplateToy) -> None:
    e, meta = toy.embeddings, toy.meta
    pooled = ijb_slow.pooled(e, meta.files, meta.templates, meta.media, np.ones(len(meta)))
    enrolled, people = (column.tolist() for column in meta.galleries["G1"])
    probes = [(t, s) for t, s in zip(*(c.tolist() for c in meta.probes)) if s in people]
    scores = np.array([[pooled[t][0] @ pooled[g][0] for g in enrolled] for t, _ in probes])
    truth = np.array([people.index(s) for _, s in probes])
    report = evaluate_identification(e, meta, TemplateOptions(modes=["N0"], draws=0))
    for k in (1, 5):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=np.arange(len(people)))
        assert report.results[0].galleries[0].ranks[str(k)].value == pytest.approx(expected)


def test_ties_in_rank_count_as_errors() -> None:
    ids = np.arange(1, 7)
    meta = IjbMeta(
        "toy", list("abcdef"), ids, ids, galleries={"G1": TemplateList(ids[:3], np.array([1, 2, 3]))},
        probes=TemplateList(ids[3:], np.array([1, 3, 9])),
    )  # fmt: skip
    mu = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    e = Embeddings(mu, np.zeros(6), list("abcdef"))
    gallery = (
        evaluate_identification(e, meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=0))
        .results[0]
        .galleries[0]
    )
    assert gallery.ranks["1"].value == 0.5 and gallery.cmc == [0.5, 1.0, 1.0]
    # the tied probe has rank 2 at any threshold
    assert gallery.tpir[0].tpir == 0.5 and gallery.tpir[0].fpir == 1.0


def test_at_fpir_1_only_the_rank_matters(toy: TemplateToy) -> None:
    weak = dataclasses.replace(toy.embeddings, mu=np.roll(toy.embeddings.mu, 2, 0))
    report = evaluate_identification(weak, toy.meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=30))
    for gallery in report.results[0].galleries:
        assert gallery.tpir[0].tpir == gallery.ranks["1"].value < 1
        assert gallery.tpir_intervals["1"] == gallery.ranks["1"].interval


def test_the_order_of_galleries_and_probes_does_not_matter(toy: TemplateToy) -> None:
    def reversed_list(listed: TemplateList) -> TemplateList:
        return TemplateList(listed.templates[::-1].copy(), listed.subjects[::-1].copy())

    reversed_meta = dataclasses.replace(
        toy.meta, probes=reversed_list(toy.meta.probes),
        galleries={name: reversed_list(listed) for name, listed in toy.meta.galleries.items()},
    )  # fmt: skip
    forward, backward = (
        evaluate_identification(toy.embeddings, meta, TemplateOptions(modes=["K1"], draws=20))
        for meta in (toy.meta, reversed_meta)
    )
    assert forward.results[0].galleries == backward.results[0].galleries and forward.counts == backward.counts


def test_a_closed_set_has_ranks_but_no_fpir(toy: TemplateToy) -> None:
    enrolled = toy.meta.galleries["G1"]
    is_mated = np.isin(toy.meta.probes.subjects, enrolled.subjects)
    closed = dataclasses.replace(
        toy.meta,
        galleries={"G1": enrolled},
        probes=TemplateList(*(column[is_mated] for column in toy.meta.probes)),
    )
    report = evaluate_identification(toy.embeddings, closed, TemplateOptions(modes=["N0"], draws=10))
    gallery = report.results[0].galleries[0]
    assert (
        gallery.non_mated == 0 and gallery.tpir[0].tpir is None and "closed set" in gallery.tpir[0].unresolved
    )
    assert gallery.det == {"fpir": [], "fnir": []} and set(report.results[0].mean) == {
        "rank-1",
        "rank-5",
        "rank-10",
    }


def test_intervals_resample_the_subjects_of_probes(toy: TemplateToy) -> None:
    report = evaluate_identification(
        toy.embeddings, toy.meta, TemplateOptions(modes=["K1"], targets=TARGETS, draws=40, seed=2)
    )
    cosine, mls = report.results
    rank = cosine.galleries[0].ranks["1"]
    assert rank.interval.low <= rank.value <= rank.interval.high
    assert set(mls.galleries[1].tpir_intervals) == {"0.5", "0.1", "0.05"}
    draws = report.resampled["kappa, mls:tpir@0.1"]
    assert mls.mean["tpir@0.1"].interval.low == pytest.approx(np.quantile(draws, 0.025))
    assert "|fpir:at-most|rank:<=1|ties:against|ci:probe-subject-40/2|" in mls.signature
    assert mls.signature.startswith("toy/1:N|meta:sha256:")
    # Recompute one bootstrap draw by hand.
    people = toy.meta.probes.subjects
    counts = np.random.default_rng(2).multinomial(24, np.full(24, 1 / 24), 40)
    slow = slow_search(toy, "G1", "cosine")
    names = np.unique(people).tolist()
    weight = np.array([counts[7][names.index(p)] for p in people.tolist()])
    ranks = np.array([rank or 0 for rank, _, _ in slow])
    cosine_only = evaluate_identification(
        toy.embeddings, toy.meta, TemplateOptions(modes=["K1"], scores=["cosine"], draws=40, seed=2)
    )
    assert cosine_only.results[0].galleries[0].ranks["1"] == rank
    expected = (weight * (ranks == 1)).sum() / (weight * (ranks > 0)).sum()
    drawn_mean = cosine_only.resampled["kappa, cosine:rank-1"][7]
    g2_ranks = np.array([rank or 0 for rank, _, _ in slow_search(toy, "G2", "cosine")])
    assert drawn_mean == pytest.approx(
        (expected + (weight * (g2_ranks == 1)).sum() / (weight * (g2_ranks > 0)).sum()) / 2
    )


@pytest.mark.parametrize("score", ["cosine", "mls", "pfe"])
def test_results_do_not_depend_on_the_tile_size(
    toy: TemplateToy, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = "precision" if score == "pfe" else "K1"
    options = {"modes": [mode], "scores": [score], "targets": TARGETS, "draws": 0}
    expected = evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(**options)).results
    for name in ("_TILE_CELLS", "_GAUSSIAN_NUMBERS"):
        monkeypatch.setattr(templates_module, name, 30 * (toy.embeddings.dim if "GAUSS" in name else 1))
    assert (
        evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(**options, threads=1)).results
        == expected
    )


def test_the_report_serialises_to_json(toy: TemplateToy) -> None:
    report = evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(draws=5))
    content = report.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert "cmc" not in report.to_dict(curves=False)["results"][0]["galleries"][0]
    assert [result.name for result in report.results][-1] == "precision, pfe"


def test_failures_to_acquire_are_counted_and_never_searched(toy: TemplateToy) -> None:
    meta, e = toy.meta, toy.embeddings
    enrolled, subject = int(meta.galleries["G1"].templates[0]), int(meta.galleries["G1"].subjects[0])
    probe = int(meta.probes.templates[meta.probes.subjects != subject][0])
    lost_files = {f for f, t in zip(meta.files, meta.templates.tolist()) if t in (enrolled, probe)}
    part = dataclasses.replace(
        e.select([r for r, key in enumerate(e.keys) if key not in lost_files]),
        skipped=[(key, "no face") for key in lost_files],
    )
    report = evaluate_identification(part, meta, TemplateOptions(modes=["N0"], draws=0))
    g1, g2 = report.results[0].galleries
    assert report.failed_templates == sorted([enrolled, probe]) and report.counts["failed_probes"] == 1
    assert report.counts["failed_gallery_templates"] == 1 and report.counts["probes"] == 47
    assert g1.mated + g1.non_mated == 47 - 2  # probes of the failed enrolment are excluded
    assert g2.mated + g2.non_mated == 47
    assert sorted(report.failures) == sorted((key, "no face") for key in lost_files)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"galleries": {}}, {}, "galleries and probes are needed but missing: none was given"),
        ({"probes": None}, {}, "galleries and probes are needed"),
        ({}, {"max_rank": 0}, "max_rank: expected at least 1"),
        ({}, {"draws": -1}, "draws: expected 0"),
        ({}, {"modes": ["x"]}, "expected a name like N0D0F1K1"),
        ({}, {"targets": [0.0]}, "FPIR target: expected 0 < target <= 1"),
    ],
)
def test_bad_input_is_refused(
    toy: TemplateToy, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_identification(
            toy.embeddings,
            dataclasses.replace(toy.meta, **changes),
            TemplateOptions(**{"draws": 0} | {k: v for k, v in options.items() if k != "max_rank"}),
            max_rank=options.get("max_rank", 1),
        )


def test_templates_in_both_gallery_and_probes_are_refused(toy: TemplateToy) -> None:
    overlapping = TemplateList(
        *(np.concatenate(two) for two in zip(toy.meta.probes, toy.meta.galleries["G2"]))
    )
    meta = dataclasses.replace(toy.meta, probes=overlapping)
    with pytest.raises(InputError, match=r"gallery G2: 7 templates are in the gallery and among the probes"):
        evaluate_identification(toy.embeddings, meta, TemplateOptions(draws=0))


def test_a_gallery_without_mated_probes_is_refused(toy: TemplateToy) -> None:
    non_mated = TemplateList(toy.meta.probes.templates, np.arange(toy.meta.probes.templates.size))
    meta = dataclasses.replace(toy.meta, probes=non_mated)
    with pytest.raises(InputError, match="no probe has a mate in gallery G1"):
        evaluate_identification(toy.embeddings, meta, TemplateOptions(draws=0))


def test_template_ids_far_apart_are_found_by_bisection() -> None:
    ids = np.array([-(10**12), 3, 5, 10**15])
    found = templates_module.positions(ids, np.array([10**15, 3, -(10**12), 3]))
    assert found.tolist() == [3, 1, 0, 1]


def test_templates_without_precisions_have_no_pfe_score() -> None:
    templates = pool_templates(np.eye(3, dtype=np.float32), np.ones(3), [1, 2, 3])
    with pytest.raises(InputError, match="score pfe: these templates have no log_precision; pool them with"):
        next(templates_module.score_tiles(templates, templates, "pfe", 64.0))
