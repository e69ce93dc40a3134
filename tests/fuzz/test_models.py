"""Saved models, backbones and prototypes: an accepted one can be used, and is saved to an equal file."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors import safe_open
from tests.fuzz.harness import fuzz, write
from tests.tiny import TINY, tiny_file

from spherecf.calibration import Calibration, KappaScale
from spherecf.models import (
    ConfidenceModel,
    FrozenBackbone,
    Preprocessing,
    load,
    load_backbone,
    load_confidence_head,
    load_prototypes,
    make_backbone,
    make_head,
    prototype_identities,
    save_backbone,
    save_prototypes,
)
from spherecf.models.saved import load_trained

FOLDER = Path(mkdtemp(prefix="spherecf-fuzz-"))
TOKENS = [b'"channels"', b"1000000000", b'"light"', b'"linear"', b'"cubic"', b'"F16"', b'"I64"', b"-0.0"]


@cache
def backbone() -> FrozenBackbone:
    return FrozenBackbone.from_onnx(tiny_file(FOLDER), preprocessing=TINY)


@cache
def model(kind: str, calibrated: bool = False) -> Path:
    channels, height, width = backbone().feature_shape
    head = make_head(kind, channels=channels, height=height, width=width)
    confidence_model = ConfidenceModel(backbone(), head, record={"epochs": 3, "loss": [1.5, None]})
    if calibrated:
        scale = KappaScale.fit([10.0, 20.0], dim=48, population="two")
        calibration = Calibration(confidence_model.fingerprint(), "d", scale)
        confidence_model = confidence_model.with_calibration(calibration)
    return confidence_model.save(FOLDER / f"{kind}-{calibrated}.safetensors")


def models() -> dict[str, bytes]:
    paths = {"light": model("light"), "calibrated": model("light", True), "conv": model("conv")}
    return {name: path.read_bytes() for name, path in paths.items()}


def trained() -> dict[str, bytes]:
    widths = {"mbf": 0.125, "vit_t": 0.03125}
    for name, width in widths.items():
        network = make_backbone(name, dim=4, size=16, width=width)
        save_backbone(FOLDER / f"{name}.safetensors", network, Preprocessing(size=(16, 16)), {"epochs": 1})
    return {name: (FOLDER / f"{name}.safetensors").read_bytes() for name in widths}


def prototypes() -> dict[str, bytes]:
    path = save_prototypes(FOLDER / "p.safetensors", torch.eye(3), ["Ann", "Bo", "Cy"])
    return {"prototypes": path.read_bytes()}


def use_model(path: Path) -> None:
    opened = load(path, backbone())
    opened.embed(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    resaved = opened.save(FOLDER / "again.safetensors")
    assert load(resaved, backbone()).fingerprint() == opened.fingerprint()
    assert load(resaved, backbone()).save(FOLDER / "third.safetensors").read_bytes() == resaved.read_bytes()
    assert load_confidence_head(path).feature_shape == opened.head.feature_shape


def use_backbone(path: Path) -> None:
    network = load_backbone(path)
    with torch.no_grad():
        network(torch.zeros(1, 3, network.size, network.size))
    if path.name.startswith("own"):
        resaved = save_backbone(FOLDER / "again.safetensors", *load_trained(path))
        assert (
            save_backbone(FOLDER / "third.safetensors", *load_trained(resaved)).read_bytes()
            == resaved.read_bytes()
        )


def use_prototypes(path: Path) -> None:
    rows = load_prototypes(path)
    assert torch.isfinite(rows).all()
    names = prototype_identities(path)
    if names is not None:
        save_prototypes(FOLDER / "again.safetensors", rows, names)


@fuzz(models, name="saved models", tokens=TOKENS, share=0.25)
def test_models(data: bytes) -> None:
    use_model(write("model.safetensors", data))


@fuzz(trained, name="saved backbones", tokens=TOKENS, share=0.25)
def test_backbones(data: bytes) -> None:
    use_backbone(write("own.safetensors", data))


@fuzz(prototypes, name="saved prototypes", tokens=TOKENS, share=0.25)
def test_prototypes(data: bytes) -> None:
    use_prototypes(write("prototypes.safetensors", data))


def header_of(data: bytes) -> bytes:
    with safe_open(write("header.safetensors", data), "pt") as file:
        return str(file.metadata()["spherecf"]).encode()


@cache
def _without_header(file: bytes) -> tuple[str, bytes]:
    """The JSON table of a file's tensors without its first brace, and the bytes of the tensors."""
    start = 8 + int.from_bytes(file[:8], "little")
    table = json.loads(file[8:start])
    del table["__metadata__"]
    return json.dumps(table)[1:], file[start:]


def with_header(file: bytes, header: bytes) -> bytes:
    """The tensors of a file under an arbitrary header."""
    table, tensors = _without_header(file)
    metadata = json.dumps({"__metadata__": {"spherecf": header.decode(errors="replace")}})
    text = f"{metadata[:-1]}, {table}".encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


@fuzz(
    lambda: {k: header_of(v) for k, v in models().items() if k != "conv"},
    name="model headers",
    tokens=TOKENS,
    share=0.25,
)
def test_headers_of_models(data: bytes) -> None:
    use_model(write("model.safetensors", with_header(seeds_once()["model"], data)))


@fuzz(
    lambda: {k: header_of(v) for k, v in trained().items()},
    name="backbone headers",
    tokens=TOKENS,
    share=0.25,
)
def test_headers_of_backbones(data: bytes) -> None:
    network = "vit_t" if b"vit_t" in data else "mbf"
    use_backbone(write("own.safetensors", with_header(seeds_once()[network], data)))


@cache
def seeds_once() -> dict[str, bytes]:
    return {"model": model("light", True).read_bytes(), **trained()}
