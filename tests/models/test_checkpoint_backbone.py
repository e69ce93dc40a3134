import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.conformance.backbones import BackboneConformance
from tests.models.conftest import noise
from tests.reference.original_networks import original
from torch import Tensor, nn

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models import (
    NETWORKS,
    PRESETS,
    FrozenBackbone,
    Preprocessing,
    load_backbone,
    make_backbone,
    save_backbone,
)
from spherecf.models.saved import HEADER_KEY
from spherecf.models.transformer import TRANSFORMERS, VisionTransformer

Table = dict[str, Tensor]


def small(name: str, dim: int = 32) -> tuple[Table, object]:
    torch.manual_seed(0)
    return original(name, width=0.125, dim=dim, side=2)


def with_prefix(prefix: str, table: Table) -> Table:
    return {f"{prefix}{key}": tensor for key, tensor in table.items()}


def lightning(table: Table) -> dict[str, object]:
    state = {**with_prefix("model.", table), "head.kernel": torch.randn(32, 5), "head.t": torch.zeros(1)}
    return {"epoch": 1, "state_dict": state}


# For each publisher: the network, how its state dictionary is wrapped, and the preprocessing this implies.
LAYOUTS = {
    "SCF reference": ("ir-50", lambda t: t, "scf"),
    "SCF reference, fine-tuned": (
        "ir-18",
        lambda t: {
            "backbone_state_dict": t,
            "uncer_net_state_dict": {"_log_kappa.0.weight": torch.ones(2, 2)},
        },
        "scf",
    ),
    "arcface_torch": ("r18", lambda t: t, "insightface"),
    "arcface_torch, all states": (
        "r18",
        lambda t: {"state_dict_backbone": t, "state_dict_softmax_fc": {"weight": torch.ones(5, 32)}},
        "insightface",
    ),
    "arcface_torch, mbf": ("mbf", lambda t: t, "insightface"),
    "MagFace": ("r18", lambda t: {"state_dict": with_prefix("features.module.", t)}, "magface"),
    "MagFace, whole model in parallel": (
        "r18",
        lambda t: {
            "state_dict": {**with_prefix("module.features.", t), "module.fc.weight": torch.randn(32, 5)}
        },
        "magface",
    ),
    "MagFace, prefixes stripped": (
        "r18",
        lambda t: {**with_prefix("features.", t), "fc.weight": torch.randn(32, 5)},
        "magface",
    ),
    "MagFace, twice in parallel": ("r18", lambda t: with_prefix("module.features.module.", t), "magface"),
    "another trainer's features": ("tface-ir-18", lambda t: with_prefix("features.", t), None),
    "CR-FIQA": (
        "r18",
        lambda t: {**t, "qs.weight": torch.ones(1, 32), "qs.bias": torch.zeros(1)},
        "insightface",
    ),
    "torch.compile": ("r18", lambda t: with_prefix("_orig_mod.", t), "insightface"),
    "torch.compile of DDP": ("r18", lambda t: with_prefix("_orig_mod.module.", t), "insightface"),
    "DDP of torch.compile": ("ir-50", lambda t: {"model": with_prefix("module._orig_mod.", t)}, "scf"),
    "FSDP": (
        "r18",
        lambda t: {
            k.replace("layer1.", "layer1._fsdp_wrapped_module.").replace("conv1.", "_orig_mod.conv1."): v
            for k, v in with_prefix("_fsdp_wrapped_module.", t).items()
        },
        "insightface",
    ),
    "MagFace, torch.compile": ("r18", lambda t: with_prefix("_orig_mod.features.module.", t), "magface"),
    "AdaFace": ("tface-ir-18", lightning, "adaface"),
    "CVLface": ("tface-ir-18", lambda t: with_prefix("net.", t), None),
    "TFace": ("tface-ir-18", lambda t: t, None),
    "DataParallel": ("tface-ir-se-50", lambda t: with_prefix("module.", t), None),
    "arcface_torch, ViT": ("vit_t", lambda t: t, "insightface"),
    "arcface_torch, ViT, all states": (
        "vit_b",
        lambda t: {"state_dict_backbone": with_prefix("module.", t)},
        "insightface",
    ),
    "TransFace": ("transface_s", lambda t: t, "insightface"),
    "CVLface, ViT": ("cvlface_vit_b", lambda t: with_prefix("net.", t), "insightface"),
    "CVLface, ViT, without masking": (
        "cvlface_vit_s",
        lambda t: {"model": with_prefix("net.", {k: v for k, v in t.items() if k != "mask_token"})},
        "insightface",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reproduces_the_original_outputs(tmp_path: Path, layout: str) -> None:
    name, wrap, preset = LAYOUTS[layout]
    size = 32 if name not in TRANSFORMERS else 2 * (8 if name.startswith("cvl") else 9)
    table, forward = small(name)
    torch.save(wrap(table), tmp_path / "last.ckpt")
    network = load_backbone(tmp_path / "last.ckpt", name if name in TRANSFORMERS else "")
    assert (network.name, network.dim, network.size, network.training) == (name, 32, size, False)
    preprocessing = network.preprocessing
    assert (
        (preprocessing is None)
        if preset is None
        else preprocessing.to_dict() == {**PRESETS[preset].to_dict(), "size": [size, size]}
    )
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        for output, reference in zip(network(images), forward(images)):
            torch.testing.assert_close(output, reference, rtol=1e-3, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in TRANSFORMERS])
def test_every_network_is_recognised(tmp_path: Path, name: str) -> None:
    table = make_backbone(name, dim=24, size=48, width=0.125).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in table.items()}, tmp_path / "b.safetensors")
    network = load_backbone(tmp_path / "b.safetensors")
    assert network.name == name
    assert (network.dim, network.size, network.width) == (24, 48, 0.125)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, table[key])


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if "_dp" not in name])
def test_every_transformer_is_recognised(name: str) -> None:
    """At full size, where shapes distinguish T from S; the size is 112 although patches cover 108 pixels."""
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in make_backbone(name, dim=24).state_dict().items()}
    architecture, options = VisionTransformer.measure(shapes)
    assert architecture == TRANSFORMERS[name] and options == {"dim": 24, "size": 112, "width": 1.0}


