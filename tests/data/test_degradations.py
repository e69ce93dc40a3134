import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from spherecf.data import RECIPES, Degradation, DegradationRecipe, orl_faces
from spherecf.data.damage import KINDS
from spherecf.errors import InputError

PINNED = {
    "train": [(("gaussian_blur", "noise", "exposure"), 0.982149), (("occlusion", "gamma"), 0.419897)],
    "cross": [(("gamma", "noise"), 0.556558), (("noise", "gaussian_blur"), 0.887427)],
    "unseen": [(("haze",), 0.250535), (("shift",), 0.62131)],
    "wide": [(("texture", "half", "rain"), 0.821268), (("glasses", "gaussian_blur"), 0.46794)],
    "beyond": [(("salt_pepper", "posterise"), 0.921535), (("ghost",), 0.150735)],
}

LIGHT = {"exposure", "gamma", "haze", "rain", "low_light", "shadow", "colour_cast", "moire"}
COVERS = {"occlusion", "mask", "glasses", "half", "texture"}
MOVES = {"shift", "turn_head", "zoom", "rotate"}
COLOURED = {"noise", "low_light", "colour_cast", "moire", *COVERS}


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


@pytest.mark.parametrize("kind", sorted(set(KINDS) - COLOURED))
def test_grey_stays_grey(kind: str, faces: list[np.ndarray]) -> None:
    """Kinds that are not about colour, and cover nothing, treat the channels alike."""
    degraded = KINDS[kind](faces[0], 0.7, np.random.default_rng(1)).astype(int)
    assert np.abs(degraded - degraded[..., :1]).max() <= 2  # JPEG rounds its colour transform


@pytest.mark.parametrize("kind", sorted(set(KINDS) - LIGHT - COVERS - MOVES))
def test_brightness_is_kept(kind: str, faces: list[np.ndarray]) -> None:
    """Kinds that are not about light leave the mean where it was, so that light stays a kind of its own."""
    off = [
        KINDS[kind](face, 0.5, np.random.default_rng(n)).mean() - face.mean() for n, face in enumerate(faces)
    ]
    assert abs(np.mean(off)) < (6 if kind in ("salt_pepper", "halftone", "posterise") else 1.5)


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
    kinds = {name: set(recipe.kinds) for name, recipe in RECIPES.items()}
    assert kinds["cross"] == kinds["train"] < kinds["wide"]
    assert not kinds["unseen"] & kinds["train"] and not kinds["beyond"] & kinds["wide"]
    assert kinds["wide"] | kinds["beyond"] == set(KINDS)


def gradient() -> np.ndarray:
    """A picture in which every pixel has another colour."""
    y, x = np.mgrid[:112, :112]
    return np.stack([x + 50, y + 50, (x + y) // 2], 2).astype(np.uint8)


def changed(kind: str, strength: float, seed: int = 0) -> np.ndarray:
    degraded = KINDS[kind](gradient(), strength, np.random.default_rng(seed))
    return (degraded != gradient()).any(2)


def test_masks_cover_the_mouth_and_glasses_the_eyes() -> None:
    eyes, mouth = (slice(46, 58), slice(30, 46)), (slice(86, 98), slice(46, 66))
    mask, glasses = changed("mask", 0.7), changed("glasses", 0.7)
    assert mask[mouth].mean() > 0.95 and not mask[eyes].any()
    assert glasses[eyes].mean() > 0.95 and not glasses[mouth].any()
    assert changed("glasses", 0.7).mean() < changed("glasses", 1.0).mean() < 0.3


def test_a_half_is_mirrored_or_gone_and_the_rest_untouched() -> None:
    shares = []
    for seed in range(40):
        lost = changed("half", 0.6, seed)
        rows, columns = lost.all(1), lost.all(0)
        shares.append(max(rows.mean(), columns.mean()))
        assert lost.sum() == max(rows.sum(), columns.sum()) * 112  # a whole band, nothing else
        assert (rows if rows.any() else columns)[[0, -1]].any()  # at an edge
    np.testing.assert_allclose(shares, 0.4, atol=0.01)


def test_a_texture_of_full_strength_leaves_nothing_of_the_face(faces: list[np.ndarray]) -> None:
    first, second = (cv2.resize(face, (112, 112)) for face in faces[:2])
    for seed in range(20):
        one, other = (KINDS["texture"](face, 1.0, np.random.default_rng(seed)) for face in (first, second))
        assert np.array_equal(one, other)
    assert not np.array_equal(*(KINDS["texture"](f, 0.9, np.random.default_rng(0)) for f in (first, second)))


def test_shuffled_tiles_are_all_still_there() -> None:
    image = colours(120, 120)  # 3, 4, 5 and 6 tiles divide it
    for seed in range(20):
        shuffled = KINDS["shuffle"](image, 1.0, np.random.default_rng(seed))
        assert (shuffled != image).any(2).mean() > 0.9
        assert np.array_equal(*(np.sort(x.reshape(-1, 3), 0) for x in (shuffled, image)))


def test_a_rotation_of_full_strength_stands_on_its_head(faces: list[np.ndarray]) -> None:
    face = cv2.resize(faces[0], (112, 112))
    turned = KINDS["rotate"](face, 1.0, np.random.default_rng(0)).astype(int)
    assert np.abs(turned[1:, 1:] - face[::-1, ::-1][:-1, :-1]).mean() < 6


def test_posterised_pictures_have_few_levels() -> None:
    levels = [len(np.unique(KINDS["posterise"](gradient(), s, np.random.default_rng(0)))) for s in (0, 1)]
    assert levels[0] <= 10 and levels[1] == 2


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
        (replace(RECIPES["train"], kinds={"snow": 1.0}), r"unknown degradation kinds \['snow'\]"),
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
