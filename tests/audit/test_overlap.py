import numpy as np
import pytest
from tests.audit.test_suspects import people

from spherecf.audit import find_overlap, find_same_person, labels as labels_module
from spherecf.audit.labels import find_shared_names
from spherecf.data import SyntheticImages
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError


class Named(SyntheticImages):
    def __init__(self, names: list[str]) -> None:
        super().__init__(len(names), len(names), (4, 4))
        self.identities = names


def part(e: Embeddings, identities: range, name: str) -> Embeddings:
    assert e.labels is not None
    rows = np.flatnonzero(np.isin(e.labels, list(identities)))
    selected = e.select(rows)
    selected.identities = [f"{name}{number}" for number in e.identities]
    return selected


def test_one_person_under_two_names_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_CELLS", 100)  # several blocks
    e = people(20)
    assert e.labels is not None
    e.labels[6:12] = 19  # half of the images of person 0 are labelled 19
    e.labels[e.labels == 19] = np.where(np.flatnonzero(e.labels == 19) < 12, 19, -1)
    pairs = find_same_person(e, 0.8)
    assert [(pair.left, pair.right) for pair in pairs] == [("0", "19")]


def test_people_in_both_sets_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_CELLS", 100)
    e = people(20)
    train, test = part(e, range(0, 15), "a"), part(e, range(12, 20), "b")
    overlap = {(pair.left, pair.right) for pair in find_overlap(train, test, 0.8)}
    assert overlap == {("a12", "b12"), ("a13", "b13"), ("a14", "b14")}


def test_another_recogniser_is_refused() -> None:
    e = people(4)
    other_dim = Embeddings(mu=np.eye(2), log_kappa=np.zeros(2), keys=["1", "2"], labels=np.arange(2))
    with pytest.raises(InputError, match="64 and 2 dimensions"):
        find_overlap(e, other_dim, 0.5)


def test_names_are_compared_unless_they_are_numbers() -> None:
    first, second = Named(["Ann_Lee", "Bo Ray", "Cy"]), Named(["ann lee", "Bo_Ray", "Di"])
    assert find_shared_names(first, second) == ["Bo_Ray", "ann lee"]
    assert find_shared_names(first, SyntheticImages(4, 4, (4, 4))) is None
    assert find_shared_names(first, second.subset([2])) == []