def test_a_narrow_transformer_is_read_as_the_smallest_of_its_depth(tmp_path: Path) -> None:
    trained = make_backbone("vit_s", dim=24, size=20, width=0.125).eval()
    torch.save(trained.state_dict(), tmp_path / "b.pt")
    network = load_backbone(tmp_path / "b.pt")
    assert (network.name, network.width, network.size) == ("vit_t", 0.25, 18)
    images = torch.randn(2, 3, 20, 20)
    assert torch.equal(network(images)[0], trained(images)[0])


def test_unsupported_transformers_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "b.pt"
    table, _ = small("cvlface_vit_b")

    def refused(content: Table, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(ModelError, match=match):
            load_backbone(path)

    refused(
        {**table, "pos_embed": table["pos_embed"][:, :-1]}, r"the nearest is vit_b: .*pos_embed \(1, 3, 64\)"
    )
    key_points = {**table, "blocks.0.attn.rpe_k.lookup_table_weight": torch.ones(3, 4)}
    refused(with_prefix("net.", key_points), "relative position encodings .*KP-RPE.* ONNX")
    biased = {**table, "blocks.0.attn.qkv.bias": torch.ones(192)}
    refused(biased, r"not the network cvlface_vit_b .*1 keys unexpected \(blocks.0.attn.qkv.bias\)")
    refused({k: t for k, t in table.items() if k != "pos_embed"}, "not a supported network; the nearest is")
    shallow = {k: t for k, t in table.items() if not k.startswith("blocks.23.")}
    refused(shallow, r"VisionTransformer with depth=23, patch=8, ratio=3, .*, which is none of")


def test_fine_tuning_a_transformer_gives_every_parameter_a_gradient(tmp_path: Path) -> None:
    torch.save(make_backbone("vit_t", dim=24, size=18, width=0.125).state_dict(), tmp_path / "b.pt")
    backbone = FrozenBackbone.from_checkpoint(tmp_path / "b.pt")
    assert backbone.feature_shape == (32, 2, 2) and backbone.preprocessing.size == (18, 18)
    network = backbone.trainable().eval()  # as in stage 2
    network(torch.randn(2, 3, 18, 18))[0].sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_quality_layer_of_crfiqa_is_reported(tmp_path: Path) -> None:
    table, _ = small("r18")
    torch.save({**table, "qs.weight": torch.ones(1, 32), "qs.bias": torch.zeros(1)}, tmp_path / "b.pth")
    pixels = Preprocessing(size=(32, 32))
    assert "CR-FIQA" in " ".join(FrozenBackbone.from_checkpoint(tmp_path / "b.pth", pixels).repairs)


def test_a_torchscript_network_is_read_without_running_its_code(tmp_path: Path) -> None:
    network = make_backbone("mbf", dim=8, size=32, width=0.125).eval()
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(tmp_path / "traced.pt")
    reloaded = load_backbone(tmp_path / "traced.pt")
    assert reloaded.name == "mbf" and all(
        torch.equal(a, b) for a, b in zip(reloaded.state_dict().values(), network.state_dict().values())
    )


def test_nan_and_integer_weights_are_refused(tmp_path: Path) -> None:
    table, _ = small("r18")
    table["fc.weight"] = torch.full_like(table["fc.weight"], torch.nan)
    torch.save(table, tmp_path / "b.pth")
    with pytest.raises(FileFormatError, match=r"fc\.weight"):
        load_backbone(tmp_path / "b.pth")
    torch.save(
        {**table, "fc.weight": torch.zeros(table["fc.weight"].shape, dtype=torch.int64)}, tmp_path / "b.pth"
    )
    with pytest.raises(ModelError, match=r"fc\.weight torch\.int64"):
        load_backbone(tmp_path / "b.pth")


def test_adafaces_direction_and_norm_are_the_raw_embedding(tmp_path: Path) -> None:
    table, forward = small("tface-ir-18")
    torch.save(lightning(table), tmp_path / "adaface.ckpt")
    backbone = FrozenBackbone.from_checkpoint(tmp_path / "adaface.ckpt")
    images = noise(3, 32)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).flip(1).float() - 127.5) / 127.5
    raw = forward(pixels)[0]
    norm = torch.norm(raw, 2, 1, True)
    output = backbone(images)
    torch.testing.assert_close(output.mu, raw / norm, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.norm, norm[:, 0], rtol=1e-3, atol=1e-3)


