"""TOML recipes of both stages: an accepted one is equal after conversion to a dictionary and back."""

from pathlib import Path

from tests.fuzz.harness import fuzz, write

from spherecf.training import BackboneConfig, ConfidenceConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TOKENS = [
    b"[fit]",
    b"[[fit]]",
    b"fit.x = 1",
    b"1979-05-27T07:32:00Z",
    b"inf",
    b"nan",
    b"{a = {b = 1}}",
    b"'''",
]


@fuzz(
    {"confidence": (RECIPES / "confidence.toml").read_bytes(), "empty": b""},
    name="head recipes",
    tokens=TOKENS,
)
def test_confidence(data: bytes) -> None:
    config = ConfidenceConfig.load(write("recipe.toml", data))
    assert ConfidenceConfig.from_dict(config.to_dict()) == config


@fuzz(
    {path.name: path.read_bytes() for path in RECIPES.glob("backbone*.toml")},
    name="backbone recipes",
    tokens=TOKENS,
)
def test_backbone(data: bytes) -> None:
    config = BackboneConfig.load(write("recipe.toml", data))
    assert BackboneConfig.from_dict(config.to_dict()) == config
