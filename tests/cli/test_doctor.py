"""`spherecf doctor`: findings of a sound and of a broken installation."""

import importlib
import json
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import cv2
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from typer.testing import CliRunner

from spherecf import doctor
from spherecf.cli import app
from spherecf.errors import ModelError
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.models.heads import LinearHead

RUNNER = CliRunner()


def test_a_sound_installation_passes() -> None:
    result = RUNNER.invoke(app, ["doctor"], catch_exceptions=False)
    findings = {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 0 and all(line["ok"] for line in findings.values() if line["required"])
    assert "kappa" in findings["self test"]["detail"] and "sface" in findings["recogniser"]["detail"]
    assert {f"extra {name}" for name in doctor.EXTRAS} < set(findings) and "self test" in result.stderr


def test_broken_parts_are_named_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_model_error() -> FrozenBackbone:
        raise ModelError("the file is another one")

    monkeypatch.setattr(FrozenBackbone, "default", raise_model_error)
    monkeypatch.setattr(doctor, "EXTRAS", {"gallery": ("no_such_module",)})
    result = RUNNER.invoke(app, ["doctor"], catch_exceptions=False)
    findings = {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 1 and not findings["recogniser"]["ok"]
    assert findings["recogniser"]["detail"] == "the file is another one"
    assert not findings["extra gallery"]["ok"] and not findings["extra gallery"]["required"]
    assert findings["extra gallery"]["remedy"] == 'pip install "spherecf[gallery]"'


def test_the_self_test_needs_no_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("spherecf.data.folder.distribution", find_nothing)
    assert re.fullmatch(r"kappa of noise \d+; the test on a face needs the extra `demo`", doctor._self_test())


def test_a_model_without_calibration_that_is_blind_to_faces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FrozenBackbone.default()
    head = LinearHead(*backbone.feature_shape)
    for weight in head.parameters():
        torch.nn.init.zeros_(weight)  # the same kappa for everything
    for name in ("spherecf.models.load", "spherecf.photos.assessment.load"):
        monkeypatch.setattr(name, lambda: ConfidenceModel(backbone, head))
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert not findings["model"].ok and findings["model"].detail == "the bundled model has no calibration"
    assert not findings["self test"].ok
    assert "expected a face with a higher kappa than noise" in findings["self test"].detail


@pytest.mark.parametrize(
    "fault", [ImportError("libGL is missing"), cv2.error("no"), Fail("no"), AttributeError("x")]
)
def test_libraries_that_cannot_be_imported_are_findings(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    import_module: Callable = importlib.import_module

    def import_or_fail(name: str) -> object:
        if name in ("cv2", "pymilvus"):
            raise fault
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", import_or_fail)
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert not findings["cv2"].ok and type(fault).__name__ in findings["cv2"].detail and findings["torch"].ok
    assert not findings["extra milvus"].ok and findings["extra serve"].ok