def test_old_and_half_precision_files_are_read(tmp_path: Path) -> None:
    """Files from before torch 0.4.1 have no batch counts; some files are in half precision."""
    table, _ = small("r18")
    without_counts = {k: t for k, t in table.items() if not k.endswith("num_batches_tracked")}
    torch.save({k: t.half() for k, t in without_counts.items()}, tmp_path / "half.pth")
    network = load_backbone(tmp_path / "half.pth")
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    assert torch.equal(network.fc.weight, table["fc.weight"].half().float())
    assert network.train()(torch.randn(2, 3, 32, 32))[0].shape == (2, 32)  # can be trained further


def test_other_architectures_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    table, _ = small("r18")

    def refused(content: dict[str, object], match: str, network: str = "") -> None:
        torch.save(content, path)
        with pytest.raises(ModelError, match=match):
            load_backbone(path, network)

    incomplete = {k: t for k, t in table.items() if not k.startswith("layer2.1.bn2")}
    refused(incomplete, r"not the network r18 .*4 keys missing \(layer2.1.bn2.weight, .*\.\.\.\)$")
    refused({**table, "layer5.x": torch.ones(1)}, r"1 keys unexpected \(layer5.x\)$")
    reshaped = {**table, "layer1.0.conv2.weight": torch.ones(8, 8, 1, 1)}
    refused(
        reshaped,
        r"1 keys of the wrong shape \(layer1.0.conv2.weight \(8, 8, 1, 1\) instead of \(8, 8, 3, 3\)\)",
    )
    refused(table, r"not the network r34 .*keys missing \(layer1.2.bn1.weight", "r34")
    refused({k: t for k, t in table.items() if "fc." not in k}, "nearest is r18: .*keys missing .*fc.weight")
    extra = {k.replace("layer1.1.", "layer1.2."): t for k, t in table.items() if k.startswith("layer1.1.")}
    refused({**table, **extra}, r"IResNet with depths=\(3, 2, 2, 2\), se=False, which is none of r18")
    refused({"a": table, "b": table}, "contains 2 networks, under a., b.; save the one you mean alone")
    refused({"epoch": 3}, "no tensors in it")
    vision = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)]).state_dict()
    refused(dict(vision), r"not a supported network: \d+ tensors \(0.self_attn.* known networks are r18")
    resnet = {k.replace("prelu", "relu"): t for k, t in table.items()}
    refused(
        {"state_dict": with_prefix("module.", resnet)},
        r"nearest is r18: .*missing \(prelu.weight, .*unexpected .*relu",
    )


