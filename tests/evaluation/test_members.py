"""The rules of a gallery, counted on its members as a search compares them."""

from dataclasses import replace

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import check_members
from spherecf.scoring import mutual_likelihood_matrix, mutual_likelihood_score, pool


def members(sizes: list[int], spread: float = 0.4, seed: int = 0) -> Embeddings:
    """Images around the direction of each person; ``sizes`` gives the number of images of each."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    images = rng.normal(size=(len(sizes), 32))[label] + spread * rng.normal(size=(label.size, 32))
    mu, kappa = images / np.linalg.norm(images, axis=1, keepdims=True), rng.uniform(3, 5, label.size)
    keys, names = [str(i) for i in range(label.size)], [f"p{i}" for i in range(len(sizes))]
    return Embeddings(mu, kappa, keys, labels=label, identities=names)


def rules(score: str = "mls", *accepts: float, floor: float = 0.0) -> tuple[DecisionRule, ...]:
    rates = (1e-1, 1e-2, 1e-3)
    return tuple(
        DecisionRule(score, 64.0, "kappa", accept, accept, floor, "fmr", alpha, 0.05)
        for accept, alpha in zip(accepts, rates)
    )


def slow_scores(gallery: Embeddings, several: bool) -> tuple[list[float], list[float]]:
    """Scores (non-mated, mated) of a leave-one-out search, image by image."""
    mu, kappa, label = gallery.mu.astype(float), gallery.kappa.astype(float), np.asarray(gallery.labels)
    templates = pool(mu, kappa, label)
    scores = mutual_likelihood_matrix(mu, kappa, templates.mu, templates.kappa, 64.0)
    size = np.bincount(label).tolist()
    non_mated, mated = [], []
    for image, mine in enumerate(label.tolist()):
        for person, images in enumerate(size):
            if person == mine or (images > 1) != several:
                continue
            if images > 1 or size[mine] > 1 or mine < person:
                non_mated.append(float(scores[image, person]))
        companions = np.flatnonzero((label == mine) & (np.arange(label.size) != image))
        if companions.size and (companions.size > 1) == several:
            eta = (kappa[companions, None] * mu[companions]).sum(0)
            length = np.linalg.norm(eta, keepdims=True)
            probe = mu[image : image + 1], kappa[image : image + 1]
            mated.append(float(mutual_likelihood_score(*probe, eta[None] / length, length, radius=64.0)[0]))
    return non_mated, mated


@pytest.mark.parametrize("sizes", [[1] * 24, [3] * 20, [1] * 9 + [2] * 8 + [4] * 7])
def test_counts_equal_a_slow_loop(sizes: list[int]) -> None:
    gallery = members(sizes)
    single, pooled = slow_scores(gallery, False), slow_scores(gallery, True)
    pair = float(np.quantile(single[0] or pooled[0], 0.97))
    template = float(np.quantile(pooled[0] or single[0], 0.9))
    calibration = Calibration("m", "d", decisions=(*rules("mls", pair), *rules("mls-template", template)))
    report = check_members(gallery, calibration, draws=20)
    assert report.counts["mated"] == len(single[1]) + len(pooled[1])
    assert report.counts["non_mated"] == len(single[0]) + len(pooled[0])
    by_score = {check.rule.score: check for check in report.rules}
    for (non_mated, mated), name, accept in ((single, "mls", pair), (pooled, "mls-template", template)):
        if non_mated:
            assert by_score[name].false_matches == sum(value >= accept for value in non_mated) > 0
            assert by_score[name].matches == sum(value >= accept for value in mated)
            assert by_score[name].false_non_matches == sum(value < accept for value in mated)
        else:
            assert name not in by_score


def test_verdicts_and_look_alikes_are_reported() -> None:
    gallery = members([2] * 60)
    twin = np.array(gallery.mu)
    twin[119] = twin[0]  # the last member's second image equals the first member's first
    gallery = replace(gallery, mu=twin)
    non_mated = np.sort(slow_scores(gallery, False)[0] + slow_scores(gallery, True)[0])
    strict, loose = float(non_mated[-60]), float(non_mated[len(non_mated) // 4])
    report = check_members(gallery, Calibration("m", "d", decisions=rules("mls", strict, loose)), draws=200)
    assert [check.verdict for check in report.rules] == ["kept", "broken"] * (len(report.rules) // 2)
    assert report.alike[0][:2] == ("p0", "p59")
    assert report.alike[0][2] == max(pair[2] for pair in report.alike) and len(report.alike) == 5
    assert report.to_dict()["rules"][0]["rule"]["alpha"] == 0.1


def test_too_few_comparisons_leave_the_verdict_open() -> None:
    report = check_members(members([1] * 25), Calibration("m", "d", decisions=rules("mls", 1e6, 1e6, 1e6)))
    assert [check.verdict for check in report.rules] == ["kept", "kept", "open"] and report.alike == ()


def test_rules_without_a_threshold_name_no_look_alikes() -> None:
    undecided = tuple(replace(rule, accept=None, reject=None) for rule in rules("mls", 0.0))
    report = check_members(members([1] * 25), Calibration("m", "d", decisions=undecided), draws=10)
    assert report.alike == () and [check.false_matches for check in report.rules] == [0]


def test_templates_without_own_rules_use_those_of_images() -> None:
    report = check_members(members([3] * 20), Calibration("m", "d", decisions=rules("mls", 0.0)), draws=10)
    assert [check.rule.score for check in report.rules] == ["mls"] and report.counts["mated"] == 60


def test_large_galleries_are_searched_with_a_sample_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.evaluation.members._PROBES", 30)
    report = check_members(members([3] * 20), Calibration("m", "d", decisions=rules("mls", 0.0)), draws=10)
    assert report.counts == {"members": 20, "images": 30, "mated": 30, "non_mated": 30 * 19}


def test_bad_input_is_refused() -> None:
    gallery, calibration = members([1] * 20), Calibration("m", "d", decisions=rules("mls", 0.0))
    with pytest.raises(InputError, match="at least 20 members, got 19"):
        check_members(members([1] * 19), calibration)
    with pytest.raises(InputError, match="have no names of members"):
        check_members(replace(gallery, labels=None, identities=[]), calibration)
    with pytest.raises(InputError, match="have no names of members"):
        check_members(replace(gallery, labels=gallery.labels - 1), calibration)
    with pytest.raises(InputError, match="no rule for the false match rate"):
        check_members(gallery, Calibration("m", "d"))
    with pytest.raises(InputError, match="radius 64, the gallery has 32"):
        check_members(replace(gallery, provenance={"radius": 32.0}), calibration)
