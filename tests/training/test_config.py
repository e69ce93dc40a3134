from pathlib import Path

import pytest

from spherecf.errors import FileFormatError, InputError
from spherecf.training import BackboneConfig, ConfidenceConfig

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "confidence.toml"


def test_the_documented_recipe_is_the_default() -> None:
    assert ConfidenceConfig.load(RECIPE) == ConfidenceConfig()


def test_every_setting_is_in_the_documented_recipe() -> None:
    import tomllib

    given = tomllib.loads(RECIPE.read_text())
    assert {k: set(v) if isinstance(v, dict) else None for k, v in given.items()} == {
        k: set(v) if isinstance(v, dict) else None for k, v in ConfidenceConfig().to_dict().items()
    }


def test_a_dictionary_and_back() -> None:
    config = ConfidenceConfig.from_dict({"seed": 3, "optimizer": {"lr": 1}, "loss": {"variant": "released"}})
    assert ConfidenceConfig.from_dict(config.to_dict()) == config
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fit]\nepoch = 3", r"unknown setting fit\.epoch; known: epochs"),
        ("[optimiser]\nlr = 1", "unknown setting optimiser"),
        ("[fit]\nepochs = 2.5", r"fit\.epochs: expected int, got 2\.5"),
        ("[fit]\nepochs = true", r"fit\.epochs: expected int, got True"),
        ("fit = 3", "fit: expected a table, got 3"),
        (
            "[fit]\nepochs = 0\n[optimizer]\nlr = -1.0",
            "fit.epochs must be at least 1, got 0; optimizer.lr must be positive",
        ),
        ("[fit]\nheld_out = 1.0", r"fit.held_out must lie in \[0, 1\)"),
        ("[loss]\nvariant = 'better'", "exact or released, got 'better'"),
        ("[fit]\nepochs = 9999999999999999999999", r"fit\.epochs: expected at most"),
        ("[optimizer]\nlr = inf", r"optimizer\.lr: expected float, got inf"),
        ("[schedule]\nmilestones = [nan]", r"schedule\.milestones: expected float, got nan"),
        ("[fit]\nepochs = 1979-05-27", r"fit\.epochs: expected int"),
        ("[[fit]]\nepochs = 3", "fit: expected a table"),
        ("x = " + "[" * 5000, "not readable as a TOML recipe"),
        ("[fit", r"Expected .* at the end of a table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        ConfidenceConfig.load(path)


def test_options_can_be_written_into_the_record(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for value in ("1979-05-27", "nan"):
        path.write_text(f"[network]\noptions = {{width = {value}}}")
        with pytest.raises(FileFormatError, match=r"network\.options"):
            BackboneConfig.load(path)
    path.write_bytes(b"\xff\xfe[fit]")
    with pytest.raises(FileFormatError, match=r"recipe\.toml"):
        BackboneConfig.load(path)


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such recipe"):
        ConfidenceConfig.load(tmp_path / "none.toml")


def test_wrong_values_from_python() -> None:
    with pytest.raises(InputError, match=r"loss\.radius must be positive"):
        ConfidenceConfig.from_dict({"loss": {"radius": 0.0}})
