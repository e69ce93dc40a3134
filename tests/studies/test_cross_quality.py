from pathlib import Path

import numpy as np
import pytest
import torch
from tests.studies.conftest import run

from spherecf.data import draw_pairs, open_source, orl_faces
from spherecf.demo.trial import VARIANTS, CrossQuality, TrialOptions, cross_quality
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone
from spherecf.scoring import mutual_likelihood_score


def test_every_seed_list_and_condition_has_a_report(finished: CrossQuality) -> None:
    labels = [(report.label, report.condition) for report in finished.reports]
    conditions = ["clean/clean", "clean/cross", "cross/cross", "clean/unseen", "unseen/unseen"]
    assert labels == [(f"seed {seed}", condition) for seed in (0, 1) for condition in conditions]
    assert all(list(r.scores) == ["cosine", *(v.score for v in VARIANTS)] for r in finished.reports)


def test_each_seed_draws_its_own_views(finished: CrossQuality) -> None:
    signatures = [view.signature for view in finished.test.views]
    assert [[signatures[column] for column in finished.views_of(seed)] for seed in (0, 1)] == [
        ["clean", "cross-v1/0", "unseen-v1/0"],
        ["clean", "cross-v1/1", "unseen-v1/1"],
    ]


def test_a_broken_image_is_a_failure_to_acquire(finished: CrossQuality) -> None:
    report = finished.reports[0]
    assert [key for key, _ in report.failures] == ["p0/0.jpg"]
    assert report.counts["pairs"] + report.counts["failed_pairs"] == 40
    assert report.counts["failed_pairs"] > 0


def test_scores_equal_a_direct_calculation(finished: CrossQuality, sets: tuple[Path, Path]) -> None:
    """Scores of the released head, recomputed from the images, give the reported equal error rate."""
    from spherecf.evaluation import eer

    test = open_source(sets[1])
    pairs = draw_pairs(test, max_pairs=20, folds=3)
    model = finished.models[1, "mls_released"]
    readable = [row for row in range(len(pairs)) if "p0/0.jpg" not in (pairs.left[row], pairs.right[row])]
    rows = dict(zip(test.keys, range(len(test))))
    sides = []
    for keys, column in ((pairs.left, 0), (pairs.right, finished.views_of(1)[1])):
        view = finished.test.views[column]
        images = np.stack([view(test.image(rows[keys[row]]), keys[row]).image for row in readable])
        sides.append(model.embed(images))
    (mu_a, log_a), (mu_b, log_b) = sides
    scores = mutual_likelihood_score(mu_a, log_a.exp(), mu_b, log_b.exp()).numpy()
    (report,) = (r for r in finished.reports if (r.label, r.condition) == ("seed 1", "clean/cross"))
    assert report.scores["mls_released"].eer.value == pytest.approx(
        eer(scores, pairs.mated[readable]), abs=0.03
    )


def test_finished_work_is_not_repeated(
    tiny: FrozenBackbone, sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tiny, sets, tmp_path)
    monkeypatch.setattr(FrozenBackbone, "run", None)
    second = run(tiny, sets, tmp_path)
    for expected, actual in zip(first.reports, second.reports):
        assert expected.to_dict() == actual.to_dict()
    for name in first.models:
        a, b = (run.models[name].head.state_dict() for run in (first, second))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_missing_seeds_or_pair_lists_are_refused(
    tiny: FrozenBackbone, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = map(open_source, sets)
    with pytest.raises(InputError, match="at least one seed and one pair list, got 3 and 0"):
        cross_quality(tiny, train, test, [], tmp_path)


def test_one_head_must_have_the_default_score(tiny: FrozenBackbone, tmp_path: Path) -> None:
    people = orl_faces()
    options = TrialOptions((0,), variants=VARIANTS[2:3])
    with pytest.raises(InputError, match=r"expected a variant with the score mls, got \['mls_released'\]"):
        cross_quality(tiny, people, people, [draw_pairs(people)], tmp_path, options=options)
