"""The service with the shipped model and a gallery in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("fastapi", reason='no FastAPI: pip install "spherecf[serve]"')
from fastapi.testclient import TestClient

from spherecf.data import IdentityFolder, orl_faces
from spherecf.errors import InputError
from spherecf.gallery import Candidate, Identification
from spherecf.photos import FaceAssessor
from spherecf.serve import Limits, create_app

TOKEN = "a-token-for-the-tests-only"
HERE = "http://127.0.0.1:8080"


@dataclass
class Person:
    identity: str
    mu: NDArray[Any]
    kappa: float
    media: int
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        warnings = ["few photos"] if self.media < 2 else []
        return {
            "template": f"key of {self.identity}", "identity": self.identity, "kappa": self.kappa,
            "percentile": 50.0, "images": len(self.sources), "media": self.media, "warnings": warnings,
            "sources": list(self.sources), "enrolled": "2026-01-01", "changed": "2026-01-01",
        }  # fmt: skip


class MemoryGallery:
    """The interface of `spherecf.gallery.Gallery` on a dictionary; the highest cosine decides."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}

    def require(self, model: str) -> "MemoryGallery":
        return self

    def enrol(
        self, identity: str, mu: NDArray[Any], kappa: NDArray[Any], *, media: Sequence[str],
        sources: Sequence[str], replace: bool = False,
    ) -> Person:  # fmt: skip
        if identity in self.people and not replace:
            raise InputError(f"{identity} is already enrolled")
        total = (kappa[:, None] * mu).sum(0)
        length = float(np.linalg.norm(total))
        person = Person(identity, total / length, length, len(set(media)), tuple(sources))
        self.people[identity] = person
        return person

    def identify(self, mu: NDArray[Any], kappa: float, *, top: int, max_fpir: float) -> Identification:
        candidates = [
            Candidate(p.identity, p.identity, 10 * float(p.mu @ mu), float(p.mu @ mu), p.kappa)
            for p in self.people.values()
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate.score)[:top]
        answer = "identified" if candidates and candidates[0].cosine > 0.4 else "unknown"
        name = candidates[0].identity if answer == "identified" else None
        return Identification(answer, name, "as it looks", tuple(candidates), max_fpir, len(self.people))

    def remove(self, identity: str) -> int:
        return int(self.people.pop(identity, None) is not None)

    def list(self) -> list[Person]:
        return list(self.people.values())

    def info(self) -> dict[str, Any]:
        images = sum(len(person.sources) for person in self.people.values())
        facts = {"model": "m", "dim": 128, "radius": 64.0, "created": "2026-01-01", "uri": "secret://path"}
        return facts | {"identities": len(self.people), "images": images}


@pytest.fixture(scope="session")
def assessor() -> FaceAssessor:
    return FaceAssessor()


@pytest.fixture(scope="session")
def people() -> IdentityFolder:
    return orl_faces()


@pytest.fixture
def client(assessor: FaceAssessor) -> Iterator[TestClient]:
    """A client with the token, of the whole service with an empty gallery."""
    limits = Limits(burst=1000, max_files=4, max_file_bytes=2_000_000)
    app = create_app(assessor, MemoryGallery(), token=TOKEN, limits=limits)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=HERE, headers=headers, raise_server_exceptions=False) as test_client:
        yield test_client


def png(pixels: NDArray[np.uint8], scale: float = 1.0) -> bytes:
    """RGB pixels as a PNG file, optionally enlarged."""
    resized = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".png", resized[..., ::-1])[1].tobytes()


@pytest.fixture
def assessed(assessor: FaceAssessor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the assessed photos, in order."""
    names: list[str] = []

    def stream(photos: Any, real: Any = assessor.stream) -> Any:
        named = list(photos)
        names.extend(name for name, _ in named)
        return real(named)

    monkeypatch.setattr(assessor, "stream", stream)
    return names
