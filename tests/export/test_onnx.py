"""The exported file, run by plain onnxruntime, agrees with the model from which it was exported."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.models import graphs, transformers
from tests.models.conftest import TINY, noise
from tests.tiny import tiny_file, tiny_model
from torch import nn

import spherecf
from spherecf.calibration import Calibration, KappaScale
from spherecf.data import orl_faces
from spherecf.errors import InputError, ModelError, StorageError
from spherecf.export import Parity, _serialized, export_onnx
from spherecf.faces import AlignedFaces
from spherecf.models import HEADS, ConfidenceHead, ConfidenceModel, FrozenBackbone, make_backbone, make_head
from spherecf.models.heads import LinearHead


def calibrated(model: ConfidenceModel) -> ConfidenceModel:
    """The model with kappa percentiles of thirty images."""
    kappa = model.embed(noise(30, model.backbone.preprocessing.size[0]))[1].exp().numpy()
    scale = KappaScale.fit(kappa, dim=model.backbone.dim, population="noise")
    return model.with_calibration(Calibration(model.fingerprint(), "d" * 64, scale))


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run the file as a program does that only depends on onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: images}), strict=True))


def assert_same(actual: dict[str, np.ndarray], model: ConfidenceModel, images: np.ndarray) -> None:
    expected = model.outputs(images)
    assert (actual["embedding"] * expected.mu.numpy()).sum(1) == pytest.approx(1.0, abs=1e-6)
    assert actual["log_kappa"] == pytest.approx(expected.log_kappa.numpy(), abs=1e-4)


@pytest.fixture
def model(tmp_path: Path) -> ConfidenceModel:
    return calibrated(tiny_model(tmp_path))


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_the_file_gives_the_outputs_of_the_model(model: ConfidenceModel, tmp_path: Path, place: str) -> None:
    report = export_onnx(model, tmp_path / "out.onnx", preprocessing=place)
    faces = noise(5, 16, seed=9)
    images = faces if place == "inside" else model.backbone.preprocessing(faces).numpy()
    for count in (1, 2, 5):
        outputs = run(report.path, images[:count])
        assert_same(outputs, model, faces[:count])
        assert model.calibration is not None and model.calibration.kappa is not None
        kappa = np.exp(outputs["log_kappa"].astype(np.float64))
        assert outputs["kappa_percentile"] == pytest.approx(
            model.calibration.kappa.percentile(kappa), abs=0.01
        )
    assert report.outputs == {
        "embedding": "float32 (batch, 48)",
        "log_kappa": "float32 (batch,)",
        "kappa_percentile": "float32 (batch,)",
    }
    shape = "uint8 (batch, 16, 16, 3)" if place == "inside" else "float32 (batch, 3, 16, 16)"
    assert report.inputs == {"image": shape} and not report.missing
    assert 0 <= report.parity.mu < 1e-5 and json.dumps(report.to_dict())


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize("outputs", [1, 48])
def test_every_head_is_exported(tmp_path: Path, kind: str, outputs: int) -> None:
    torch.manual_seed(0)
    backbone = FrozenBackbone.from_onnx(tiny_file(tmp_path), preprocessing=TINY)
    channels, height, width = backbone.feature_shape
    head = make_head(kind, channels=channels, height=height, width=width, outputs=outputs)
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    model = ConfidenceModel(backbone, head)
    actual = run(export_onnx(model, tmp_path / "out.onnx").path, noise(3))
    assert_same(actual, model, noise(3))
    if outputs > 1:
        expected = model.outputs(noise(3)).log_precision
        assert expected is not None and actual["log_precision"] == pytest.approx(expected.numpy(), abs=1e-4)
    else:
        assert "log_precision" not in actual


class _CustomHead(ConfidenceHead):
    kind = "mine"

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__(channels, height, width)
        self.final = nn.Linear(channels, 1)

    def forward(self, summary: torch.Tensor) -> torch.Tensor:
        return self.final(summary.amax((2, 3))).squeeze(1)


def test_a_custom_head_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = FrozenBackbone.from_onnx(tiny_file(tmp_path), preprocessing=TINY)
    model = ConfidenceModel(backbone, _CustomHead(*backbone.feature_shape))
    assert_same(run(export_onnx(model, tmp_path / "out.onnx").path, noise(4)), model, noise(4))


@pytest.mark.parametrize("graph", ["mobilefacenet", "traced_view", "iresnet"])
def test_graphs_of_other_tools_are_exported(tmp_path: Path, graph: str) -> None:
    """Graphs with a fixed batch of one, a computed reshape, or slopes as written by MXNet."""
    torch.manual_seed(0)
    model_graph = (
        graphs.iresnet(batch=1, spatial_slopes=False) if graph == "iresnet" else getattr(graphs, graph)()
    )
    backbone = FrozenBackbone.from_onnx(model_graph, preprocessing=TINY)
    model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
    assert_same(run(export_onnx(model, tmp_path / "out.onnx").path, noise(3)), model, noise(3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [transformers.ClassToken, lambda: transformers.Swin("map")])
@pytest.mark.parametrize("opset", [12, 17])
def test_graphs_with_tokens_are_exported(tmp_path: Path, make: Callable[[], nn.Module], opset: int) -> None:
    """Tokens and channels-last maps are arranged for the head within the file as well."""
    torch.manual_seed(0)
    graph = transformers.exported(make(), opset, batch=1)
    backbone = FrozenBackbone.from_onnx(graph, preprocessing=TINY)
    model = ConfidenceModel(backbone, make_head("conv", **_shape(backbone)))
    assert_same(run(export_onnx(model, tmp_path / "out.onnx").path, noise(3)), model, noise(3))


@pytest.mark.parametrize("opset", [8, 9, 11, 18, 21])
def test_the_opset_of_the_network_is_kept(tmp_path: Path, opset: int) -> None:
    """The file uses the opset of the network if at least 9; older networks are converted."""
    make = graphs.Maker(1)
    x = make.prelu(make.conv("image", "stem", 3, 8, strides=[2, 2]), "map", 8)
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 8 * 8 * 8, 32)
    backbone = FrozenBackbone.from_onnx(make.model(["embedding"], opset=opset), preprocessing=TINY)
    torch.manual_seed(0)
    model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
    report = export_onnx(model, tmp_path / "out.onnx")
    assert report.opset == (13 if opset == 8 else opset)
    assert_same(run(report.path, noise(3)), model, noise(3))


def test_torch_networks_are_exported(tmp_path: Path) -> None:
    """Checkpoints of supported networks, and a module whose map is given by name."""
    torch.manual_seed(0)
    path = tmp_path / "r18.pth"
    torch.save(make_backbone("r18", dim=64, size=32, width=0.125).state_dict(), path)
    checkpoint = FrozenBackbone.from_checkpoint(path)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 40))
    module_backbone = FrozenBackbone.from_module(module, TINY, features="1")
    torch.save(make_backbone("vit_t", dim=64, size=27, width=0.125).state_dict(), path)
    transformer = FrozenBackbone.from_checkpoint(path)
    for backbone in (checkpoint, module_backbone, transformer):
        model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
        faces = noise(3, backbone.preprocessing.size[0])
        assert_same(run(export_onnx(model, tmp_path / "out.onnx").path, faces), model, faces)


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("outputs", ["all", "embedding"])
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_the_exported_file_is_itself_a_recogniser(
    model: ConfidenceModel, tmp_path: Path, place: str, outputs: str, engine: str
) -> None:
    path = export_onnx(model, tmp_path / "out.onnx", preprocessing=place, outputs=outputs).path
    assert (list(run_names(path)) == ["embedding"]) == (outputs == "embedding")
    reloaded = FrozenBackbone.from_onnx(path, engine=engine)
    assert reloaded.preprocessing == TINY and reloaded.dim == 48
    original, exported = model.backbone(noise(4)), reloaded(noise(4))
    assert torch.allclose(original.mu, exported.embedding, atol=1e-5)
    assert torch.allclose(original.features, exported.features, atol=1e-4)


def run_names(path: Path) -> list[str]:
    return [output.name for output in onnx.load(path).graph.output]


def test_bgr_and_per_channel_normalisation_are_exported(tmp_path: Path) -> None:
    pixels = replace(TINY, color="bgr", mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    backbone = FrozenBackbone.from_onnx(tiny_file(tmp_path), preprocessing=pixels)
    model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
    path = export_onnx(model, tmp_path / "out.onnx").path
    assert_same(run(path, noise(3)), model, noise(3))
    assert FrozenBackbone.from_onnx(path).preprocessing == pixels


def test_metadata_identify_model_backbone_and_calibration(model: ConfidenceModel, tmp_path: Path) -> None:
    path = export_onnx(model, tmp_path / "out.onnx", preprocessing="outside").path
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["spherecf.model"] == model.fingerprint()
    assert facts["spherecf.backbone"] == model.backbone.sha256
    assert json.loads(facts["spherecf.preprocessing"]) == TINY.to_dict()
    assert (facts["spherecf.preprocessing_place"], float(facts["spherecf.radius"])) == ("outside", 64.0)
    calibration = Calibration.from_dict(json.loads(facts["spherecf.calibration"]))
    assert calibration == model.calibration


PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = spherecf.load()
    export_onnx(model, "sface.onnx")
    source = AlignedFaces(orl_faces())
    for name, index in (("one.png", 0), ("other.png", 1)):
        Path(name).write_bytes(source.read(index))
    code = PAGE.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert_same({"embedding": names["mu"], "log_kappa": names["log_kappa"]}, model, names["faces"])
    cosine = float(capsys.readouterr().out.splitlines()[0].removeprefix("cosine:"))
    assert 0.3 < cosine < 1.0 and len([line for line in code.splitlines() if line]) <= 10


def test_without_calibration_the_file_has_no_percentile(tmp_path: Path) -> None:
    report = export_onnx(tiny_model(tmp_path), tmp_path / "out.onnx")
    assert list(report.outputs) == ["embedding", "log_kappa"]
    assert "not calibrated" in report.missing["kappa_percentile"]


def test_export_does_not_change_the_model(model: ConfidenceModel, tmp_path: Path) -> None:
    model.head.train()
    fingerprint = model.fingerprint()
    export_onnx(model, tmp_path / "out.onnx")
    assert model.head.training and model.fingerprint() == fingerprint


def test_a_file_outside_the_tolerance_is_not_written(model: ConfidenceModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing was written.*mu .*log_kappa"):
        export_onnx(model, tmp_path / "out.onnx", tolerance=Parity(mu=-1.0))
    assert not list(tmp_path.glob("*out.onnx*"))


def test_a_network_limited_to_single_images_is_refused(tmp_path: Path) -> None:
    make = graphs.Maker(2)
    x = make.node("Relu", [make.conv("image", "stem", 3, 8, strides=[2, 2])], "map")
    flat = make.node("Flatten", [x], "flat", axis=0)  # all images in one row
    row = make.dense(flat, "row", 8 * 8 * 8, 32)
    backbone = FrozenBackbone.from_onnx(make.model([row], batch=1), preprocessing=TINY)
    assert any("one by one" in repair for repair in backbone.repairs)
    model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
    with pytest.raises(ModelError, match="cannot run the exported file"):
        export_onnx(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_recogniser_that_changed_on_disk_is_refused(model: ConfidenceModel, tmp_path: Path) -> None:
    onnx.save(graphs.mobilefacenet(), tiny_file_path := tmp_path / "tiny.onnx")
    with pytest.raises(ModelError, match=f"{tiny_file_path.name}: changed since it was loaded"):
        export_onnx(model, tmp_path / "out.onnx")


def test_a_bfloat16_model_is_refused(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY, engine="torch", dtype="bfloat16")
    model = ConfidenceModel(backbone, make_head("light", **_shape(backbone)))
    with pytest.raises(ModelError, match="load it in float32"):
        export_onnx(model, tmp_path / "out.onnx")


def test_write_errors_keep_the_old_file(
    model: ConfidenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="could not be written"):
        export_onnx(model, tmp_path / "file" / "out.onnx")
    path = export_onnx(model, tmp_path / "new" / "folder" / "out.onnx").path
    content = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        export_onnx(model, path, outputs="embedding")
    assert path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("options", [{"preprocessing": "both"}, {"outputs": "none"}])
def test_unknown_options_are_refused(model: ConfidenceModel, tmp_path: Path, options: dict[str, Any]) -> None:
    """Even without run-time type checks, as in ordinary use."""
    unchecked = getattr(export_onnx, "__wrapped__", export_onnx)
    with pytest.raises(InputError, match="expected one of"):
        unchecked(model, tmp_path / "out.onnx", **options)


def _shape(backbone: FrozenBackbone) -> dict[str, int]:
    return dict(zip(("channels", "height", "width"), backbone.feature_shape, strict=True))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode on this system")
def test_the_name_of_the_recogniser_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"t\xe9ny.onnx")
    tiny_file(tmp_path).rename(path)
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY)
    model = ConfidenceModel(backbone, LinearHead(*backbone.feature_shape))
    exported = onnx.load(export_onnx(model, tmp_path / "out.onnx").path)
    facts = {entry.key: entry.value for entry in exported.metadata_props}
    assert facts["spherecf.backbone_name"] == r"t\udce9ny"


def test_a_graph_that_is_not_onnx_is_an_error_of_the_model(model: ConfidenceModel) -> None:
    incomplete = graphs.iresnet()  # its output has no shape
    with pytest.raises(ModelError, match=r"tiny: cannot be written as one ONNX file: Field 'shape'"):
        _serialized(incomplete, model)
