"""Gallery files: an accepted one can list, identify, enrol and remove people."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.common.sealing import KEY
from spherecf.gallery import Gallery


def _open(path: Path) -> Gallery:
    return Gallery.open(str(path), model="f" * 64, dim=4, radius=64.0)


def _seeds() -> dict[str, bytes]:
    path = write("seed.gallery", b"")
    path.unlink()
    with _open(path) as gallery:
        for person in range(4):
            mu = np.roll(np.eye(4, dtype=np.float32), person, axis=0)[: 1 + person % 2]
            media, sources = ["a", "b"][: len(mu)], ["x.jpg", "y.jpg"][: len(mu)]
            gallery.enrol(f"person {person}", mu, np.full(len(mu), 50.0), media=media, sources=sources)
        gallery.compact()
    return {"four people": path.read_bytes()}


@fuzz(
    _seeds, name="galleries", tokens=[b"templates", b"images", b"NULL", b"\x00" * 8, b"\xff" * 8], share=0.2
)
def test_galleries(data: bytes) -> None:
    path = write("mutated.gallery", data)
    for leftover in path.parent.glob("mutated.gallery-*"):
        leftover.unlink()
    with _open(path) as gallery:
        people = gallery.list()
        assert all(person.kappa >= 0 and person.images > 0 for person in people)
        result = gallery.identify(np.eye(4, dtype=np.float32)[0], 40.0)
        assert all(np.isfinite(candidate.score) for candidate in result.candidates)
        gallery.enrol("new", np.eye(4, dtype=np.float32)[:1], np.array([10.0]), media=["q"], sources=["z"])
        assert gallery.remove("new") == 1


_KEY = {KEY: f"spherecf-key-1 {bytes(range(32)).hex()}"}


def _sealed_seeds() -> dict[str, bytes]:
    with patch.dict(os.environ, _KEY):
        return _seeds()


@fuzz(_sealed_seeds, name="galleries, encrypted", tokens=[b"sealed", b"\x00" * 8, b"\xff" * 8], share=0.2)
def test_sealed_galleries(data: bytes) -> None:
    """An accepted gallery is unchanged: no mutation can alter, add or remove a person."""
    path = write("sealed.gallery", data)
    for leftover in path.parent.glob("sealed.gallery-*"):
        leftover.unlink()
    with patch.dict(os.environ, _KEY), _open(path) as gallery:
        people = [(person.identity, person.kappa > 0, person.images) for person in gallery.list()]
        assert people == [(f"person {person}", True, 1 + person % 2) for person in range(4)]
        assert all(len(gallery.sources(name)) == images for name, _, images in people)
