import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.models import graphs
from tests.models.conftest import TINY, noise

import spherecf
from spherecf.calibration import Calibration, KappaScale
from spherecf.errors import FileFormatError, InputError, ModelError, StorageError
from spherecf.models import ConfidenceModel, FrozenBackbone, load, load_confidence_head
from spherecf.models.heads import ConvHead, LinearHead
from spherecf.models.model import read_header
from spherecf.models.saved import HEADER_KEY


@pytest.fixture
def model(tiny: FrozenBackbone) -> ConfidenceModel:
    torch.manual_seed(0)
    return ConfidenceModel(tiny, ConvHead(8, 8, 8), 32.0, {"epochs": 3, "loss": [1.5, 1.0]})


@pytest.fixture
def saved(model: ConfidenceModel, tmp_path: Path) -> Path:
    return model.save(tmp_path / "heads" / "head.safetensors")


def test_a_model_round_trips(model: ConfidenceModel, saved: Path, tiny_file: Path) -> None:
    reloaded = load(saved, backbone=tiny_file)
    mu, log_kappa = reloaded.embed(noise(3))
    expected = model.outputs(noise(3))
    assert torch.equal(mu, expected.mu) and torch.equal(log_kappa, expected.log_kappa)
    assert torch.equal(expected.norm, model.backbone(noise(3)).norm)
    assert reloaded.fingerprint() == model.fingerprint()
    assert (reloaded.radius, reloaded.calibration) == (32.0, None)
    assert reloaded.record["epochs"] == 3 and reloaded.record["versions"]["spherecf"] == spherecf.__version__
    assert spherecf.load(saved, backbone=model.backbone).fingerprint() == model.fingerprint()


def test_a_model_is_one_safetensors_file_with_a_json_header(saved: Path) -> None:
    with safe_open(saved, "pt") as stored:
        header = json.loads(stored.metadata()["spherecf"])
    assert header == read_header(saved)
    assert header["backbone"]["preprocessing"] == TINY.to_dict()
    assert header["head"] == {"kind": "conv", "config": SHAPE}
    assert (header["dim"], header["backbone"]["features"], header["version"]) == (48, "bn2", 1)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_the_default_backbone_is_found_by_hash(sface: FrozenBackbone, tmp_path: Path) -> None:
    path = ConfidenceModel(sface, ConvHead(*sface.feature_shape)).save(tmp_path / "h.safetensors")
    assert load(path).backbone.sha256 == sface.sha256


def test_the_backbone_runs_in_bfloat16_on_request(
    saved: Path, tiny_file: Path, model: ConfidenceModel
) -> None:
    half = load(saved, backbone=tiny_file, dtype="bfloat16")
    assert half.backbone.engine == "torch-bfloat16" and half.fingerprint() == model.fingerprint()
    assert {p.dtype for p in half.head.parameters()} == {torch.float32}
    mu, log_kappa = half.embed(noise(6))
    expected = model.outputs(noise(6))
    assert mu.dtype == log_kappa.dtype == torch.float32
    assert not torch.equal(mu, expected.mu) and not torch.equal(log_kappa, expected.log_kappa)
    assert (mu * expected.mu).sum(1).min() > 0.99
    assert (log_kappa - expected.log_kappa).abs().max() < 0.1


def test_an_unavailable_device_is_refused(saved: Path, tiny_file: Path) -> None:
    with pytest.raises(InputError, match=r"device 'cuda:99' cannot be used here.*'cpu'"):
        load(saved, backbone=tiny_file, engine="torch", device="cuda:99")


def test_fingerprint_depends_on_radius_and_weights(model: ConfidenceModel) -> None:
    original = model.fingerprint()
    assert ConfidenceModel(model.backbone, model.head, 64.0).fingerprint() != original
    with torch.no_grad():
        model.head.final.bias += 1
    assert model.fingerprint() != original


def test_embedding_is_deterministic_and_keeps_the_training_mode(model: ConfidenceModel) -> None:
    model.head.train()
    first, second = model.embed(noise(2))[1], model.embed(noise(2))[1]
    assert torch.equal(first, second) and model.head.training and not first.requires_grad


