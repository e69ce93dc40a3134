"""1:N against the slow reference: ranks with ties, thresholds from the gallery that lacks the probe."""

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
from spherecf.scoring import mutual_likelihood_score

TARGETS = (0.5, 0.1, 0.05, 1e-3)


@pytest.fixture(scope="module")
def toy() -> TemplateToy:
    return template_toy()


def slow_search(toy: TemplateToy, gallery: str, score: str) -> list:
    """With kappa pooling."""
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
    place = {t: i for i, t in enumerate(ids)}
    values = table.tolist()
    return ijb_slow.search(probes, enrolled, lambda a, b: values[place[a]][place[b]])


def check(found: GalleryResult, slow: list, max_rank: int) -> None:
    ranks = np.array([rank for rank, _, _ in slow if rank is not None])
    assert found.mated == ranks.size and found.non_mated == len(slow) - ranks.size
    for rank in (1, 5, 10):
        assert found.ranks[str(rank)].value == np.mean(ranks <= rank)
    assert found.cmc == pytest.approx([np.mean(ranks <= k) for k in range(1, found.enrolled + 1)])
    for entry in found.tpir:
        expected = ijb_slow.tpir_at(slow, entry.target, max_rank)
        assert entry.tpir == expected and (expected is not None or "needs at least 1000" in entry.unresolved)
        assert expected is None or entry.fnir == 1 - expected


@pytest.mark.parametrize("score", ["cosine", "mls"])
@pytest.mark.parametrize("max_rank", [1, 3])
def test_both_galleries_are_what_the_slow_loops_say(toy: TemplateToy, score: str, max_rank: int) -> None:
    report = evaluate_identification(
        toy.embeddings,
        toy.meta,
        TemplateOptions(modes=["K1"], scores=[score], targets=TARGETS, draws=0),
        max_rank=max_rank,
    )
    (result,) = report.results
    for found in result.galleries:
        check(found, slow_search(toy, found.gallery, score), max_rank)
    for name, measure in result.mean.items():
        kind, at = name.split("@") if "@" in name else name.split("-")
        each = [
            g.ranks[at].value if kind == "rank" else next(e.tpir for e in g.tpir if e.target == float(at))
            for g in result.galleries
        ]
        assert measure.value == pytest.approx(np.mean(each))
    assert "tpir@0.001" not in result.mean and {"rank-1", "tpir@0.1"} <= set(result.mean)


def test_rank_one_is_scikit_learns_top_one(toy: TemplateToy) -> None:
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


def test_ties_in_rank_count_against_us() -> None:
    ids = np.arange(1, 7)
    meta = IjbMeta(
        "toy", list("abcdef"), ids, ids, galleries={"G1": TemplateList(ids[:3], np.array([1, 2, 3]))},
        probes=TemplateList(ids[3:], np.array([1, 3, 9])),
    )  # fmt: skip
    mu = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    e = Embeddings(mu, np.zeros(6), list("abcdef"))
    found = (
        evaluate_identification(e, meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=0))
        .results[0]
        .galleries[0]
    )
    assert found.ranks["1"].value == 0.5 and found.cmc == [0.5, 1.0, 1.0]
    assert found.tpir[0].tpir == 0.5 and found.tpir[0].fpir == 1.0  # at any threshold the tied one has rank 2


def test_at_fpir_1_rank_alone_decides_in_every_draw(toy: TemplateToy) -> None:
    poor = dataclasses.replace(toy.embeddings, mu=np.roll(toy.embeddings.mu, 2, 0))
    report = evaluate_identification(poor, toy.meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=30))
    for found in report.results[0].galleries:
        assert found.tpir[0].tpir == found.ranks["1"].value < 1
        assert found.tpir_intervals["1"] == found.ranks["1"].interval


def test_lists_in_any_order(toy: TemplateToy) -> None:
    def backwards(listed: TemplateList) -> TemplateList:
        return TemplateList(listed.templates[::-1].copy(), listed.subjects[::-1].copy())

    turned = dataclasses.replace(
        toy.meta, probes=backwards(toy.meta.probes),
        galleries={name: backwards(listed) for name, listed in toy.meta.galleries.items()},
    )  # fmt: skip
    one, other = (
        evaluate_identification(toy.embeddings, meta, TemplateOptions(modes=["K1"], draws=20))
        for meta in (toy.meta, turned)
    )
    assert one.results[0].galleries == other.results[0].galleries and one.counts == other.counts


def test_a_closed_set_has_ranks_and_says_why_it_has_no_fpir(toy: TemplateToy) -> None:
    enrolled = toy.meta.galleries["G1"]
    inside = np.isin(toy.meta.probes.subjects, enrolled.subjects)
    closed = dataclasses.replace(
        toy.meta,
        galleries={"G1": enrolled},
        probes=TemplateList(*(column[inside] for column in toy.meta.probes)),
    )
    report = evaluate_identification(toy.embeddings, closed, TemplateOptions(modes=["N0"], draws=10))
    found = report.results[0].galleries[0]
    assert found.non_mated == 0 and found.tpir[0].tpir is None and "closed set" in found.tpir[0].unresolved
    assert found.det == {"fpir": [], "fnir": []} and set(report.results[0].mean) == {
        "rank-1",
        "rank-5",
        "rank-10",
    }


