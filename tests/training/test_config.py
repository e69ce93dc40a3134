from pathlib import Path

import pytest
import torch

from spherecf.errors import FileFormatError, InputError
from spherecf.training import BackboneConfig, ConfidenceConfig, FitSettings
from spherecf.training.classifier import initial_prototypes
from spherecf.training.config import EngineSettings, ScheduleSettings, lr_factor

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "confidence.toml"


def test_the_documented_recipe_is_the_default() -> None:
    assert ConfidenceConfig.load(RECIPE) == ConfidenceConfig()


def test_every_setting_is_in_the_documented_recipe() -> None:
    import tomllib

    documented = tomllib.loads(RECIPE.read_text())
    assert {k: set(v) if isinstance(v, dict) else None for k, v in documented.items()} == {
        k: set(v) if isinstance(v, dict) else None for k, v in ConfidenceConfig().to_dict().items()
    }


def test_a_config_round_trips_as_a_dictionary() -> None:
    config = ConfidenceConfig.from_dict({"seed": 3, "optimizer": {"lr": 1}, "loss": {"variant": "released"}})
    assert ConfidenceConfig.from_dict(config.to_dict()) == config
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fit]\nepoch = 3", r"unknown setting fit\.epoch; known: epochs"),
        ("[optimiser]\nlr = 1", "unknown setting optimiser"),
        ("[fit]\nepochs = 2.5", r"fit\.epochs must be a valid integer, got 2\.5"),
        ("[fit]\nepochs = true", r"fit\.epochs must be a valid integer, got True"),
        ("fit = 3", "fit must be a table, got 3"),
        (
            "[fit]\nepochs = 0\n[optimizer]\nlr = -1.0",
            "fit.epochs must be at least 1, got 0; optimizer.lr must be greater than 0, got -1.0",
        ),
        ("[fit]\nheld_out = 1.0", r"fit\.held_out must be less than 1, got 1\.0"),
        ("[loss]\nvariant = 'better'", "loss.variant must be 'exact' or 'released', got 'better'"),
        ("[fit]\nepochs = 9999999999999999999999", r"fit\.epochs must be at most 9007199254740992, got 9999"),
        ("[optimizer]\nlr = inf", r"optimizer\.lr must be a finite number, got inf"),
        ("[schedule]\nmilestones = [nan]", r"schedule\.milestones\.0 must be a finite number, got nan"),
        ("[fit]\nepochs = 1979-05-27", r"fit\.epochs must be a valid integer, got datetime"),
        ("[fit]\nepochs = 0x" + "f" * 9000, r"fit\.epochs must be at most 9007199254740992\."),
        ("[optimizer]\nlr = '1'", r"optimizer\.lr must be a valid number, got '1'"),
        ("[engine]\ncompile = 1", r"engine\.compile must be a valid boolean, got 1"),
        ("[features]\nsource = 'cache'\nfinetune = true", "features: finetune needs source stream"),
        ("[features]\nsource = 'stream'\ncentre = 0.3", "features: centre needs a cache"),
        ("[[fit]]\nepochs = 3", "fit must be a table"),
        ("x = " + "[" * 5000, "not readable as a TOML recipe"),
        ("[fit", r"Expected .* at the end of a table"),
    ],
)
def test_invalid_recipes_are_refused_with_the_setting(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        ConfidenceConfig.load(path)


def test_options_that_json_cannot_represent_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for value in ("1979-05-27", "nan"):
        path.write_text(f"[network]\noptions = {{width = {value}}}")
        with pytest.raises(FileFormatError, match=r"network\.options"):
            BackboneConfig.load(path)
    path.write_bytes(b"\xff\xfe[fit]")
    with pytest.raises(FileFormatError, match=r"recipe\.toml"):
        BackboneConfig.load(path)


def test_a_missing_recipe_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such recipe"):
        ConfidenceConfig.load(tmp_path / "none.toml")


def test_invalid_values_from_python_are_refused() -> None:
    with pytest.raises(InputError, match=r"loss\.radius must be greater than 0"):
        ConfidenceConfig.from_dict({"loss": {"radius": 0.0}})
    with pytest.raises(InputError, match="epochs must be at least 1, got 0"):
        FitSettings(epochs=0)
    with pytest.raises(InputError, match="seed must be at least 0"):
        ConfidenceConfig().with_seed(-1)
    with pytest.raises(InputError, match="seed must be at most 10000000000000, got 100000000000000"):
        BackboneConfig().with_seed(10**14)


def test_the_largest_seed_fits_into_the_seeds_of_torch() -> None:
    largest = BackboneConfig().with_seed(10**13).seed
    assert initial_prototypes(4, 8, largest).shape == (4, 8)


def test_settings_are_hashable_and_immutable() -> None:
    config = ConfidenceConfig.from_dict({"schedule": {"milestones": [1, 2]}})
    assert config.schedule.milestones == (1.0, 2.0) and hash(config) == hash(config.with_seed(0))
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]


