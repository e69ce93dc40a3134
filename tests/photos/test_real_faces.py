"""The photo verbs on CFP, whose people the shipped head has not learnt: real pictures and real errors."""

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
    """Frontal crops of some people, framed as photos are."""
    root = shared / "data" / "cfp"
    folders = sorted(path for path in root.iterdir() if path.is_dir())[:PEOPLE]
    found = []
    for folder in folders:
        pictures = [cv2.imread(str(path)) for path in sorted((folder / "frontal").iterdir())[:EACH]]
        framed = [cv2.copyMakeBorder(one, 30, 30, 30, 30, cv2.BORDER_REPLICATE) for one in pictures]
        found.append([assessor(np.ascontiguousarray(one[..., ::-1]), folder.name) for one in framed])
    return found


def test_decisions(people: list[list[AssessedPhoto]], assessor: FaceAssessor) -> None:
    model = assessor.model
    said: dict[bool, list[Decision]] = {True: [], False: []}
    for who, mine in enumerate(people):
        for other, theirs in enumerate(people):
            for left in mine[:2]:
                for right in theirs[2:]:
                    found = compare(left, right, model.calibration, radius=model.radius, max_fmr=1e-3)
                    said[who == other].append(found.decision)
    mated, strangers = said[True], said[False]
    assert len(mated) == 4 * PEOPLE and len(strangers) == 4 * PEOPLE * (PEOPLE - 1)
    assert mated.count(Decision.MATCH) >= 0.8 * len(mated)
    assert mated.count(Decision.NON_MATCH) <= 2 and strangers.count(Decision.MATCH) <= 2
    assert strangers.count(Decision.NON_MATCH) >= 0.6 * len(strangers)


def test_strangers_in_templates(people: list[list[AssessedPhoto]], assessor: FaceAssessor) -> None:
    model = assessor.model
    caught = wronged = 0
    for who, mine in enumerate(people):
        stranger = people[(who + 1) % PEOPLE][0]
        built = build_template([*mine, stranger], model.calibration, radius=model.radius)
        caught += built.photos[-1].stranger
        wronged += sum(photo.stranger for photo in built.photos[:-1])
        assert built.kappa > max(photo.kappa or 0.0 for photo in built.photos)
    assert caught >= 0.7 * PEOPLE and wronged <= 1
