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
    """Real faces, some of them grey, in portrait format."""
    return [orl_faces().image(index) for index in range(0, 400, 50)]


def colours(height: int = 112, width: int = 112) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def damage(kind: str, faces: list[np.ndarray], strength: float) -> float:
    """Mean absolute difference from the original in grey levels, over all faces and ten draws each."""
    differences = []
    for face_index, face in enumerate(faces):
        for draw in range(10):
            degraded = KINDS[kind](face, strength, np.random.default_rng([face_index, draw]))
            differences.append(np.abs(degraded.astype(float) - face).mean())
    return float(np.mean(differences))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_strength(kind: str, faces: list[np.ndarray]) -> None:
    values = [damage(kind, faces, strength) for strength in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == sorted(values) and values[-1] > 1.5 * values[0] + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(112, 112), (97, 41), (16, 16), (7, 9)])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_every_kind_preserves_image_size_and_type(kind: str, size: tuple[int, int], strength: float) -> None:
    image = colours(*size)
    original = image.copy()
    degraded = KINDS[kind](image, strength, np.random.default_rng(0))
    assert degraded.shape == image.shape and degraded.dtype == np.uint8
    assert np.array_equal(image, original)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - COLOURED))
def test_grey_images_stay_grey(kind: str, faces: list[np.ndarray]) -> None:
    """Kinds that neither change colours nor cover the face treat all channels alike."""
    degraded = KINDS[kind](faces[0], 0.7, np.random.default_rng(1)).astype(int)
    assert np.abs(degraded - degraded[..., :1]).max() <= 2  # JPEG rounds its colour transform


@pytest.mark.parametrize("kind", sorted(set(KINDS) - LIGHT - COVERS - MOVES))
def test_mean_brightness_is_preserved(kind: str, faces: list[np.ndarray]) -> None:
    """Kinds unrelated to lighting preserve the mean, so lighting remains a separate kind."""
    shifts = [
        KINDS[kind](face, 0.5, np.random.default_rng(n)).mean() - face.mean() for n, face in enumerate(faces)
    ]
    assert abs(np.mean(shifts)) < (6 if kind in ("salt_pepper", "halftone", "posterise") else 1.5)


def test_full_strength_resolution_leaves_seven_pixels_across_the_face() -> None:
    """At full strength, stripes of period 8 px (14 across a crop, 10 across the face) disappear."""
    stripes = np.repeat((np.arange(112) // 4 % 2 * 255).astype(np.uint8)[None, :, None], 112, 0).repeat(3, 2)
    weak, strong = (
        KINDS["resolution"](stripes, strength, np.random.default_rng(0)).std() for strength in (0.0, 1.0)
    )
    assert weak > 80 and strong < 30


@pytest.mark.parametrize("recipe", RECIPES)
def test_damage_depends_on_the_key_only_not_on_order_or_thread(recipe: str) -> None:
    image, keys = colours(), [f"person/{number}.jpg" for number in range(40)]
    degrade = Degradation(recipe, seed=7)
    sequential = {key: degrade(image, key).image for key in keys}
    for key in reversed(keys):
        assert np.array_equal(Degradation(recipe, seed=7)(image, key).image, sequential[key])
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda key: degrade(image, key).image, keys * 3))
    assert all(np.array_equal(image, sequential[key]) for key, image in zip(keys * 3, threaded))
    assert len({hashlib.sha256(image.tobytes()).digest() for image in sequential.values()}) > 35


def test_draws_match_pinned_values() -> None:
    """A signature identifies a damage permanently: changing these values requires a new recipe version."""
    draws = {
        recipe: [
            (d.kinds, round(d.severity, 6)) for d in (Degradation(recipe, 1)(colours(), k) for k in "ab")
        ]
        for recipe in RECIPES
    }
    assert draws == PINNED


def test_recipes_seeds_and_keys_have_independent_random_streams() -> None:
    image = colours()
    common = dict.fromkeys(("noise",), 1.0)
    recipe = DegradationRecipe("mine", 1, common, (1, 1), (0.0, 1.0), "one")
    recipes = [recipe, replace(recipe, salt="two"), replace(recipe, name="yours"), replace(recipe, version=2)]
    severities = [Degradation(variant, seed)(image, key).severity
                  for variant in recipes for seed in (0, 1) for key in ("a", "b")]  # fmt: skip
    assert len(set(severities)) == len(severities)


