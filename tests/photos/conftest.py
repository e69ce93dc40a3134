"""ORL photos, assessed once, and synthetic faces with a given direction and kappa."""

from collections.abc import Callable

import numpy as np
import pytest

from spherecf.calibration import (
    Calibration,
    DecisionRule,
    ErrorCount,
    KappaScale,
    LogisticCalibrator,
    ThresholdTable,
)
from spherecf.data import orl_faces
from spherecf.faces import Acquisition, CapturedFace, CaptureFacts, Failure
from spherecf.photos import AssessedFace, AssessedPhoto, FaceAssessor
from spherecf.scoring import mutual_likelihood_score

RADIUS = 64.0
OBSERVED = ErrorCount("false matches of non-mated pairs", 1, 1000, 0.009)
DIM = 16
MakePhoto = Callable[..., AssessedPhoto]


@pytest.fixture(scope="session")
def assessor() -> FaceAssessor:
    return FaceAssessor()


@pytest.fixture(scope="session")
def photos(assessor: FaceAssessor) -> dict[str, AssessedPhoto]:
    """Five photos each of two people, by their names in ORL."""
    source = orl_faces()
    names = [name for name in source.keys if name.split("/")[0] in ("s1", "s2") and int(name[3]) < 6]
    rows = [source.keys.index(name) for name in names if name[4] == "."]
    return {source.keys[row]: assessor(source.image(row), source.keys[row]) for row in rows}


def face(mu: np.ndarray, kappa: float, crop: int = 0) -> AssessedFace:
    """A face with this direction and confidence; faces with the same number ``crop`` have equal images."""
    facts = CaptureFacts(40.0, 0.0, 0.0, 0.0, 300.0, 120.0, 50.0, 1.0, (60, 80))
    image = np.full((4, 4, 3), crop, np.uint8)
    captured = CapturedFace(image, (0.0, 0.0, 60.0, 80.0), np.zeros((5, 2)), 0.9, facts)
    unit = (mu / np.linalg.norm(mu)).astype(np.float32)
    return AssessedFace(captured, unit, kappa, 50.0, 50, 0.5, ())


def photo(name: str, *faces: AssessedFace) -> AssessedPhoto:
    if faces:
        return AssessedPhoto(name, Acquisition(name, (100, 100), ()), faces)
    return AssessedPhoto(name, Acquisition(name, (100, 100), (), Failure.NO_FACE, "no face found."), ())


def score(a: AssessedFace, b: AssessedFace) -> float:
    import torch

    mu = torch.from_numpy(np.stack([a.mu, b.mu])).double()
    kappa = torch.tensor([a.kappa, b.kappa], dtype=torch.float64)
    return float(mutual_likelihood_score(mu[:1], kappa[:1], mu[1:], kappa[1:], radius=RADIUS))


@pytest.fixture
def calibration() -> Calibration:
    """Accepts two equal directions with kappa 100, and rejects two orthogonal ones."""
    e = np.eye(DIM)
    near, far = score(face(e[0], 100.0), face(e[0], 100.0)), score(face(e[0], 100.0), face(e[1], 100.0))
    middle, half = (near + far) / 2, (near - far) / 4
    rules = [
        DecisionRule(
            "mls", RADIUS, "kappa", middle + half, middle - half, 20.0, "fmr", alpha, 0.05, counts=(OBSERVED,)
        )
        for alpha in (1e-2, 1e-4)
    ]
    scores = np.array([near, near - 1, far, far + 1])
    table = ThresholdTable.fit(scores, [1, 1, 0, 0], [0.5, 1e-4], score="mls", radius=RADIUS)
    overlapping = [*scores, middle - 1, middle + 1]
    calibrator = LogisticCalibrator.fit(overlapping, [1, 1, 0, 0, 1, 0], score="mls", radius=RADIUS)
    scale = KappaScale.fit([10.0, 100.0], dim=DIM, population="two")
    return Calibration("m" * 64, "d" * 64, scale, {"mls": calibrator}, {"mls": table}, tuple(rules))
