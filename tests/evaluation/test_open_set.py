"""Galleries and probes: which probes are mated, division by subject, and invalid input."""

import dataclasses

import numpy as np
import pytest
from tests.reference.open_world import open_world

from spherecf.errors import InputError
from spherecf.evaluation import OpenSet


@pytest.fixture
def world() -> OpenSet:
    gallery, names, probes, probe_subjects = open_world(dim=6, enrolled=10, strangers=8, each=3)
    return OpenSet(gallery, names, probes, probe_subjects, {"norm": np.arange(54.0)})


def test_truth_does_not_depend_on_the_order_of_the_gallery(world: OpenSet) -> None:
    rng = np.random.default_rng(0)
    names = rng.permutation([f"p{i}" for i in range(10)])
    probe_subjects = np.array([f"p{i}" for i in world.probe_subjects])
    shuffled = OpenSet(world.gallery, names, world.probes, probe_subjects)
    expected = [list(names).index(name) if name in names else -1 for name in probe_subjects]
    assert shuffled.truth.tolist() == expected


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_parts_are_disjoint_by_subject_and_complete(world: OpenSet, share: float) -> None:
    first, second = world.divide(share, 4)
    people = [{*part.gallery_subjects.tolist(), *part.probe_subjects.tolist()} for part in (first, second)]
    assert not people[0] & people[1] and len(people[0] | people[1]) == 18
    assert len(first.gallery) == round(10 * share) and len(first.probes) + len(second.probes) == 54
    for part in (first, second):
        assert (part.extras["norm"] == part.probes.ids).all()  # columns follow their probes
        assert (world.probe_subjects[part.probes.ids] == part.probe_subjects).all()
        assert part.gallery_subjects.tolist() == part.gallery.ids.tolist()
    assert world.divide(share, 4)[0].probes.ids.tolist() == first.probes.ids.tolist()
    assert world.divide(share, 5)[0].probes.ids.tolist() != first.probes.ids.tolist()


def test_precision_is_computed_from_the_templates(world: OpenSet) -> None:
    precise = dataclasses.replace(
        world.probes, log_precision=np.tile([[1.0, 3.0]], (54, 3)).astype(np.float32)
    )
    data = OpenSet(world.gallery, world.gallery_subjects, precise, world.probe_subjects)
    assert data.extras["precision"].tolist() == [2.0] * 54


def test_gallery_kappa_may_be_given_or_estimated(world: OpenSet) -> None:
    assert world.gallery_kappas(12.5, 0.5) == (12.5, 12.5)
    cosine = world.gallery_kappas("cosine", 0.5)
    assert cosine[0] == cosine[1] != world.gallery_kappas("likelihood", 0.5)[0]
    with pytest.raises(InputError, match="expected a number or one of"):
        world.gallery_kappas("median", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gallery_subjects": np.arange(9)},
            r"gallery_subjects: expected one per template \(10,\), got \(9,\)",
        ),
        ({"probe_subjects": np.arange(3)}, "probe_subjects: expected one per template"),
        ({"gallery_subjects": np.arange(10) // 2}, "5 subjects are enrolled more than once, first 0"),
        ({"probe_subjects": np.zeros(54, int)}, "54 of 54 show enrolled subjects"),
        ({"probe_subjects": np.full(54, 99)}, "0 of 54 show enrolled subjects"),
        ({"extras": {"norm": np.full(54, np.nan)}}, "confidence 'norm': expected 54 numbers, .* 54 NaN"),
        ({"extras": {"norm": np.zeros(5)}}, r"confidence 'norm': expected 54 numbers, got shape \(5,\)"),
        ({"gallery": open_world(dim=5, enrolled=10, strangers=1)[0]}, "dimension 5, probes 6"),
    ],
)
def test_bad_input_is_refused(world: OpenSet, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(world, **change)


def test_too_few_subjects_to_divide_are_refused() -> None:
    data = OpenSet(*open_world(dim=6, enrolled=1, strangers=1, each=2))
    with pytest.raises(InputError, match="too few subjects to divide"):
        data.divide(0.5, 0)
    with pytest.raises(InputError, match="0 < share < 1"):
        data.divide(1.0, 0)