def test_another_backbone_is_refused(
    saved: Path, model: ConfidenceModel, sface: FrozenBackbone, tmp_path: Path
) -> None:
    other_path = tmp_path / "other.onnx"
    onnx.save(graphs.mobilefacenet(), other_path)
    expected_hash = model.backbone.sha256
    with pytest.raises(ModelError, match=f"{expected_hash}.*got sface.*{sface.sha256}"):
        load(saved, backbone=sface)
    with pytest.raises(ModelError, match=f"{expected_hash}.*with sha256 "):
        load(saved, backbone=other_path)
    with pytest.raises(ModelError, match=f"{expected_hash}.*not the default one; pass backbone="):
        load(saved)
    with pytest.raises(ModelError, match="no such file"):
        load(saved, backbone=tmp_path / "gone.onnx")


def test_other_features_of_the_same_backbone_are_refused(saved: Path, tiny_file: Path) -> None:
    other_features = FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, features="b_add")
    with pytest.raises(ModelError, match=r"trained on bn2 .* uses b_add"):
        load(saved, backbone=other_features)


SHAPE = {"channels": 8, "height": 8, "width": 8}


def rewrite(saved: Path, **changes: object) -> Path:
    header = {**read_header(saved), **changes}
    with safe_open(saved, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, saved, {"spherecf": json.dumps(header)})
    return saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "format version 3, this spherecf reads 1 to 2. Update spherecf"),
        ({"version": 2}, r"expected centring\.mean of shape \(48,\)"),
        ({"format": "other"}, "expected the format spherecf.confidence, found other"),
        ({"head": {"kind": "linear", "config": SHAPE}}, "do not fit a linear head"),
    ],
)
def test_headers_of_other_formats_and_versions_are_refused(
    saved: Path, tiny: FrozenBackbone, changes: dict, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(rewrite(saved, **changes), backbone=tiny)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"radius": "64"}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"record": [1]}, "record"),
        ({"calibration": None}, "calibration"),
        ({"dim": True}, "dim"),
        ({"dim": 49}, "dim 49"),
        ({"backbone": {}}, r"backbone\.name"),
        ({"head": "conv"}, "head"),
        (
            {"head": {"kind": "conv", "config": {"channels": 10**9, "height": 8, "width": 8}}},
            "not readable as a network",
        ),
        (
            {"head": {"kind": "conv", "config": {"channels": 4096, "height": 8, "width": 8}}},
            "the wrong shape",
        ),
        ({"head": {"kind": "conv", "config": {"channels": "8", "height": 8, "width": 8}}}, "head"),
        ({"version": "2"}, "format version 2"),
        ({"version": True}, "format version True"),
    ],
)
def test_damaged_headers_are_refused_with_the_field(
    saved: Path, tiny: FrozenBackbone, changes: dict, named: str
) -> None:
    with pytest.raises(FileFormatError, match=f"{saved.name}.*{named}"):
        load(rewrite(saved, **changes), backbone=tiny)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, '{"radius": NaN}', "[]", "3", ""])
def test_headers_that_are_not_json_objects_are_refused(saved: Path, tiny: FrozenBackbone, text: str) -> None:
    save_file({"w": torch.ones(2)}, saved, {"spherecf": text})
    for read in (read_header, lambda path: load(path, backbone=tiny), load_confidence_head):
        with pytest.raises(FileFormatError, match=saved.name):
            read(saved)


def test_damaged_tensors_are_refused_by_name(
    model: ConfidenceModel, saved: Path, tiny: FrozenBackbone
) -> None:
    with safe_open(saved, "pt") as stored:
        header = {"spherecf": stored.metadata()["spherecf"]}
    state = model.head.state_dict()
    bias = state["final.bias"]
    for changes, named in (
        ({"final.bias": torch.full_like(bias, torch.nan)}, "NaN or infinite values in final.bias"),
        ({"final.bias": bias.to(torch.int32)}, "final.bias torch.int32"),
        ({"more": bias.clone()}, "unexpected .more"),
    ):
        save_file({**state, **changes}, saved, header)
        with pytest.raises(FileFormatError, match=named):
            load(saved, backbone=tiny)


