"""Leaving out one kind of damage, and images that are not faces, on a tiny recogniser."""

from pathlib import Path

import numpy as np
import pytest
from studies.damage import (
    ALL,
    FEW,
    PERFECT,
    WIDE,
    WITHOUT,
    Heads,
    leave_one_out,
    non_faces,
    reach,
    sample_calibration_people,
    sample_people,
    study_damage,
    summarise_kappas,
)
from studies.shipped import halves
from tests.studies.conftest import make_people
from tests.tiny import picture

from spherecf.data import open_source
from spherecf.data.damage import KINDS
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone
from spherecf.training import ConfidenceConfig
from studies import damage

CONFIG = ConfidenceConfig.from_dict({"fit": {"epochs": 1, "batch_size": 64, "held_out": 0.3}})


def faces(count: int) -> list[np.ndarray]:
    return [
        np.random.default_rng(number).integers(0, 256, (112, 112, 3), np.uint8) for number in range(count)
    ]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_people(tmp_path_factory.mktemp("people"), 9, 3, 0)


@pytest.fixture(scope="module")
def heads(tiny: FrozenBackbone, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Heads:
    return Heads(tiny, open_source(people), tmp_path_factory.mktemp("cache"), CONFIG, 9)


@pytest.mark.slow
def test_every_kind_is_left_out_once_and_measured_with_three_heads(heads: Heads) -> None:
    results, fixed = leave_one_out(heads)
    assert [result.kind for result in results] == ["none", *KINDS] and list(fixed) == [FEW, WIDE]
    for result in results:
        assert list(result.loss) == list(result.expected) == [FEW, WITHOUT, ALL]
        assert all(0 < value < 1 for value in result.expected.values()) and -1 <= result.cosine <= 1
    clean, *damaged = results
    assert clean.loss[WITHOUT] == clean.loss[ALL]  # nothing left out
    assert any(result.loss[WITHOUT] != result.loss[ALL] for result in damaged)


def test_training_and_test_people_are_disjoint(heads: Heads) -> None:
    train = heads._select(heads._train)
    test = heads._select(~heads._train)
    assert not set(train.identities) & set(test.identities)
    assert len(set(train.identities)) == 6 and len(set(test.identities)) == 3
    n_views = 1 + len(KINDS)
    assert len(train.rows) == 6 * 3 * n_views and len(test.rows) == 3 * 3 * n_views


def test_three_images_of_each_requested_person_are_sampled(people: Path) -> None:
    source = open_source(people)
    sampled = sample_people(source, 4)
    assert len(sampled) == 12 and set(np.bincount(sampled.labels)) <= {0, 3}
    assert sampled.keys == sample_people(source, 4).keys != sample_people(source, 4, seed=1).keys
    with pytest.raises(InputError, match="9 people have 3 images or more, 10 were requested"):
        sample_people(source, 10)


def test_non_face_images_are_reproducible_crops(people: Path) -> None:
    source = open_source(people)
    images_by_kind = non_faces(faces(12), source, 8)
    assert list(images_by_kind) == [
        "textures", "cartoons", "other pictures", "half faces", "faces upside down", "patches of faces"
    ]  # fmt: skip
    repeated = non_faces(faces(12), source, 8)
    for name, images in images_by_kind.items():
        assert len(images) == 8
        assert {(image.shape, image.dtype) for image in images} == {((112, 112, 3), np.dtype(np.uint8))}
        assert all(
            np.array_equal(image, repeated_image) for image, repeated_image in zip(images, repeated[name])
        )
        assert len({image.tobytes() for image in images}) == 8
    assert "other pictures" not in non_faces(faces(2), None, 2)


def test_half_faces_are_half_grey() -> None:
    face = np.full((112, 112, 3), 7, np.uint8)
    half_faces = damage.halves_of([face] * 30, np.random.default_rng(0))
    assert {int((half == 128).all(2).sum()) for half in half_faces} == {112 * 56}
    assert len({half.tobytes() for half in half_faces}) == 4  # one per side


def test_the_share_above_the_lowest_faces_is_counted(tiny: FrozenBackbone, heads: Heads) -> None:
    images = [picture(number) for number in range(40)]
    head = heads.fit(["noise"])
    rows = summarise_kappas(tiny, {"one": head}, images, {"same": images, "few": images[:3]})
    row_of = {row.pictures: row for row in rows}
    assert row_of["faces"].above == row_of["same"].above == 0.95
    assert row_of["same"].kappa == row_of["faces"].kappa
    assert row_of["few"].above in (0, 1 / 3, 2 / 3, 1)


@pytest.mark.slow
def test_the_study_gives_three_tables(
    tiny: FrozenBackbone, people: Path, heads: Heads, tmp_path: Path
) -> None:
    test = open_source(make_people(tmp_path / "test", 8, 4, 7000))
    kind_table, pair_table, non_face_table = study_damage(
        tiny, open_source(people), test, tmp_path / "cache", CONFIG, people=(6, 4),
        heads={"mine": heads.fit([])},
    )  # fmt: skip
    assert len(kind_table.rows) == 1 + len(KINDS)
    assert pair_table.header == ["images", FEW, WIDE, "mine", PERFECT]
    assert [row[0] for row in pair_table.rows] == ["none", "none/cross", "cross", "none/beyond", "beyond"]
    assert {(row[0], row[1]) for row in non_face_table.rows} >= {("faces", "mine"), ("cartoons", FEW)}


def test_pairs_use_only_people_of_the_calibration_half(tmp_path: Path) -> None:
    source = open_source(make_people(tmp_path, 8, 2, 0))
    first, second = halves(source.labels)
    sampled = sample_calibration_people(source, 3)
    assert len(sampled) == 6 and set(sampled.labels) <= set(source.labels[first])
    assert not set(sample_calibration_people(source, 99).labels) & set(source.labels[second])


def test_the_perfect_kappa_is_at_least_as_good(
    tiny: FrozenBackbone, people: Path, heads: Heads, tmp_path: Path
) -> None:
    results = reach(tiny, {"one": heads.fit([])}, open_source(people), tmp_path)
    assert [result.kappa for result in results] == ["one"] * 5 + [PERFECT] * 5
    assert all(0 <= b <= a <= 1 for a, b in (result.tmr for result in results))
    mean = {
        name: np.mean([result.tmr for result in results if result.kappa == name]) for name in ("one", PERFECT)
    }
    assert mean[PERFECT] >= mean["one"]
