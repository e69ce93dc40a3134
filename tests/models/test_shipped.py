"""The packaged model: its contents, and its behaviour on real faces."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import spherecf as scf
from spherecf.data import orl_faces
from spherecf.errors import ModelError
from spherecf.faces import AlignedFaces
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.models.model import read_header
from spherecf.models.preprocessing import default_model_path


@pytest.fixture(scope="module")
def model() -> ConfidenceModel:
    return scf.load()


def test_the_model_is_small_and_describes_itself() -> None:
    assert default_model_path().stat().st_size <= 4 * 2**20
    header = read_header(default_model_path())
    card = header["record"]["card"]
    assert "research use" in card["licence"] and card["command"].startswith("python -m studies shipped")
    assert card["page"] == "docs/model-card.md" and header["record"]["versions"]["spherecf"]
    assert header["backbone"]["name"] == "sface" and header["head"]["kind"] == "light"


def test_the_calibration_is_complete(model: ConfidenceModel) -> None:
    calibration = model.calibration
    assert (
        calibration is not None and calibration.kappa is not None and calibration.model == model.fingerprint()
    )
    assert calibration.kappa.population and calibration.kappa.dim == 128
    for score in ("mls", "cosine", "mls-template"):
        resolved = [e for e in calibration.thresholds[score].entries if e.threshold is not None]
        assert {entry.target for entry in resolved} >= {1e-1, 1e-2, 1e-3, 1e-4, 1e-5}
        for entry in resolved:
            assert entry.fmr is not None and entry.fmr <= entry.target
            assert entry.fmr_subjects is not None and entry.fmr_subjects[0] <= entry.fmr
        thresholds = [entry.threshold for entry in resolved if entry.threshold is not None]
        assert thresholds == sorted(thresholds)
        assert calibration.llr(score, thresholds[-1]) > calibration.llr(score, thresholds[0])


@pytest.mark.parametrize("score", ["mls", "mls-template"])
def test_rules_are_ordered_and_meet_their_bounds(model: ConfidenceModel, score: str) -> None:
    assert model.calibration is not None
    rules = [model.calibration.decision(score, error="fmr", alpha=alpha) for alpha in (1e-2, 1e-3, 1e-4)]
    accepts = [rule.accept for rule in rules if rule.accept is not None]
    assert len(accepts) == 3 and accepts == sorted(accepts)
    for rule in rules:
        assert rule.radius == model.radius and rule.fnmr == 0.01
        assert rule.counts[0].upper <= rule.alpha and rule.counts[1].upper <= 0.01
        assert rule.reject is not None and rule.reject < model.calibration.record["neutral"] < accepts[0]
        assert 0 < rule.min_confidence < 100


def test_the_page_of_thresholds_lists_the_rules_of_the_model(model: ConfidenceModel) -> None:
    page = (Path(__file__).parents[2] / "docs" / "thresholds.md").read_text(encoding="utf-8")
    table = page.split("| score        | FMR    | match from |", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"^\| ([a-z][\w-]*) *\| (\S+) *\| (\S+) *\| (\S+) *\|$", table, re.MULTILINE)
    assert model.calibration is not None
    assert {row[0] for row in listed} == {"evidence", "mls", "mls-template"}
    assert [(name, float(rate), float(accept), float(reject)) for name, rate, accept, reject in listed] == [
        (rule.score, rule.alpha, pytest.approx(rule.accept, abs=5e-3), pytest.approx(rule.reject, abs=5e-3))
        for rule in model.calibration.decisions
        if rule.score in {row[0] for row in listed}
    ]


@pytest.mark.parametrize("templates", [0, 1, 2])
def test_evidence_is_calibrated_for_images_and_templates(model: ConfidenceModel, templates: int) -> None:
    calibration = model.calibration
    assert calibration is not None
    score = calibration.best_score(templates)
    assert score == ("evidence", "evidence-template", "evidence-templates")[templates]
    rules = [calibration.best_decision(10.0**-digits, templates) for digits in range(2, 9)]
    accepts = [rule.accept for rule in rules if rule.accept is not None]
    assert len(accepts) == 7 and accepts == sorted(accepts) and {rule.score for rule in rules} == {score}
    assert [rule.extrapolated is not None for rule in rules] == [False] * 4 + [True] * 3
    kappas = np.full(2, 200.0), np.full(2, 90.0)
    neutral = calibration.record["neutral"]
    low, high = calibration.evidence(score, [neutral - 9, neutral + 30], [0.0, 0.8], kappas)
    assert low < 0 < rules[1].accept < high
    for count in (rule.counts[0] for rule in rules):
        assert count.upper <= 1e-2


def test_percentiles_rise_with_kappa(model: ConfidenceModel) -> None:
    assert model.calibration is not None and model.calibration.kappa is not None
    scale = model.calibration.kappa
    percent = scale.percentile(np.geomspace(1, 2000, 200))
    assert (np.diff(percent) >= 0).all() and percent[0] == 0 and percent[-1] == 100
    assert scale.iso(float(scale.kappa_at(50))) == 50


def test_blurring_lowers_kappa(model: ConfidenceModel) -> None:
    faces = AlignedFaces(orl_faces())
    images = np.stack([faces.image(row) for row in range(0, 400, 50)])
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in images])
    sharp_kappa, blurred_kappa = (model.embed(batch)[1].exp().numpy() for batch in (images, blurred))
    assert (blurred_kappa < sharp_kappa).all() and np.median(blurred_kappa / sharp_kappa) < 0.7


def test_the_calibration_is_bound_to_the_model(model: ConfidenceModel) -> None:
    assert model.calibration is not None
    other_model = ConfidenceModel(model.backbone, model.head, radius=32.0)
    with pytest.raises(ModelError, match=model.fingerprint()):
        other_model.with_calibration(model.calibration)
    assert model.backbone.sha256 == FrozenBackbone.default().sha256


def test_torchs_defaults_and_autocast_change_nothing(model: ConfidenceModel) -> None:
    """A default type of float64 once gave another fingerprint, and autocast an embedding in bfloat16."""
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    expected = model.embed(faces)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            results = [*scf.load().embed(faces), *model.embed(faces)]
    finally:
        torch.set_default_dtype(torch.float32)
    for result, tensor in zip(results, expected * 2, strict=True):
        assert result.dtype == torch.float32 and torch.equal(result, tensor)


@pytest.mark.filterwarnings("error")
def test_read_only_and_empty_batches_give_no_warning(model: ConfidenceModel) -> None:
    faces = np.zeros((1, 112, 112, 3), np.uint8)
    expected = model.embed(faces)[0]
    faces.flags.writeable = False
    assert torch.equal(model.embed(faces)[0], expected)
    mu, log_kappa = model.embed(faces[:0])
    assert mu.shape == (0, 128) and log_kappa.shape == (0,)
