"""One mate among distractors, against loops over searches and thresholds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import distractors as distractors_module
from spherecf.evaluation import identify_with_distractors
from spherecf.report import distractor_section
from spherecf.scoring import mutual_likelihood_score

DIM = 6


def faces(n: int, seed: int, people: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    labels = None if not people else rng.integers(0, people, n)
    centres = np.zeros((1, DIM)) if labels is None else np.random.default_rng(9).normal(size=(people, DIM))
    mu = centres[0 if labels is None else labels] + rng.normal(size=(n, DIM)) * (1 if labels is None else 0.4)
    names = [f"p{i}" for i in range(people)]
    return Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.normal(3, 1, n),
        [f"{seed}/{i}" for i in range(n)],
        labels, names, provenance={"backbone": "b" * 64},
    )  # fmt: skip


def scores(e: Embeddings, other: Embeddings, kind: str) -> list[list[float]]:
    a, b = torch.tensor(e.mu).double()[:, None], torch.tensor(other.mu).double()[None]
    if kind == "cosine":
        return (a * b).sum(-1).tolist()
    kappas = torch.tensor(e.kappa).double()[:, None], torch.tensor(other.kappa).double()[None]
    return mutual_likelihood_score(a, kappas[0], b, kappas[1]).tolist()


@pytest.mark.parametrize("kind", ["cosine", "mls"])
@pytest.mark.parametrize("block", [3, 4096])
def test_rank_one_and_tmr_at_every_size(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distractors_module, "_BLOCK", block)
    probes, others = faces(14, 1, people=4), faces(25, 2)
    report = identify_with_distractors(
        probes, others, scores=[kind], sizes=[5, 10, 1000], target=0.02, seed=7
    )
    own_table, table = scores(probes, probes, kind), scores(probes, others, kind)
    order = np.random.default_rng(7).permutation(25)
    pairs = [(i, j) for i in range(14) for j in range(14) if i != j and probes.labels[i] == probes.labels[j]]
    used = sorted({i for i, _ in pairs})
    assert report.counts["searches"] == len(pairs) and report.counts["probes"] == len(used)
    assert [at.distractors for at in report.results[0].sizes] == [5, 10, 25]
    for at in report.results[0].sizes:
        here = order[: at.distractors].tolist()
        best = {i: max(table[i][j] for j in here) for i in used}
        own = [(i, own_table[i][j]) for i, j in pairs]
        assert at.rank_1 == np.mean([s > best[i] for i, s in own])
        non_mated = [table[i][j] for i in used for j in here]
        assert at.non_mated == len(non_mated)
        allowed = 0.02 * len(non_mated)
        tmr = max(
            np.mean([s >= t for _, s in own])
            for t in [*(s for _, s in own), np.inf]
            if sum(s >= t for s in non_mated) <= allowed
        )
        assert at.tmr == tmr
        assert at.false_matches == sum(s > at.refused + 1e-4 for s in non_mated)


def test_a_tie_counts_against_the_mate() -> None:
    mu = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    probes = Embeddings(mu, np.zeros(4), list("abcd"), np.array([0, 0, 1, 1]), ["A", "B"])
    others = Embeddings(np.array([[1.0, 0], [-1, 0]]), np.zeros(2), ["x", "y"])
    report = identify_with_distractors(probes, others, scores=["cosine"], target=0.125)
    (at,) = report.results[0].sizes
    assert at.rank_1 == 0.5 and at.tmr == 0.0 and at.false_matches == 0  # one may match, two tie at 1


def test_too_few_pairs_and_plain_data() -> None:
    report = identify_with_distractors(faces(10, 1, people=3), faces(8, 2), target=1e-6)
    (at,) = report.results[0].sizes
    assert at.tmr is None and at.unresolved is not None and "needs at least 1000000" in at.unresolved
    everything = report.to_dict()
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything
    assert (
        report.results[1].signature.startswith("megaface/distractors|")
        and "|score:mls|r:64|" in report.results[1].signature
    )
    section = distractor_section(report)
    assert "–" in section.tables[0].rows[0] and section.plots[0].svg.startswith("<svg")


@pytest.mark.parametrize(
    ("probes", "others", "options", "message"),
    [
        (faces(9, 1), faces(5, 2), {}, "the probes need labels"),
        (faces(2, 1, people=90), faces(5, 2), {}, "none of the people of 2 probes has two images"),
        (faces(9, 1, people=2), faces(5, 2).select([]), {}, "holds no embeddings"),
        (faces(9, 1, people=2), faces(5, 2), {"scores": ["pfe"]}, "expected some of cosine and mls"),
        (faces(9, 1, people=2), faces(5, 2), {"scores": []}, "expected some of cosine and mls"),
        (faces(9, 1, people=2), faces(5, 2), {"target": 0.0}, "FMR target"),
        (faces(9, 1, people=2), Embeddings(np.eye(3), np.zeros(3), "abc"), {}, "dimension 6"),
        (faces(9, 1, people=2), replace(faces(5, 2), provenance={"backbone": "c"}), {}, "one recog"),
    ],
)  # fmt: skip
def test_bad_input(probes: Embeddings, others: Embeddings, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        identify_with_distractors(probes, others, **options)