def test_settings_are_also_read_by_their_former_name() -> None:
    config = BackboneConfig.from_dict({"fit": {"least": 5}})
    assert config == BackboneConfig.from_dict({"fit": {"min_images": 5}})
    with pytest.raises(InputError, match=r"former name of fit\.min_images; give one of them"):
        BackboneConfig.from_dict({"fit": {"least": 5, "min_images": 5}})
    assert config.fit.epochs == BackboneConfig().fit.epochs


@pytest.mark.parametrize(
    ("capability", "precision", "products"),
    [
        ((6, 1), "float32", torch.float32),
        ((7, 0), "float16", torch.float32),  # V100: tensor cores of float16 only
        ((8, 0), "bfloat16", torch.bfloat16),
        ((12, 0), "bfloat16", torch.bfloat16),
    ],
)
def test_the_automatic_precision_is_the_fastest_that_the_card_supports(
    capability: tuple[int, int], precision: str, products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, automatic = torch.device("cuda", 0), EngineSettings()
    assert (automatic.precision_on(gpu), automatic.products_on(gpu)) == (precision, products)
    assert EngineSettings(precision="tf32").products_on(gpu) == torch.float32
    half = EngineSettings(precision="float16")
    assert half.precision_on(gpu) == "float16"
    assert half.products_on(gpu) == (torch.bfloat16 if capability >= (8, 0) else torch.float32)
    cpu = torch.device("cpu")
    assert (automatic.precision_on(cpu), half.products_on(cpu)) == ("float32", torch.float32)


def test_the_rate_falls_on_a_plateau_as_torch_lowers_it() -> None:
    losses = [5.0, 4.0, 3.9999, 4.1, 4.0, 3.0, *[3.0] * 8, 2.0, 2.5, 2.5]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
    plateau = ScheduleSettings("plateau", gamma=0.1, patience=2)
    history: list[dict[str, float]] = []
    factors = [lr_factor(plateau, 20, 0.0, history)]
    for loss in losses:
        reference.step(loss)
        history.append({"train_loss": loss})
        factors.append(lr_factor(plateau, 20, len(history), history))
        assert factors[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert (factors[0], factors[4], factors[5]) == (1.0, 1.0, pytest.approx(0.1))
    assert factors[-1] == pytest.approx(1e-3)


def test_a_plateau_of_a_negative_loss_is_one_of_the_held_out_identities() -> None:
    """A log-density may be negative: the loss must fall by 1e-4 of its magnitude."""
    plateau = ScheduleSettings("plateau", gamma=0.5, patience=1, warmup=4)
    held_out, train_loss = [-10.0, -10.0005, -10.0005, -20.0, -20.1], iter(range(5))
    history = [{"held_out_loss": loss, "train_loss": -next(train_loss)} for loss in held_out]
    assert [lr_factor(plateau, 9, 8.0, history[:n]) for n in range(6)] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert lr_factor(plateau, 9, 2.0, history) == 0.25  # halfway through the warm-up
    constant = ScheduleSettings("constant", warmup=4)
    assert [lr_factor(constant, 9, progress) for progress in (2.0, 4.0, 8.9)] == [0.5, 1.0, 1.0]