def test_intervals_by_drawing_the_probes_people(toy: TemplateToy) -> None:
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
    # Every subject drawn once gives the value itself.
    people = toy.meta.probes.subjects
    counts = np.random.default_rng(2).multinomial(24, np.full(24, 1 / 24), 40)
    slow = slow_search(toy, "G1", "cosine")
    names = np.unique(people).tolist()
    weight = np.array([counts[7][names.index(p)] for p in people.tolist()])
    ranks = np.array([rank or 0 for rank, _, _ in slow])
    again = evaluate_identification(
        toy.embeddings, toy.meta, TemplateOptions(modes=["K1"], scores=["cosine"], draws=40, seed=2)
    )
    assert again.results[0].galleries[0].ranks["1"] == rank
    expected = (weight * (ranks == 1)).sum() / (weight * (ranks > 0)).sum()
    both = again.resampled["kappa, cosine:rank-1"][7]
    other = np.array([rank or 0 for rank, _, _ in slow_search(toy, "G2", "cosine")])
    assert both == pytest.approx(
        (expected + (weight * (other == 1)).sum() / (weight * (other > 0)).sum()) / 2
    )


@pytest.mark.parametrize("score", ["cosine", "mls", "pfe"])
def test_nothing_depends_on_the_size_of_the_tiles(
    toy: TemplateToy, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = "precision" if score == "pfe" else "K1"
    options = {"modes": [mode], "scores": [score], "targets": TARGETS, "draws": 0}
    whole = evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(**options)).results
    for name in ("_TILE_CELLS", "_GAUSSIAN_NUMBERS"):
        monkeypatch.setattr(templates_module, name, 30 * (toy.embeddings.dim if "GAUSS" in name else 1))
    assert (
        evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(**options, threads=1)).results
        == whole
    )


def test_plain_data_for_json(toy: TemplateToy) -> None:
    report = evaluate_identification(toy.embeddings, toy.meta, TemplateOptions(draws=5))
    everything = report.to_dict()
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything
    assert "cmc" not in report.to_dict(curves=False)["results"][0]["galleries"][0]
    assert [result.name for result in report.results][-1] == "precision, pfe"


def test_failures_are_counted_and_never_searched(toy: TemplateToy) -> None:
    meta, e = toy.meta, toy.embeddings
    enrolled, subject = int(meta.galleries["G1"].templates[0]), int(meta.galleries["G1"].subjects[0])
    probe = int(meta.probes.templates[meta.probes.subjects != subject][0])
    gone = {f for f, t in zip(meta.files, meta.templates.tolist()) if t in (enrolled, probe)}
    part = dataclasses.replace(
        e.select([r for r, key in enumerate(e.keys) if key not in gone]),
        skipped=[(key, "no face") for key in gone],
    )
    report = evaluate_identification(part, meta, TemplateOptions(modes=["N0"], draws=0))
    first, second = report.results[0].galleries
    assert report.failed_templates == sorted([enrolled, probe]) and report.counts["failed_probes"] == 1
    assert report.counts["failed_gallery_templates"] == 1 and report.counts["probes"] == 47
    assert first.mated + first.non_mated == 47 - 2  # probes of the failed enrolment: neither mated nor alone
    assert second.mated + second.non_mated == 47
    assert sorted(report.failures) == sorted((key, "no face") for key in gone)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"galleries": {}}, {}, "galleries and probes are needed but missing: none was given"),
        ({"probes": None}, {}, "galleries and probes are needed"),
        ({}, {"max_rank": 0}, "max_rank: expected at least 1"),
        ({}, {"draws": -1}, "draws: expected 0"),
        ({}, {"modes": ["x"]}, "expected a name like N0D0F1K1"),
        ({}, {"targets": [0.0]}, "target: expected 0 < target <= 1"),
    ],
)
def test_bad_input(toy: TemplateToy, changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_identification(
            toy.embeddings,
            dataclasses.replace(toy.meta, **changes),
            TemplateOptions(**{"draws": 0} | {k: v for k, v in options.items() if k != "max_rank"}),
            max_rank=options.get("max_rank", 1),
        )


def test_probes_that_would_find_themselves_are_refused(toy: TemplateToy) -> None:
    both = TemplateList(*(np.concatenate(two) for two in zip(toy.meta.probes, toy.meta.galleries["G2"])))
    meta = dataclasses.replace(toy.meta, probes=both)
    with pytest.raises(InputError, match=r"gallery G2: 7 templates are in the gallery and among the probes"):
        evaluate_identification(toy.embeddings, meta, TemplateOptions(draws=0))


def test_a_gallery_that_no_probe_belongs_to(toy: TemplateToy) -> None:
    strangers = TemplateList(toy.meta.probes.templates, np.arange(toy.meta.probes.templates.size))
    meta = dataclasses.replace(toy.meta, probes=strangers)
    with pytest.raises(InputError, match="no probe has a mate in gallery G1"):
        evaluate_identification(toy.embeddings, meta, TemplateOptions(draws=0))