def test_backbones_saved_by_spherecf_are_read(tmp_path: Path) -> None:
    trained = make_backbone("mbf", dim=16, size=32, width=0.125).eval()
    pixels = Preprocessing("bgr", 100.0, 50.0, (32, 32))
    path = save_backbone(tmp_path / "b.safetensors", trained, pixels)
    network = load_backbone(path)
    assert network.name == "mbf" and network.preprocessing == pixels
    backbone = FrozenBackbone.from_checkpoint(path)
    assert torch.equal(backbone(noise(2, 32)).embedding, trained(pixels(noise(2, 32)))[0])
    with pytest.raises(ModelError, match="expected a network r18, but it contains a mbf"):
        load_backbone(path, "r18")
    with safe_open(path, "pt") as stored:
        header = json.loads(stored.metadata()[HEADER_KEY])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for changes, reason in (
        ({"depth": 3}, "depth"), ({"dim": 24}, "not the network mbf"), ({"width": -1.0}, "width"),
    ):  # fmt: skip
        network = {"name": "mbf", "config": {**header["network"]["config"], **changes}}
        text = json.dumps({**header, "network": network})
        save_file(tensors, path, metadata={HEADER_KEY: text})
        with pytest.raises(FileFormatError, match=rf"its backbone cannot be rebuilt: .*{reason}"):
            load_backbone(path)


@pytest.fixture
def tface_file(tmp_path: Path) -> Path:
    path = tmp_path / "tface.pth"
    torch.save(small("tface-ir-18")[0], path)
    return path


class TestCheckpoint(BackboneConformance):
    @pytest.fixture
    def backbone(self, tface_file: Path) -> FrozenBackbone:
        backbone = FrozenBackbone.from_checkpoint(tface_file, "insightface")
        assert (backbone.name, backbone.engine, backbone.dim) == ("tface-ir-18", "torch", 32)
        return backbone


def test_preprocessing_size_and_engine_are_never_guessed(tface_file: Path) -> None:
    with pytest.raises(
        ModelError, match=r"pass preprocessing= .*adaface .*Its keys are those of tface-ir-18, which several"
    ):
        FrozenBackbone.from_checkpoint(tface_file)
    with pytest.raises(ModelError, match=r"takes images of \(32, 32\), but preprocessing gives \(112, 112\)"):
        FrozenBackbone.from_checkpoint(tface_file, PRESETS["scf"])
    with pytest.raises(InputError, match="engine 'torch' or 'compiled', got 'onnxruntime'"):
        FrozenBackbone.from_checkpoint(tface_file, "scf", engine="onnxruntime")


def test_the_identity_of_a_backbone_is_its_file_hash(tface_file: Path) -> None:
    import hashlib

    backbone = FrozenBackbone.from_checkpoint(tface_file, "adaface", dtype="bfloat16")
    assert backbone.sha256 == hashlib.sha256(tface_file.read_bytes()).hexdigest()
    assert backbone.engine == "torch-bfloat16"


def test_loading_a_checkpoint_does_not_import_the_torch_compiler(tmp_path: Path) -> None:
    for name in ("r18", "vit_t"):
        torch.save(make_backbone(name, dim=4, width=0.125).state_dict(), tmp_path / f"{name}.pth")
    code = "import sys, spherecf.models as m; [m.load_backbone(p) for p in sys.argv[1:]]; "
    code += "sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, *map(str, tmp_path.glob("*.pth"))], check=True)
