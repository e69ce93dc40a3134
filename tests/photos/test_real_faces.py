"""Comparison and templates on CFP, whose people are not in the training data of the shipped head."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from spherecf.calibration import Decision
from spherecf.photos import AssessedPhoto, FaceAssessor, build_template, compare

pytestmark = pytest.mark.slow
PEOPLE, EACH = 12, 4


@pytest.fixture(scope="module")
def people(shared: Path, assessor: FaceAssessor) -> list[list[AssessedPhoto]]:
    """Frontal crops of some people, with a border as in photos."""
    root = shared / "data" / "cfp"
    folders = sorted(path for path in root.iterdir() if path.is_dir())[:PEOPLE]
    photos = []
    for folder in folders:
        crops = [cv2.imread(str(path)) for path in sorted((folder / "frontal").iterdir())[:EACH]]
        padded = [cv2.copyMakeBorder(image, 30, 30, 30, 30, cv2.BORDER_REPLICATE) for image in crops]
        photos.append([assessor(np.ascontiguousarray(image[..., ::-1]), folder.name) for image in padded])
    return photos


def test_most_decisions_are_correct(people: list[list[AssessedPhoto]], assessor: FaceAssessor) -> None:
    model = assessor.model
    decisions: dict[bool, list[Decision]] = {True: [], False: []}
    for first, first_photos in enumerate(people):
        for second, second_photos in enumerate(people):
            for left in first_photos[:2]:
                for right in second_photos[2:]:
                    result = compare(left, right, model.calibration, radius=model.radius, max_fmr=1e-3)
                    decisions[first == second].append(result.decision)
    mated, non_mated = decisions[True], decisions[False]
    assert len(mated) == 4 * PEOPLE and len(non_mated) == 4 * PEOPLE * (PEOPLE - 1)
    assert mated.count(Decision.MATCH) >= 0.8 * len(mated)
    assert mated.count(Decision.NON_MATCH) <= 2 and non_mated.count(Decision.MATCH) <= 2
    assert non_mated.count(Decision.NON_MATCH) >= 0.6 * len(non_mated)


def test_most_strangers_in_templates_are_detected(
    people: list[list[AssessedPhoto]], assessor: FaceAssessor
) -> None:
    model = assessor.model
    n_detected = n_wrong = 0
    for index, own_photos in enumerate(people):
        stranger = people[(index + 1) % PEOPLE][0]
        template = build_template([*own_photos, stranger], model.calibration, radius=model.radius)
        n_detected += template.photos[-1].stranger
        n_wrong += sum(photo.stranger for photo in template.photos[:-1])
        assert template.kappa > max(photo.kappa or 0.0 for photo in template.photos)
    assert n_detected >= 0.7 * PEOPLE and n_wrong <= 1
