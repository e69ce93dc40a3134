"""Files of galleries: an accepted one lists, finds, enrols and removes people."""

from pathlib import Path

import numpy as np
from tests.fuzz.harness import fuzz, write

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
    for left in path.parent.glob("mutated.gallery-*"):
        left.unlink()
    with _open(path) as gallery:
        people = gallery.list()
        assert all(person.kappa >= 0 and person.images > 0 for person in people)
        found = gallery.identify(np.eye(4, dtype=np.float32)[0], 40.0)
        assert all(np.isfinite(candidate.score) for candidate in found.candidates)
        gallery.enrol("new", np.eye(4, dtype=np.float32)[:1], np.array([10.0]), media=["q"], sources=["z"])
        assert gallery.remove("new") == 1