def test_training_and_test_severities_are_uncorrelated() -> None:
    """With equal seeds and keys, severities of the training and test recipes are uncorrelated."""
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
    """An image in which every pixel has a different colour."""
    y, x = np.mgrid[:112, :112]
    return np.stack([x + 50, y + 50, (x + y) // 2], 2).astype(np.uint8)


def changed_pixels(kind: str, strength: float, seed: int = 0) -> np.ndarray:
    degraded = KINDS[kind](gradient(), strength, np.random.default_rng(seed))
    return (degraded != gradient()).any(2)


def test_masks_cover_the_mouth_and_glasses_cover_the_eyes() -> None:
    eyes, mouth = (slice(46, 58), slice(30, 46)), (slice(86, 98), slice(46, 66))
    mask, glasses = changed_pixels("mask", 0.7), changed_pixels("glasses", 0.7)
    assert mask[mouth].mean() > 0.95 and not mask[eyes].any()
    assert glasses[eyes].mean() > 0.95 and not glasses[mouth].any()
    assert changed_pixels("glasses", 0.7).mean() < changed_pixels("glasses", 1.0).mean() < 0.3


def test_half_changes_one_band_at_an_edge_only() -> None:
    shares = []
    for seed in range(40):
        changed_mask = changed_pixels("half", 0.6, seed)
        rows, columns = changed_mask.all(1), changed_mask.all(0)
        shares.append(max(rows.mean(), columns.mean()))
        # one complete band and nothing else
        assert changed_mask.sum() == max(rows.sum(), columns.sum()) * 112
        assert (rows if rows.any() else columns)[[0, -1]].any()  # touching an edge
    np.testing.assert_allclose(shares, 0.4, atol=0.01)


def test_full_strength_texture_hides_the_face_completely(faces: list[np.ndarray]) -> None:
    first, second = (cv2.resize(face, (112, 112)) for face in faces[:2])
    for seed in range(20):
        first_result, second_result = (
            KINDS["texture"](face, 1.0, np.random.default_rng(seed)) for face in (first, second)
        )
        assert np.array_equal(first_result, second_result)
    assert not np.array_equal(*(KINDS["texture"](f, 0.9, np.random.default_rng(0)) for f in (first, second)))


def test_shuffling_tiles_preserves_all_pixels() -> None:
    image = colours(120, 120)  # divisible into 3, 4, 5 and 6 tiles
    for seed in range(20):
        shuffled = KINDS["shuffle"](image, 1.0, np.random.default_rng(seed))
        assert (shuffled != image).any(2).mean() > 0.9
        assert np.array_equal(*(np.sort(x.reshape(-1, 3), 0) for x in (shuffled, image)))


def test_full_strength_rotation_turns_by_180_degrees(faces: list[np.ndarray]) -> None:
    face = cv2.resize(faces[0], (112, 112))
    turned = KINDS["rotate"](face, 1.0, np.random.default_rng(0)).astype(int)
    assert np.abs(turned[1:, 1:] - face[::-1, ::-1][:-1, :-1]).mean() < 6


def test_posterised_images_have_few_levels() -> None:
    levels = [len(np.unique(KINDS["posterise"](gradient(), s, np.random.default_rng(0)))) for s in (0, 1)]
    assert levels[0] <= 10 and levels[1] == 2


@pytest.mark.parametrize("name", RECIPES)
def test_draws_respect_the_recipe(name: str) -> None:
    recipe, degrade, image = RECIPES[name], Degradation(name, 3), colours(24, 24)
    results = [degrade(image, str(number)) for number in range(300)]
    counts = {len(degraded.kinds) for degraded in results}
    assert counts == set(range(recipe.count[0], recipe.count[1] + 1))
    assert {kind for degraded in results for kind in degraded.kinds} == set(recipe.kinds)
    for degraded in results:
        assert len(set(degraded.kinds)) == len(degraded.kinds)
        assert recipe.strength[0] <= degraded.severity <= 1
        if len(degraded.kinds) == 1:
            assert degraded.severity <= recipe.strength[1]


def test_severity_correlates_with_the_damage(faces: list[np.ndarray]) -> None:
    """Over many faces, the stated severity rises with the difference from the original."""
    degrade = Degradation("train", 0)
    pairs = []
    for number in range(400):
        face = faces[number % len(faces)]
        degraded = degrade(face, str(number))
        pairs.append((degraded.severity, np.abs(degraded.image.astype(float) - face).mean()))
    severity, distance = np.array(pairs).T
    ranks = [column.argsort().argsort() for column in (severity, distance)]
    assert np.corrcoef(*ranks)[0, 1] > 0.4


def test_input_image_is_not_modified() -> None:
    image = colours()
    image.flags.writeable = False
    for key in map(str, range(30)):
        Degradation("train")(image, key)
        Degradation("unseen")(image, key)


def test_custom_recipes_have_different_signatures() -> None:
    custom = replace(RECIPES["cross"], strength=(0.9, 1.0))
    assert Degradation("cross", 2).signature == Degradation(RECIPES["cross"], 2).signature == "cross-v1/2"
    assert Degradation(custom, 2).signature not in (
        "cross-v1/2",
        Degradation(replace(custom, count=(2, 2)), 2).signature,
    )
    assert Degradation(custom, 2).signature == Degradation(replace(custom), 2).signature


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
def test_arrays_that_are_not_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="person/1: expected a uint8"):
        Degradation("train")(image, "person/1")
