"""Tickets: signed summaries of photos, which clients can send again instead of the photos.

The service stores nothing about a photo. Instead, the client keeps the summary that a template needs.
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

_PREFIX = b"spherecf-ticket:"  # no image file starts with these bytes


@dataclass(frozen=True, eq=False)
class FaceSummary:
    """The values of a `spherecf.photos.AssessedFace` that a template needs."""

    mu: NDArray[np.float32]
    kappa: float
    quality: int
    reasons: tuple[str, ...]
    picture: str


@dataclass(frozen=True, eq=False)
class PhotoSummary:
    """The values of a `spherecf.photos.AssessedPhoto` that a template needs.

    ``media`` is the start of the SHA-256 of the file.
    """

    name: str
    media: str
    usable_face: FaceSummary | None
    problem: str

    @classmethod
    def of(cls, upload: Upload, photo: AssessedPhoto) -> "PhotoSummary":
        """Summarise an uploaded photo and its assessment."""
        face = photo.usable_face
        summary = None
        if face is not None:
            summary = FaceSummary(face.mu, face.kappa, face.quality, face.reasons, face.picture)
        return cls(photo.name, hashlib.sha256(upload.content).hexdigest()[:16], summary, photo.problem)


class Tickets:
    """Issues and reads tickets, signed with a random key (HMAC-SHA-256) that is never stored.

    Example:
        >>> tickets, summary = Tickets(), PhotoSummary("a.jpg", "0123456789abcdef", None, "no face found")
        >>> ticket = Upload("b.jpg", tickets.issue(summary).encode())
        >>> restored = tickets.read(ticket)
        >>> restored.name, restored.media, restored.problem
        ('b.jpg', '0123456789abcdef', 'no face found')
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def issue(self, photo: PhotoSummary) -> str:
        """Return the ticket of a photo as ASCII text. It does not contain the name of the photo."""
        face = photo.usable_face
        facts = face and [_encode(face.mu), face.kappa, face.quality, face.reasons, face.picture]
        content = json.dumps([photo.media, photo.problem, facts]).encode()
        return b":".join((_PREFIX[:-1], self._sign(content), content)).decode()

    def read(self, upload: Upload) -> PhotoSummary | None:
        """Return the summary in a ticket, or None if the upload is a photo.

        Raises:
            HTTPException: 410, the ticket was signed with another key, or was changed.
        """
        if not upload.content.startswith(_PREFIX):
            return None
        text = upload.content.removesuffix(b"\n")  # appended by many programs
        signature, _, content = text[len(_PREFIX) :].partition(b":")
        if not hmac.compare_digest(signature, self._sign(content)):
            raise HTTPException(
                410,
                f"The ticket {upload.name!r} was not issued by this service since its last start: send the "
                "photo.",
            )
        media, problem, facts = json.loads(content)
        if facts is None:
            return PhotoSummary(upload.name, media, None, problem)
        mu, kappa, quality, reasons, picture = facts
        direction = np.frombuffer(base64.b64decode(mu), np.float32)  # (dim,)
        return PhotoSummary(
            upload.name, media, FaceSummary(direction, kappa, quality, tuple(reasons), picture), problem
        )

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256").hex().encode()


def _encode(mu: NDArray[np.float32]) -> str:
    return base64.b64encode(mu.tobytes()).decode()
