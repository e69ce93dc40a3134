import json

import numpy as np
import pytest
import torch

from spherecf.errors import InputError, ModelError
from spherecf.models import PRESETS, Preprocessing
from spherecf.models.preprocessing import KNOWN_MODELS, PREPROCESSING_KEY, resolve_preprocessing


def one_pixel(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((1, 112, 112, 3), (red, green, blue), np.uint8)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("insightface", (127.5 / 127.5, -1.0, (10 - 127.5) / 127.5)),
        ("scf", (127.5 / 128, -127.5 / 128, (10 - 127.5) / 128)),
        ("adaface", ((10 - 127.5) / 127.5, -1.0, 1.0)),
        ("magface", (10 / 255, 0.0, 1.0)),
        ("raw", (255.0, 0.0, 10.0)),
    ],
)
def test_presets_match_the_published_conventions(preset: str, expected: tuple[float, ...]) -> None:
    x = Preprocessing.preset(preset)(one_pixel(255, 0, 10))
    assert x.shape == (1, 3, 112, 112) and x.dtype == torch.float32
    np.testing.assert_allclose(x[0, :, 5, 7], expected, rtol=1e-6)


def test_mean_per_channel_follows_the_colour_order() -> None:
    x = Preprocessing("bgr", (1.0, 2.0, 3.0), (1.0, 2.0, 4.0))(one_pixel(11, 8, 5))
    assert x[0, :, 0, 0].tolist() == [4.0, 3.0, 2.0]


def test_preprocessing_round_trips_through_json() -> None:
    for preprocessing in (*PRESETS.values(), Preprocessing("bgr", (1.0, 2.0, 3.0), 5.0, (224, 200))):
        assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    "fields", [{"color": "hsv"}, {"std": 0.0}, {"mean": float("nan")}, {"size": (0, 112)}]
)
def test_invalid_fields_are_refused(fields: dict) -> None:
    with pytest.raises(InputError, match=f"Preprocessing.{next(iter(fields))}"):
        Preprocessing(**fields)


def test_preprocessing_is_resolved_by_argument_then_hash_then_metadata() -> None:
    (sface,) = (h for h, m in KNOWN_MODELS.items() if m.name == "sface")
    metadata = {PREPROCESSING_KEY: json.dumps(PRESETS["magface"].to_dict())}
    assert resolve_preprocessing("adaface", sface, metadata) == PRESETS["adaface"]
    assert resolve_preprocessing(None, sface, metadata) == PRESETS["raw"]
    assert resolve_preprocessing(None, "0" * 64, metadata) == PRESETS["magface"]
    with pytest.raises(ModelError, match=r"pass preprocessing=.*insightface.*scf.*adaface.*magface.*raw"):
        resolve_preprocessing(None, "0" * 64, {})
    with pytest.raises(ModelError, match="metadata"):
        resolve_preprocessing(None, "0" * 64, {PREPROCESSING_KEY: "{}"})


def test_unknown_presets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="insightface"):
        Preprocessing.preset("imagenet")


@pytest.mark.parametrize(
    "text",
    [
        "[", "[" * 5000, "[]", "null", '{"color":"rgb","mean":NaN,"std":1,"size":[16,16]}',
        '{"color":"rgb","mean":"a","std":1,"size":[16,16]}', '{"color":"rgb","mean":0,"std":1,"size":16}',
        '{"color":"rgb","mean":0,"std":0,"size":[16,16]}', '{"color":3,"mean":0,"std":1,"size":[16,16]}',
        '{"color":"rgb","mean":0,"std":1,"size":[1000000,1000000]}',
    ],
)  # fmt: skip
def test_invalid_metadata_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="metadata"):
        resolve_preprocessing(None, "0" * 64, {PREPROCESSING_KEY: text})


@pytest.mark.parametrize("images", [[np.zeros((112, 112, 3), np.uint8)], "face.jpg", None])
def test_only_arrays_and_tensors_are_images(images: object) -> None:
    with pytest.raises(InputError, match=r"expected uint8 RGB faces .* as one array or tensor"):
        Preprocessing().check(images)
