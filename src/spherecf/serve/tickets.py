"""Tickets: what a template needs of a photo, signed, for the caller to send again instead of the photo.

The service keeps nothing of a photo. So what it found travels with the caller, who has the photo anyway.
"""

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

from spherecf.photos import AssessedPhoto
from spherecf.serve.upload import Upload

_PREFIX = b"spherecf-ticket:"  # no picture begins like this


@dataclass(frozen=True, eq=False)
class SeenFace:
    """Of a `spherecf.photos.AssessedFace`, what a template needs."""

    mu: NDArray[np.float32]
    kappa: float
    quality: int
    reasons: tuple[str, ...]
    picture: str


@dataclass(frozen=True, eq=False)
class SeenPhoto:
    """Of a `spherecf.photos.AssessedPhoto`, what a template needs, and the start of the file's SHA-256."""

    name: str
    media: str
    usable_face: SeenFace | None
    problem: str

    @classmethod
    def of(cls, upload: Upload, photo: AssessedPhoto) -> "SeenPhoto":
        """An uploaded photo and what was found in it."""
        face = photo.usable_face
        seen = None
        if face is not None:
            seen = SeenFace(face.mu, face.kappa, face.quality, face.reasons, face.picture)
        return cls(photo.name, hashlib.sha256(upload.content).hexdigest()[:16], seen, photo.problem)


class Tickets:
    """Makes and reads tickets, by a key (HMAC-SHA-256) that lives and dies with this object.

    Example:
        >>> tickets, seen = Tickets(), SeenPhoto("a.jpg", "0123456789abcdef", None, "no face found")
        >>> ticket = Upload("b.jpg", tickets.issue(seen).encode())
        >>> again = tickets.read(ticket)
        >>> again.name, again.media, again.problem
        ('b.jpg', '0123456789abcdef', 'no face found')
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def issue(self, photo: SeenPhoto) -> str:
        """ASCII text; the name is not in it."""
        face = photo.usable_face
        facts = face and [_text(face.mu), face.kappa, face.quality, face.reasons, face.picture]
        content = json.dumps([photo.media, photo.problem, facts]).encode()
        return b":".join((_PREFIX[:-1], self._sign(content), content)).decode()

    def read(self, upload: Upload) -> SeenPhoto | None:
        """What a ticket says; None for a photo.

        Raises:
            HTTPException: 410, the ticket is not of this key, or was changed.
        """
        if not upload.content.startswith(_PREFIX):
            return None
        text = upload.content.removesuffix(b"\n")  # as programs end a line
        signature, _, content = text[len(_PREFIX) :].partition(b":")
        if not hmac.compare_digest(signature, self._sign(content)):
            raise HTTPException(
                410, f"The ticket {upload.name!r} is not one of this service since its start: send the photo."
            )
        media, problem, facts = json.loads(content)
        if facts is None:
            return SeenPhoto(upload.name, media, None, problem)
        mu, kappa, quality, reasons, picture = facts
        direction = np.frombuffer(base64.b64decode(mu), np.float32)  # (dim,)
        return SeenPhoto(
            upload.name, media, SeenFace(direction, kappa, quality, tuple(reasons), picture), problem
        )

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256").hex().encode()


def _text(mu: NDArray[np.float32]) -> str:
    return base64.b64encode(mu.tobytes()).decode()
