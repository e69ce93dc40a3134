"""The rules of a gallery are counted on its members as a search compares them."""

from dataclasses import replace

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import check_members
from spherecf.scoring import mutual_likelihood_matrix, mutual_likelihood_score, pool


def members(sizes: list[int], spread: float = 0.4, seed: int = 0) -> Embeddings:
    """Images around the directions of people, as many of each as said."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    own = rng.normal(size=(len(sizes), 32))[label] + spread * rng.normal(size=(label.size, 32))
    mu, kappa = own / np.linalg.norm(own, axis=1, keepdims=True), rng.uniform(3, 5, label.size)
    keys, names = [str(i) for i in range(label.size)], [f"p{i}" for i in range(len(sizes))]
    return Embeddings(mu, kappa, keys, labels=label, identities=names)


def rules(score: str = "mls", *accepts: float, floor: float = 0.0) -> tuple[DecisionRule, ...]:
    rates = (1e-1, 1e-2, 1e-3)
    return tuple(
        DecisionRule(score, 64.0, "kappa", accept, accept, floor, "fmr", alpha, 0.05)
        for accept, alpha in zip(accepts, rates)
    )


def slow(known: Embeddings, several: bool) -> tuple[list[float], list[float]]:
    """Scores of (two members, one member), image by image."""
    mu, kappa, label = known.mu.astype(float), known.kappa.astype(float), np.asarray(known.labels)
    templates = pool(mu, kappa, label)
    scores = mutual_likelihood_matrix(mu, kappa, templates.mu, templates.kappa, 64.0)
    size = np.bincount(label).tolist()
    others, own = [], []
    for image, mine in enumerate(label.tolist()):
        for person, images in enumerate(size):
            if person == mine or (images > 1) != several:
                continue
            if images > 1 or size[mine] > 1 or mine < person:
                others.append(float(scores[image, person]))
        rest = np.flatnonzero((label == mine) & (np.arange(label.size) != image))
        if rest.size and (rest.size > 1) == several:
            eta = (kappa[rest, None] * mu[rest]).sum(0)
            length = np.linalg.norm(eta, keepdims=True)
            one = mu[image : image + 1], kappa[image : image + 1]
            own.append(float(mutual_likelihood_score(*one, eta[None] / length, length, radius=64.0)[0]))
    return others, own


@pytest.mark.parametrize("sizes", [[1] * 24, [3] * 20, [1] * 9 + [2] * 8 + [4] * 7])
def test_counts_are_those_of_a_slow_loop(sizes: list[int]) -> None:
    known = members(sizes)
    single, pooled = slow(known, False), slow(known, True)
    pair = float(np.quantile(single[0] or pooled[0], 0.97))
    template = float(np.quantile(pooled[0] or single[0], 0.9))
    calibration = Calibration("m", "d", decisions=(*rules("mls", pair), *rules("mls-template", template)))
    report = check_members(known, calibration, draws=20)
    assert report.counts["mated"] == len(single[1]) + len(pooled[1])
    assert report.counts["non_mated"] == len(single[0]) + len(pooled[0])
    found = {one.rule.score: one for one in report.rules}
    for (others, own), name, accept in ((single, "mls", pair), (pooled, "mls-template", template)):
        if others:
            assert found[name].false_matches == sum(value >= accept for value in others) > 0
            assert found[name].matches == sum(value >= accept for value in own)
            assert found[name].false_non_matches == sum(value < accept for value in own)
        else:
            assert name not in found


def test_verdicts_and_look_alikes() -> None:
    known = members([2] * 60)
    twin = np.array(known.mu)
    twin[119] = twin[0]  # the last member's second image is the first member's first
    known = replace(known, mu=twin)
    others = np.sort(slow(known, False)[0] + slow(known, True)[0])
    strict, loose = float(others[-60]), float(others[len(others) // 4])
    report = check_members(known, Calibration("m", "d", decisions=rules("mls", strict, loose)), draws=200)
    assert [one.verdict for one in report.rules] == ["kept", "broken"] * (len(report.rules) // 2)
    assert report.alike[0][:2] == ("p0", "p59")
    assert report.alike[0][2] == max(pair[2] for pair in report.alike) and len(report.alike) == 5
    assert report.to_dict()["rules"][0]["rule"]["alpha"] == 0.1


def test_few_comparisons_leave_a_rate_open() -> None:
    report = check_members(members([1] * 25), Calibration("m", "d", decisions=rules("mls", 1e6, 1e6, 1e6)))
    assert [one.verdict for one in report.rules] == ["kept", "kept", "open"] and report.alike == ()


def test_templates_without_rules_of_their_own_take_those_of_images() -> None:
    found = check_members(members([3] * 20), Calibration("m", "d", decisions=rules("mls", 0.0)), draws=10)
    assert [one.rule.score for one in found.rules] == ["mls"] and found.counts["mated"] == 60


def test_many_images_are_searched_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.evaluation.members._PROBES", 30)
    found = check_members(members([3] * 20), Calibration("m", "d", decisions=rules("mls", 0.0)), draws=10)
    assert found.counts == {"members": 20, "images": 30, "mated": 30, "non_mated": 30 * 19}


def test_bad_input() -> None:
    known, calibration = members([1] * 20), Calibration("m", "d", decisions=rules("mls", 0.0))
    with pytest.raises(InputError, match="at least 20 members, got 19"):
        check_members(members([1] * 19), calibration)
    with pytest.raises(InputError, match="have no names of members"):
        check_members(replace(known, labels=None, identities=[]), calibration)
    with pytest.raises(InputError, match="have no names of members"):
        check_members(replace(known, labels=known.labels - 1), calibration)
    with pytest.raises(InputError, match="no rule for the false match rate"):
        check_members(known, Calibration("m", "d"))
    with pytest.raises(InputError, match="radius 64, the gallery has 32"):
        check_members(replace(known, provenance={"radius": 32.0}), calibration)
