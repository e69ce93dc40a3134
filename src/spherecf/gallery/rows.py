"""What a gallery stores: header, people, templates and images as rows.

That keeps every bit, and is ten times faster through Milvus' Python client than a list of numbers. It stands
in a JSON field, for of a text field the client looks at every character.
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
        backbone: sha256 of its recogniser; "" if not told.
        dim, radius: of the directions and of the score.
        salt: of the keys, so that a name does not have the same key in two galleries.
        created, spherecf: ISO time, and version that made it.
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
        """For a gallery that is being made."""
        return cls(model, backbone, dim, radius, secrets.token_hex(16), now(), __version__)

    @classmethod
    def read(cls, facts: dict[str, Any], uri: str) -> "Header":
        """From its dictionary.

        Raises:
            FileFormatError: it is no gallery of this kind, or of a later version.
        """
        if facts.get("format") != FORMAT or facts.get("version") != VERSION:
            raise FileFormatError(
                uri, f"expected a gallery of version {VERSION}, got {facts.get('format')} "
                f"{facts.get('version')}.", "Use the spherecf that made it, or a newer one."
            )  # fmt: skip
        try:
            return cls(**{one.name: facts[one.name] for one in fields(cls)})
        except KeyError as error:
            raise FileFormatError(uri, f"the header of the gallery lacks {error}.") from error

    def check(self, uri: str, model: str, backbone: str, dim: int, radius: float) -> None:
        """Refuse another model: its numbers mean something else.

        Raises:
            ModelError: with both hashes.
        """
        if model != self.model or (backbone and self.backbone and backbone != self.backbone):
            raise ModelError(
                f"{uri}: the gallery was made by the model {self.model} (backbone "
                f"{self.backbone or 'unknown'}), this is the model {model} (backbone "
                f"{backbone or 'unknown'}): their directions cannot be compared. Use that "
                "model, or enrol everybody anew in another gallery"
            )
        if dim != self.dim or radius != self.radius:
            raise ModelError(
                f"{uri}: the gallery has dimension {self.dim} and radius {self.radius:g}, this model "
                f"{dim} and {radius:g}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def now() -> str:
    """UTC, ISO, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Enrolled:
    """One identity of a gallery.

    Attributes:
        template: key of the template in the gallery.
        identity: the name.
        kappa: of the pooled template, the length of the sum over media of the mean kappa_i mu_i.
        percentile: of kappa among those the calibration knows, 0 .. 100; None without a calibration.
        images: how many images stand behind it.
        media: how many media; images of one medium are averaged, for they are no independent evidence.
        warnings: what should be looked at: poor photos, a resemblance, photos that do not fit together.
        sources: where the first of the images came from.
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


LONGEST = 256  # characters


def checked_identity(identity: str) -> str:
    """The name in its composed Unicode form (NFC), without blanks around it.

    Raises:
        InputError: empty, longer than 256 characters, or with control characters.

    Example:
        >>> checked_identity(" Zoe\u0308 ")
        'Zoë'
    """
    name = composed(identity).strip()
    if not name:
        raise InputError("identity: expected a name, got an empty one")
    if len(name) > LONGEST:
        raise InputError(f"identity: expected at most {LONGEST} characters, got {len(name)}: {name[:40]}...")
    strange = [sign for sign in name if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
    if strange:
        raise InputError(f"identity: control character {strange[0]!r} in {name!r}; expected a plain name")
    return name


def template_key(identity: str, salt: str) -> str:
    """Primary key of somebody's template: the same name gives the same key in one gallery, not in another."""
    return hashlib.blake2b(identity.encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()


Row = dict[str, Any]

TEMPLATE, IMAGE, HEADER, WRITER = "template", "image", "header", "writer"
_SOURCE = 512  # characters kept of where an image came from
_SAME = 1 - 1e-4  # cosine from which two directions of one medium are one image; batches round differently


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one template: what it is pooled from."""

    mu: NDArray[np.float32]
    """(n, dim) unit directions."""
    kappa: NDArray[np.float32]
    """(n,)."""
    media: tuple[str, ...]
    """(n,) name of the medium of each."""
    sources: tuple[str, ...]
    """(n,) where each came from."""

    def __len__(self) -> int:
        return len(self.kappa)

    def new(self, known: "Images") -> "Images":
        """Those that are not among ``known``, nor twice: in one medium, the same direction up to rounding."""
        kept: list[int] = []
        for i, medium in enumerate(self.media):
            seen = [known.mu[j] for j, other in enumerate(known.media) if other == medium]
            seen += [self.mu[j] for j in kept if self.media[j] == medium]
            if not any(float(mu @ self.mu[i]) > _SAME for mu in seen):
                kept.append(i)
        return self.select(kept)

    def select(self, rows: Sequence[int]) -> "Images":
        """Some of them."""
        media, sources = (tuple(column[i] for i in rows) for column in (self.media, self.sources))
        return Images(self.mu[rows], self.kappa[rows], media, sources)

    def __add__(self, other: "Images") -> "Images":
        return Images(
            np.concatenate([self.mu, other.mu]), np.concatenate([self.kappa, other.kappa]),
            self.media + other.media, self.sources + other.sources,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Template:
    """A template as it is stored."""

    key: str
    identity: str
    mu: NDArray[np.float32]
    kappa: float
    images: int
    media: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> str:
        """Mark of the images that belong to it; others of its key are left over and count for nothing."""
        return str(self.facts.get("generation", ""))


def template_row(template: Template) -> Row:
    """Row of a template."""
    return _row(
        template.key, TEMPLATE, template.key, template.identity, template.mu, template.kappa,
        template.images, template.media, template.facts,
    )  # fmt: skip


def image_rows(template: Template, images: Images, first: int) -> list[Row]:
    """Rows of the images from place ``first`` on."""
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
    """Row that says how often somebody changed the gallery."""
    nothing = np.empty(0, np.float32)
    return _row(writer, WRITER, WRITER, "", nothing, 0.0, 0, 0, {"changes": changes})


def read_template(row: Row) -> Template:
    """The inverse of `template_row`."""
    return Template(
        row["id"], row["identity"], direction(row), row["kappa"], row["images"], row["media"], row["facts"]
    )


def read_images(template: Template, rows: Sequence[Row]) -> Images:
    """The images of a template from the rows of its key; left-over ones are passed by.

    Raises:
        KeyError: an image is missing.
    """
    if template.images == 1:
        facts = template.facts
        return Images(
            template.mu[None], np.array([template.kappa], np.float32), (facts["medium"],), (facts["source"],)
        )
    mine = {row["facts"]["place"]: row for row in rows if row["facts"]["generation"] == template.generation}
    found = [mine[place] for place in range(template.images)]
    return Images(
        np.stack([direction(row) for row in found]),
        np.array([row["kappa"] for row in found], np.float32),
        tuple(row["facts"]["medium"] for row in found),
        tuple(row["facts"]["source"] for row in found),
    )


def direction(row: Row) -> NDArray[np.float32]:
    """(dim,) the direction of a row."""
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
