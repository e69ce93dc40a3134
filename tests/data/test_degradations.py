import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from spherecf.data import RECIPES, Degradation, DegradationRecipe, orl_faces
from spherecf.data.degradations import KINDS
from spherecf.errors import InputError

PINNED = {
    "train": [(("gaussian_blur", "noise", "exposure"), 0.982149), (("occlusion", "gamma"), 0.419897)],
    "cross": [(("gamma", "noise"), 0.556558), (("noise", "gaussian_blur"), 0.887427)],
    "unseen": [(("haze",), 0.250535), (("shift",), 0.62131)],
}


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Real faces, some of them grey; upright and wide."""
    return [orl_faces().image(index) for index in range(0, 400, 50)]


def colours(height: int = 112, width: int = 112) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def damage(kind: str, faces: list[np.ndarray], strength: float) -> float:
    """Mean distance to the original in grey levels, over faces and ten draws."""
    total = []
    for number, face in enumerate(faces):
        for draw in range(10):
            degraded = KINDS[kind](face, strength, np.random.default_rng([number, draw]))
            total.append(np.abs(degraded.astype(float) - face).mean())
    return float(np.mean(total))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_strength(kind: str, faces: list[np.ndarray]) -> None:
    values = [damage(kind, faces, strength) for strength in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == sorted(values) and values[-1] > 1.5 * values[0] + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(112, 112), (97, 41), (16, 16), (7, 9)])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_every_kind_takes_every_size_and_keeps_it(kind: str, size: tuple[int, int], strength: float) -> None:
    image = colours(*size)
    before = image.copy()
    degraded = KINDS[kind](image, strength, np.random.default_rng(0))
    assert degraded.shape == image.shape and degraded.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"occlusion", "noise"}))
def test_grey_stays_grey(kind: str, faces: list[np.ndarray]) -> None:
    """Only occluders and sensor noise bring colour; everything else treats the channels alike."""
    degraded = KINDS[kind](faces[0], 0.7, np.random.default_rng(1)).astype(int)
    assert np.abs(degraded - degraded[..., :1]).max() <= 2  # JPEG rounds its colour transform


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"exposure", "gamma", "haze", "occlusion", "shift"}))
def test_brightness_is_kept(kind: str, faces: list[np.ndarray]) -> None:
    """Kinds that are not about light leave the mean where it was, so that light stays a kind of its own."""
    off = [
        KINDS[kind](face, 0.5, np.random.default_rng(n)).mean() - face.mean() for n, face in enumerate(faces)
    ]
    assert abs(np.mean(off)) < (6 if kind == "salt_pepper" else 1.5)


def test_resolution_goes_down_to_seven_pixels_across_the_face() -> None:
    """At full strength a stripe pattern of 8 px period (14 across a crop, 10 across the face) is gone."""
    stripes = np.repeat((np.arange(112) // 4 % 2 * 255).astype(np.uint8)[None, :, None], 112, 0).repeat(3, 2)
    weak, strong = (
        KINDS["resolution"](stripes, strength, np.random.default_rng(0)).std() for strength in (0.0, 1.0)
    )
    assert weak > 80 and strong < 30


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_key_gets_the_same_damage_in_any_order_and_thread(recipe: str) -> None:
    image, keys = colours(), [f"person/{number}.jpg" for number in range(40)]
    degrade = Degradation(recipe, seed=7)
    alone = {key: degrade(image, key).image for key in keys}
    for key in reversed(keys):
        assert np.array_equal(Degradation(recipe, seed=7)(image, key).image, alone[key])
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: degrade(image, key).image, keys * 3))
    assert all(np.array_equal(image, alone[key]) for key, image in zip(keys * 3, together))
    assert len({hashlib.sha256(image.tobytes()).digest() for image in alone.values()}) > 35


def test_draws_are_pinned() -> None:
    """A signature names a damage for ever: whoever changes this must raise the recipe's version."""
    drawn = {
        recipe: [
            (d.kinds, round(d.severity, 6)) for d in (Degradation(recipe, 1)(colours(), k) for k in "ab")
        ]
        for recipe in RECIPES
    }
    assert drawn == PINNED


