"""From keys to rows: unknown keys are an error, skipped images a failure to acquire."""

import dataclasses

import numpy as np
import pytest

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.pairs import resolve_pairs

LEFT, RIGHT, MATED, FOLDS = ["a", "b", "a", "x"], ["b", "c", "d", "a"], [1, 0, 0, 1], [0, 0, 1, 1]


@pytest.fixture
def four() -> Embeddings:
    labels, names = np.array([0, 0, 1, 2]), ["Ann", "Bob", "Cid"]
    return Embeddings(
        np.eye(4), np.ones(4), list("abcd"), labels, names, skipped=[("x", "gone"), ("y", "unused")]
    )


def test_pairs_are_resolved_with_subjects_and_failures(four: Embeddings) -> None:
    pairs = resolve_pairs(four, four, LEFT, RIGHT, MATED, FOLDS, None)
    assert pairs.left.tolist() == [0, 1, 0] and pairs.right.tolist() == [1, 2, 3]
    assert pairs.is_embedded.tolist() == [True, True, True, False] and pairs.failed_pairs == 1
    assert pairs.failures == [("x", "gone")]  # without y, which no pair uses
    assert pairs.unit == "subject" and pairs.subjects[1].tolist() == ["Ann", "Bob", "Cid"]
    assert pairs.mated.dtype == bool and pairs.folds.tolist() == [0, 0, 1]


def test_images_are_resampled_if_any_subject_is_unknown(four: Embeddings) -> None:
    labels = np.array([0, 0, -1, 2])
    partly_labelled = dataclasses.replace(four, labels=labels, identities=())
    assert resolve_pairs(partly_labelled, partly_labelled, LEFT, RIGHT, MATED, FOLDS, None).unit == "image"
    assert (
        resolve_pairs(partly_labelled, partly_labelled, ["a", "a"], ["b", "d"], [1, 0], [0, 1], None).unit
        == "subject"
    )


def test_unknown_keys_are_counted_in_the_error(four: Embeddings) -> None:
    with pytest.raises(InputError, match=r"2 of 4 keys are not in these embeddings of 4 images: 'e', 'f'"):
        resolve_pairs(four, four, list("aefb"), list("bcda"), MATED, FOLDS, None)


def test_other_spellings_of_keys_are_matched(four: Embeddings) -> None:
    keys = [f"faces/{key}.png" for key in four.keys]
    named = dataclasses.replace(four, keys=keys, skipped=[("faces/x.png", "gone")])
    listed = [f"{key}.jpg" for key in ("a", "x", "c", "b")], [f"{key}.jpg" for key in ("b", "c", "d", "a")]
    pairs = resolve_pairs(named, named, *listed, MATED, FOLDS, None)
    assert pairs.left.tolist() == [0, 2, 1] and pairs.right.tolist() == [1, 3, 0]
    assert pairs.failures == [("faces/x.png", "gone")] and pairs.is_embedded.tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_failures_that_leave_one_kind_of_pairs_are_refused(four: Embeddings) -> None:
    with pytest.raises(
        InputError, match=r"1 of 2 have an image that could not be embedded; the rest are 0 mated and 1"
    ):
        resolve_pairs(four, four, ["x", "b"], ["a", "c"], [1, 0], [0, 1], None)


@pytest.mark.parametrize(
    ("mated", "folds", "message"),
    [
        ([1, 0, 0], FOLDS, "4 left keys, 4 right keys, 3 mated flags and 4 folds"),
        (MATED, [0, 1], "2 folds"),
        ([1, 0, 2, 1], FOLDS, "booleans or 0 and 1"),
        ([1, 0, np.nan, 1], FOLDS, "booleans or 0 and 1"),
    ],
)
def test_inconsistent_columns_are_refused(four: Embeddings, mated: list, folds: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_pairs(four, four, LEFT, RIGHT, mated, folds, None)


def test_subjects_of_another_number_than_pairs_are_refused(four: Embeddings) -> None:
    for subjects in ((list("pqr"), list("pqrs")), (list("pqrs"), list("pq"))):
        with pytest.raises(InputError, match=r"subjects: expected two \(4,\), got \([34],\) and \([24],\)"):
            resolve_pairs(four, four, LEFT, RIGHT, MATED, FOLDS, subjects)
