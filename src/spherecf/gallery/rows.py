"""The rows of a gallery: header, templates and images.

A direction is stored as base64 of its float32 bytes: exact, and ten times faster through Milvus' Python
client than a list of numbers. It is in a JSON field, as the client checks every character of a text field.
"""

import base64
import hashlib
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.names import composed
from spherecf.common.version import __version__
from spherecf.errors import FileFormatError, InputError, ModelError

FORMAT, VERSION = "spherecf.gallery", 1


@dataclass(frozen=True)
class Header:
    """Facts about a gallery.

    Attributes:
        model: fingerprint of the model whose directions and kappas it holds.
        backbone: sha256 of its recogniser; "" if unknown.
        dim, radius: of the directions and of the score.
        salt: of the keys, so that a name has different keys in different galleries.
        created, spherecf: ISO time of creation, and version of the package.
    """

    model: str
    backbone: str
    dim: int
    radius: float
    salt: str
    created: str
    spherecf: str
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def new(cls, model: str, backbone: str, dim: int, radius: float) -> "Header":
        """Header of a new gallery."""
        return cls(model, backbone, dim, radius, secrets.token_hex(16), now(), __version__)

    @classmethod
    def read(cls, facts: dict[str, Any], uri: str) -> "Header":
        """Parse a header.

        Raises:
            FileFormatError: not a gallery header, or of another version.
        """
        if facts.get("format") != FORMAT or facts.get("version") != VERSION:
            raise FileFormatError(
                uri, f"expected a gallery of version {VERSION}, got {facts.get('format')} "
                f"{facts.get('version')}.", "Use the version of spherecf that created it, or a newer one."
            )  # fmt: skip
        try:
            return cls(**{field.name: facts[field.name] for field in fields(cls)})
        except KeyError as error:
            raise FileFormatError(uri, f"the header of the gallery has no {error}.") from error

    def check(self, uri: str, model: str, backbone: str, dim: int, radius: float) -> None:
        """Check that the model is the gallery's own; scores of different models are not comparable.

        Raises:
            ModelError: another model; the message has both hashes.
        """
        if model != self.model or (backbone and self.backbone and backbone != self.backbone):
            raise ModelError(
                f"{uri}: the gallery belongs to the model {self.model} (backbone "
                f"{self.backbone or 'unknown'}), but the current model is {model} (backbone "
                f"{backbone or 'unknown'}), and their directions cannot be compared; use the "
                "gallery's model, or enrol everybody again in a new gallery"
            )
        if dim != self.dim or radius != self.radius:
            raise ModelError(
                f"{uri}: the gallery has dimension {self.dim} and radius {self.radius:g}, the model has "
                f"{dim} and {radius:g}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def now() -> str:
    """Current time, UTC, ISO format, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Enrolled:
    """One enrolled person.

    Attributes:
        template: key of the template in the gallery.
        identity: name of the person.
        kappa: of the pooled template, the length of the sum over media of the mean kappa_i mu_i.
        percentile: of kappa among the reference faces, 0 .. 100; None without a calibration.
        images: number of images in the template.
        media: number of media; images of one medium are averaged, as they are not independent evidence.
        warnings: low quality, photos of different people, resemblance to another person.
        sources: origin of the first images.
        enrolled, changed: ISO times, UTC.
    """

    template: str
    identity: str
    kappa: float
    percentile: float | None
    images: int
    media: int
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    enrolled: str = ""
    changed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"warnings": list(self.warnings), "sources": list(self.sources)}


MAX_NAME = 256  # characters


def checked_identity(identity: str) -> str:
    """The name in Unicode form NFC, without surrounding white space.

    Raises:
        InputError: empty, longer than 256 characters, or with control characters.

    Example:
        >>> checked_identity(" Zoe\u0308 ")
        'Zoë'
    """
    name = composed(identity).strip()
    if not name:
        raise InputError("identity: expected a name, got an empty one")
    if len(name) > MAX_NAME:
        raise InputError(f"identity: expected at most {MAX_NAME} characters, got {len(name)}: {name[:40]}...")
    controls = [
        character for character in name if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    ]
    if controls:
        raise InputError(
            f"identity: expected a name without control characters, got {controls[0]!r} in {name!r}"
        )
    return name


def template_key(identity: str, salt: str) -> str:
    """Primary key of a person's template; the same name has different keys in different galleries."""
    return hashlib.blake2b(identity.encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()


Row = dict[str, Any]

TEMPLATE, IMAGE, HEADER, WRITER = "template", "image", "header", "writer"
_SOURCE = 512  # characters kept of the source of an image
# Cosine from which two directions in one medium are the same image: rounding depends on the batch.
_SAME = 1 - 1e-4


@dataclass(frozen=True, eq=False)
class Images:
    """The images that a template is pooled from."""

    mu: NDArray[np.float32]
    """(n, dim) unit directions."""
    kappa: NDArray[np.float32]
    """(n,) concentrations."""
    media: tuple[str, ...]
    """(n,) medium of each."""
    sources: tuple[str, ...]
    """(n,) origin of each."""

    def __len__(self) -> int:
        return len(self.kappa)

    def new(self, known: "Images") -> "Images":
        """The images not in ``known``; images are equal if medium and, up to rounding, direction are."""
        kept: list[int] = []
        for i, medium in enumerate(self.media):
            seen = [known.mu[j] for j, other in enumerate(known.media) if other == medium]
            seen += [self.mu[j] for j in kept if self.media[j] == medium]
            if not any(float(mu @ self.mu[i]) > _SAME for mu in seen):
                kept.append(i)
        return self.select(kept)

    def select(self, rows: Sequence[int]) -> "Images":
        """A subset."""
        media, sources = (tuple(column[i] for i in rows) for column in (self.media, self.sources))
        return Images(self.mu[rows], self.kappa[rows], media, sources)

    def __add__(self, other: "Images") -> "Images":
        return Images(
            np.concatenate([self.mu, other.mu]), np.concatenate([self.kappa, other.kappa]),
            self.media + other.media, self.sources + other.sources,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Template:
    """A stored template."""

    key: str
    identity: str
    mu: NDArray[np.float32]
    kappa: float
    images: int
    media: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> str:
        """Marks the images that belong to it; other images with its key are leftovers and are ignored."""
        return str(self.facts.get("generation", ""))


def template_row(template: Template) -> Row:
    """Row of a template."""
    return _row(
        template.key, TEMPLATE, template.key, template.identity, template.mu, template.kappa,
        template.images, template.media, template.facts,
    )  # fmt: skip


def image_rows(template: Template, images: Images, first: int) -> list[Row]:
    """Rows of the images from position ``first`` on."""
    return [
        _row(
            image_key(template, place), IMAGE, template.key, "", images.mu[place],
            float(images.kappa[place]), 1, 1,
            {"generation": template.generation, "place": place, "medium": images.media[place],
             "source": images.sources[place][:_SOURCE]},
        )
        for place in range(first, len(images))
    ]  # fmt: skip


def image_key(template: Template, place: int) -> str:
    """Primary key of an image of a template."""
    return f"{template.key}-{template.generation}-{place}"


def header_row(facts: dict[str, Any]) -> Row:
    """Row of the facts about the gallery."""
    return _row(HEADER, HEADER, HEADER, "", np.empty(0, np.float32), 0.0, 0, 0, facts)


def writer_row(writer: str, changes: int) -> Row:
    """Row that counts the changes of one writer to the gallery."""
    nothing = np.empty(0, np.float32)
    return _row(writer, WRITER, WRITER, "", nothing, 0.0, 0, 0, {"changes": changes})


def read_template(row: Row) -> Template:
    """The inverse of `template_row`."""
    return Template(
        row["id"], row["identity"], direction(row), row["kappa"], row["images"], row["media"], row["facts"]
    )


def read_images(template: Template, rows: Sequence[Row]) -> Images:
    """The images of a template from the rows with its key; leftovers are ignored.

    Raises:
        KeyError: an image is missing.
    """
    if template.images == 1:
        facts = template.facts
        return Images(
            template.mu[None], np.array([template.kappa], np.float32), (facts["medium"],), (facts["source"],)
        )
    by_place = {
        row["facts"]["place"]: row for row in rows if row["facts"]["generation"] == template.generation
    }
    ordered = [by_place[place] for place in range(template.images)]
    return Images(
        np.stack([direction(row) for row in ordered]),
        np.array([row["kappa"] for row in ordered], np.float32),
        tuple(row["facts"]["medium"] for row in ordered),
        tuple(row["facts"]["source"] for row in ordered),
    )


def direction(row: Row) -> NDArray[np.float32]:
    """(dim,) direction of a row."""
    return np.frombuffer(base64.b64decode(row["direction"]["f4"]), "<f4").astype(np.float32)


def _row(
    key: str, kind: str, owner: str, identity: str, mu: NDArray[np.float32], kappa: float, images: int,
    media: int, facts: dict[str, Any],
) -> Row:  # fmt: skip
    packed = base64.b64encode(mu.astype("<f4").tobytes()).decode()
    return {
        "id": key, "kind": kind, "owner": owner, "identity": identity, "direction": {"f4": packed},
        "kappa": kappa, "images": images, "media": media, "facts": facts,
    }  # fmt: skip