def test_a_loaded_model_is_saved_to_an_identical_file(
    model: ConfidenceModel, tmp_path: Path, tiny: FrozenBackbone
) -> None:
    path = model.with_calibration(calibration(model)).save(tmp_path / "one.safetensors")
    resaved = load(path, backbone=tiny).save(tmp_path / "two.safetensors")
    assert resaved.read_bytes() == path.read_bytes()


def test_unknown_kinds_of_head_are_refused(saved: Path, tiny: FrozenBackbone) -> None:
    with pytest.raises(ModelError, match="unknown kind of head 'cubic'"):
        load(rewrite(saved, head={"kind": "cubic", "config": {}}), backbone=tiny)


def test_files_that_are_not_models_are_refused(saved: Path, tiny: FrozenBackbone, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    stated = {HEADER_KEY: "embeddings/1"}
    save_file({"w": torch.ones(2)}, tmp_path / "rows.safetensors", metadata=stated)
    (tmp_path / "short.safetensors").write_bytes(saved.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (
        ("foreign", "not one written by SphereCF"),
        ("rows", "expected a model of SphereCF, found embeddings/1, an embeddings file"),
        ("short", "Is it complete"),
        ("text", "not readable as a model"),
        ("absent", "no such file"),
    ):
        with pytest.raises(FileFormatError, match=message):
            load(tmp_path / f"{name}.safetensors", backbone=tiny)


def test_head_and_backbone_must_match(tiny: FrozenBackbone) -> None:
    with pytest.raises(ModelError, match=r"\(8, 7, 7\).*\(8, 8, 8\)"):
        ConfidenceModel(tiny, LinearHead(8, 7, 7))
    with pytest.raises(InputError, match="radius"):
        ConfidenceModel(tiny, ConvHead(8, 8, 8), radius=0.0)


def test_records_must_be_json(model: ConfidenceModel, tmp_path: Path) -> None:
    model.record["tensor"] = torch.ones(1)
    with pytest.raises(InputError, match="JSON-serialisable"):
        model.save(tmp_path / "h.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_full_disk_keeps_the_old_file(
    model: ConfidenceModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        model.save(saved)
    assert saved.read_bytes() == content


def calibration(model: ConfidenceModel) -> Calibration:
    scale = KappaScale.fit([10.0, 20.0, 30.0], dim=48, population="three")
    return Calibration(model.fingerprint(), "d" * 64, scale, record={"flip": "none"})


def test_calibration_is_saved_with_its_model(model: ConfidenceModel, tmp_path: Path, tiny_file: Path) -> None:
    calibrated = model.with_calibration(calibration(model))
    assert model.calibration is None and calibrated.fingerprint() == model.fingerprint()
    path = calibrated.save(tmp_path / "h.safetensors")
    assert load(path, tiny_file).calibration == calibrated.calibration
    assert read_header(path)["calibration"]["format"] == "spherecf.calibration"


def test_calibration_of_another_model_is_refused(
    model: ConfidenceModel, tmp_path: Path, tiny_file: Path
) -> None:
    calibrated = model.with_calibration(calibration(model))
    path = calibrated.save(tmp_path / "h.safetensors")
    fingerprint = model.fingerprint()
    with torch.no_grad():
        model.head.final.bias += 1
    with pytest.raises(ModelError, match=f"{fingerprint}, this is the model {model.fingerprint()}"):
        calibrated.save(tmp_path / "changed.safetensors")  # its head has been trained further
    with pytest.raises(ModelError, match="calibrate this one with"):
        model.with_calibration(calibrated.calibration)
    with safe_open(path, "pt") as stored:
        header, tensors = json.loads(stored.metadata()["spherecf"]), model.head.state_dict()
    save_file(tensors, path, {"spherecf": json.dumps(header)})
    with pytest.raises(ModelError, match=f"{path.name}: the calibration was made for"):
        load(path, tiny_file)
    header["calibration"]["version"] = 9
    save_file(tensors, path, {"spherecf": json.dumps(header)})
    with pytest.raises(FileFormatError, match="version 9, this spherecf reads 1 to 2"):
        load(path, tiny_file)
