"""Kinds left out one by one, and pictures that are no faces, on a tiny recogniser."""

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
def test_every_kind_is_left_out_once_and_judged_by_three_heads(heads: Heads) -> None:
    found, fixed = leave_one_out(heads)
    assert [one.kind for one in found] == ["none", *KINDS] and list(fixed) == [FEW, WIDE]
    for one in found:
        assert list(one.loss) == list(one.expected) == [FEW, WITHOUT, ALL]
        assert all(0 < value < 1 for value in one.expected.values()) and -1 <= one.cosine <= 1
    clean, *damaged = found
    assert clean.loss[WITHOUT] == clean.loss[ALL]  # nothing left out
    assert any(one.loss[WITHOUT] != one.loss[ALL] for one in damaged)


def test_nobody_both_teaches_and_tests(heads: Heads) -> None:
    train = heads._select(heads._train)
    test = heads._select(~heads._train)
    assert not set(train.identities) & set(test.identities)
    assert len(set(train.identities)) == 6 and len(set(test.identities)) == 3
    shown = 1 + len(KINDS)
    assert len(train.rows) == 6 * 3 * shown and len(test.rows) == 3 * 3 * shown


def test_three_pictures_of_as_many_people_as_asked_for(people: Path) -> None:
    source = open_source(people)
    few = sample_people(source, 4)
    assert len(few) == 12 and set(np.bincount(few.labels)) <= {0, 3}
    assert few.keys == sample_people(source, 4).keys != sample_people(source, 4, seed=1).keys
    with pytest.raises(InputError, match="9 people have 3 images or more, 10 were requested"):
        sample_people(source, 10)


def test_pictures_that_are_no_faces_are_crops_and_the_same_again(people: Path) -> None:
    source = open_source(people)
    shown = non_faces(faces(12), source, 8)
    assert list(shown) == [
        "textures", "cartoons", "other pictures", "half faces", "faces upside down", "patches of faces"
    ]  # fmt: skip
    again = non_faces(faces(12), source, 8)
    for name, pictures in shown.items():
        assert len(pictures) == 8
        assert {(one.shape, one.dtype) for one in pictures} == {((112, 112, 3), np.dtype(np.uint8))}
        assert all(np.array_equal(one, other) for one, other in zip(pictures, again[name]))
        assert len({one.tobytes() for one in pictures}) == 8
    assert "other pictures" not in non_faces(faces(2), None, 2)


def test_half_faces_are_half_grey_and_half_face() -> None:
    face = np.full((112, 112, 3), 7, np.uint8)
    shown = damage.halves_of([face] * 30, np.random.default_rng(0))
    assert {int((half == 128).all(2).sum()) for half in shown} == {112 * 56}
    assert len({half.tobytes() for half in shown}) == 4  # every side


def test_a_share_above_the_lowest_faces_is_counted(tiny: FrozenBackbone, heads: Heads) -> None:
    shown = [picture(number) for number in range(40)]
    head = heads.fit(["noise"])
    rows = summarise_kappas(tiny, {"one": head}, shown, {"same": shown, "few": shown[:3]})
    found = {row.pictures: row for row in rows}
    assert found["faces"].above == found["same"].above == 0.95
    assert found["same"].kappa == found["faces"].kappa
    assert found["few"].above in (0, 1 / 3, 2 / 3, 1)


@pytest.mark.slow
def test_three_tables(tiny: FrozenBackbone, people: Path, heads: Heads, tmp_path: Path) -> None:
    test = open_source(make_people(tmp_path / "test", 8, 4, 7000))
    kinds, pairs, others = study_damage(
        tiny, open_source(people), test, tmp_path / "cache", CONFIG, people=(6, 4),
        heads={"mine": heads.fit([])},
    )  # fmt: skip
    assert len(kinds.rows) == 1 + len(KINDS)
    assert pairs.header == ["images", FEW, WIDE, "mine", PERFECT]
    assert [row[0] for row in pairs.rows] == ["none", "none/cross", "cross", "none/beyond", "beyond"]
    assert {(row[0], row[1]) for row in others.rows} >= {("faces", "mine"), ("cartoons", FEW)}


def test_pairs_are_of_people_who_calibrate(tmp_path: Path) -> None:
    source = open_source(make_people(tmp_path, 8, 2, 0))
    first, second = halves(source.labels)
    few = sample_calibration_people(source, 3)
    assert len(few) == 6 and set(few.labels) <= set(source.labels[first])
    assert not set(sample_calibration_people(source, 99).labels) & set(source.labels[second])


def test_a_perfect_kappa_knows_who_is_like_whom(
    tiny: FrozenBackbone, people: Path, heads: Heads, tmp_path: Path
) -> None:
    found = reach(tiny, {"one": heads.fit([])}, open_source(people), tmp_path)
    assert [one.kappa for one in found] == ["one"] * 5 + [PERFECT] * 5
    assert all(0 <= b <= a <= 1 for a, b in (one.tmr for one in found))
    mean = {name: np.mean([one.tmr for one in found if one.kappa == name]) for name in ("one", PERFECT)}
    assert mean[PERFECT] >= mean["one"]
