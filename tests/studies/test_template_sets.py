import numpy as np
import pytest
from studies.templates import TemplatePlan, draw_templates

from spherecf.errors import InputError

PLAN = TemplatePlan("3 images, half degraded", 3, 0.5, 2)


def labels() -> np.ndarray:
    return np.repeat(np.arange(6), [9, 6, 7, 6, 2, 6])


def test_each_template_has_one_person_and_its_own_images() -> None:
    subjects, usable = labels(), np.ones(36, bool)
    templates = draw_templates(subjects, usable, PLAN, seed=1)
    assert np.bincount(templates.subject).tolist() == [
        2,
        2,
        2,
        2,
        0,
        2,
    ]  # at most two per person; one has too few images
    assert len(np.unique(templates.image)) == len(templates.image) == 30
    assert np.array_equal(subjects[templates.image], templates.subject[templates.template])
    assert np.bincount(templates.template).tolist() == [3] * 10
    assert templates.degraded.sum() == 15
    assert templates.place.tolist() == [0, 1] * 5


def test_draws_depend_on_the_seed_and_exclude_broken_images() -> None:
    usable = np.ones(36, bool)
    usable[[0, 20]] = False
    first, repeated, other_seed = (draw_templates(labels(), usable, PLAN, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.image, repeated.image) and np.array_equal(first.degraded, repeated.degraded)
    assert not np.array_equal(first.image, other_seed.image)
    assert not np.isin([0, 20], first.image).any()


def test_the_protocol_compares_all_templates_once_and_enrols_each_person_once() -> None:
    templates = draw_templates(labels(), np.ones(36, bool), PLAN, seed=1)
    scores = np.linspace(0.1, 1, 30, dtype=np.float32)
    meta = templates.protocol("toy", [f"{i}.jpg" for i in range(36)], scores)
    assert meta.pairs is not None and meta.probes is not None
    assert len(meta.pairs.left) == 45 and meta.pairs.mated.sum() == 5
    enrolled = [set(gallery.subjects.tolist()) for gallery in meta.galleries.values()]
    assert enrolled[0] | enrolled[1] == {0, 1, 2, 3, 5} and not enrolled[0] & enrolled[1]
    assert meta.probes.subjects.tolist() == [0, 1, 2, 3, 5]
    assert [meta.files[row] for row in (0, 29)] == [f"{templates.image[row]}.jpg" for row in (0, 29)]


def test_too_few_people_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 people with images for two of them, got 3"):
        draw_templates(labels()[:22], np.ones(22, bool), PLAN, seed=0)