def test_recipes_seeds_and_keys_have_streams_of_their_own() -> None:
    image = colours()
    common = dict.fromkeys(("noise",), 1.0)
    recipe = DegradationRecipe("mine", 1, common, (1, 1), (0.0, 1.0), "one")
    others = [recipe, replace(recipe, salt="two"), replace(recipe, name="yours"), replace(recipe, version=2)]
    severities = [Degradation(other, seed)(image, key).severity
                  for other in others for seed in (0, 1) for key in ("a", "b")]  # fmt: skip
    assert len(set(severities)) == len(severities)


def test_training_and_test_draws_are_unrelated() -> None:
    """Same seed, same keys: no correlation of severities between the training and the test recipe."""
    image, keys = colours(24, 24), [str(number) for number in range(400)]
    train, cross = (
        [Degradation(name, 0)(image, key).severity for key in keys] for name in ("train", "cross")
    )
    assert abs(np.corrcoef(train, cross)[0, 1]) < 0.15


def test_unseen_kinds_are_never_trained_on() -> None:
    assert not set(RECIPES["unseen"].kinds) & set(RECIPES["train"].kinds)
    assert set(RECIPES["cross"].kinds) == set(RECIPES["train"].kinds)
    assert set(RECIPES["train"].kinds) | set(RECIPES["unseen"].kinds) == set(KINDS)


@pytest.mark.parametrize("name", RECIPES)
def test_draws_keep_to_the_recipe(name: str) -> None:
    recipe, degrade, image = RECIPES[name], Degradation(name, 3), colours(24, 24)
    drawn = [degrade(image, str(number)) for number in range(300)]
    counts = {len(degraded.kinds) for degraded in drawn}
    assert counts == set(range(recipe.count[0], recipe.count[1] + 1))
    assert {kind for degraded in drawn for kind in degraded.kinds} == set(recipe.kinds)
    for degraded in drawn:
        assert len(set(degraded.kinds)) == len(degraded.kinds)
        assert recipe.strength[0] <= degraded.severity <= 1
        if len(degraded.kinds) == 1:
            assert degraded.severity <= recipe.strength[1]


def test_severity_tells_how_bad_it_is(faces: list[np.ndarray]) -> None:
    """Over many faces the stated severity goes with the distance to the original."""
    degrade = Degradation("train", 0)
    pairs = []
    for number in range(400):
        face = faces[number % len(faces)]
        degraded = degrade(face, str(number))
        pairs.append((degraded.severity, np.abs(degraded.image.astype(float) - face).mean()))
    severity, distance = np.array(pairs).T
    ranks = [column.argsort().argsort() for column in (severity, distance)]
    assert np.corrcoef(*ranks)[0, 1] > 0.4


def test_input_is_left_alone() -> None:
    image = colours()
    image.flags.writeable = False
    for key in map(str, range(30)):
        Degradation("train")(image, key)
        Degradation("unseen")(image, key)


def test_the_signature_tells_a_recipe_of_ones_own_apart() -> None:
    own = replace(RECIPES["cross"], strength=(0.9, 1.0))
    assert Degradation("cross", 2).signature == Degradation(RECIPES["cross"], 2).signature == "cross-v1/2"
    assert Degradation(own, 2).signature not in (
        "cross-v1/2",
        Degradation(replace(own, count=(2, 2)), 2).signature,
    )
    assert Degradation(own, 2).signature == Degradation(replace(own), 2).signature


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("nonsense", "unknown degradation recipe 'nonsense'; known: train, cross, unseen"),
        (replace(RECIPES["train"], kinds={"rain": 1.0}), r"unknown degradation kinds \['rain'\]"),
        (replace(RECIPES["train"], kinds={}), "count"),
        (replace(RECIPES["train"], count=(0, 2)), "count"),
        (replace(RECIPES["train"], count=(3, 2)), "count"),
        (replace(RECIPES["train"], count=(1, 99)), "count"),
        (replace(RECIPES["train"], strength=(0.5, 1.5)), "strength"),
        (replace(RECIPES["train"], strength=(0.5, 0.4)), "strength"),
        (replace(RECIPES["train"], kinds={"noise": 0.0, "jpeg": 0.0}, count=(1, 1)), "weights"),
        (replace(RECIPES["train"], kinds={"noise": -1.0, "jpeg": 2.0}, count=(1, 1)), "weights"),
        (replace(RECIPES["train"], kinds={"noise": 1.0, "jpeg": 0.0}, count=(1, 2)), "weights"),
    ],
)
def test_bad_recipes_are_refused(recipe: str | DegradationRecipe, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Degradation(recipe)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)]
)
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="person/1: expected uint8"):
        Degradation("train")(image, "person/1")
