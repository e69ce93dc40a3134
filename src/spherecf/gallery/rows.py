"""Contents of a gallery: header, templates and images. Checks and pools images."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_directions, check_kappa
from spherecf.common.parsing import checked, composed
from spherecf.common.version import __version__
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.scoring import pool_templates

FORMAT, VERSION = "spherecf.gallery", 1


@dataclass(frozen=True)
class Header:
    """Facts about a gallery.

    Attributes:
        model: fingerprint of the model that computed the directions and kappas.
        backbone: SHA-256 of the model's recogniser; "" if unknown.
        dim: dimension of the directions.
        radius: radius r of the mutual likelihood score.
        salt: salt of the keys on a server, which gives a name different keys in different galleries; "" for a
            file.
        created: time of creation, ISO format, UTC.
        spherecf: version of the package that created the gallery.
        format: name of the file format.
        version: version of the file format.
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

    def __post_init__(self) -> None:
        if self.dim < 2 or not 0 < self.radius < math.inf:
            raise InputError(
                f"gallery: expected a dimension of at least 2 and a positive radius, got {self.dim} and "
                f"{self.radius:g}"
            )

    @classmethod
    def new(cls, model: str, backbone: str, dim: int, radius: float, salt: str) -> "Header":
        """Header of a new gallery."""
        return cls(model, backbone, dim, radius, salt, now(), __version__)

    @classmethod
    def read(cls, facts: dict[str, Any], uri: str) -> "Header":
        """Parse a header.

        Raises:
            FileFormatError: the facts are not the header of a gallery, or it has another version.
        """
        if facts.get("format") != FORMAT or facts.get("version") != VERSION:
            newer = isinstance(facts.get("version"), int) and facts["version"] > VERSION
            raise FileFormatError(
                uri, f"expected a gallery of version {VERSION}, got {facts.get('format')} "
                f"{facts.get('version')}.", "Update spherecf." if newer else "",
            )  # fmt: skip
        try:
            return checked(cls, facts, "the header of the gallery")
        except InputError as error:
            raise FileFormatError(uri, f"{error}.", "Restore it from a backup.") from error

    def check(self, uri: str, model: str, backbone: str, dim: int, radius: float) -> None:
        """Check that the gallery belongs to the model. Directions of different models cannot be compared.

        Raises:
            ModelError: the gallery belongs to another model; the message has both hashes.
        """
        if model != self.model or (backbone and self.backbone and backbone != self.backbone):
            raise ModelError(
                f"{uri}: the gallery belongs to the model {self.model} (backbone "
                f"{self.backbone or 'unknown'}), but the current model is {model} (backbone "
                f"{backbone or 'unknown'}), and directions of different models cannot be compared; use the "
                "model of the gallery, or enrol all people again in a new gallery"
            )
        if dim != self.dim or radius != self.radius:
            raise ModelError(
                f"{uri}: the gallery has dimension {self.dim} and radius {self.radius:g}, but the model has "
                f"dimension {dim} and radius {radius:g}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return asdict(self)


def now() -> str:
    """Current time in UTC, ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Enrolled:
    """An enrolled person.

    Attributes:
        template: key of the template in the gallery.
        identity: name of the person.
        kappa: concentration of the pooled template: the length of the sum over media of the mean kappa_i
            mu_i.
        percentile: percentage of reference faces with a lower kappa, 0 .. 100; None without a calibration.
        images: number of images in the template.
        media: number of media. The images of a medium are averaged, since they are not independent evidence.
        warnings: low quality, photos of different people, resemblance to another person.
        sources: origin of the first images.
        enrolled: time of the enrolment, ISO format, UTC.
        changed: time of the last change, ISO format, UTC.
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
        """Return a JSON-serialisable dictionary."""
        return asdict(self) | {"warnings": list(self.warnings), "sources": list(self.sources)}


MAX_NAME = 256  # characters


def checked_identity(identity: Any) -> str:
    """Check a name, and return it in Unicode form NFC without surrounding white space.

    Raises:
        InputError: the name is not a text, is empty, longer than 256 characters, or contains control
            characters.

    Example:
        >>> checked_identity(" Zoe\u0308 ")
        'Zoë'
    """
    if not isinstance(identity, str):
        raise InputError(f"identity: expected a text, got {identity!r}; use str() for numbers")
    name = composed(identity).strip()
    if not name:
        raise InputError("identity: expected a name, got an empty text")
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


# Minimum cosine at which two directions in a medium count as the same image. Rounding depends on the batch.
_SAME_IMAGE_COSINE = 1 - 1e-4


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

    @property
    def medium(self) -> NDArray[np.int64]:
        """(n,) index of the medium of each image, numbered in the order of first occurrence."""
        index_of = {medium: index for index, medium in enumerate(dict.fromkeys(self.media))}
        return np.array([index_of[medium] for medium in self.media], np.int64)

    def new(self, known: "Images") -> "Images":
        """The distinct images that are not in ``known``.

        Images are equal if they have the same medium and, up to rounding, the same direction.
        """
        new_rows: list[int] = []
        for i, medium in enumerate(self.media):
            same_medium = [known.mu[j] for j, other in enumerate(known.media) if other == medium]
            same_medium += [self.mu[j] for j in new_rows if self.media[j] == medium]
            if not any(float(mu @ self.mu[i]) > _SAME_IMAGE_COSINE for mu in same_medium):
                new_rows.append(i)
        return self.select(new_rows)

    def select(self, rows: Sequence[int]) -> "Images":
        """The images in these rows."""
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

    id: str
    identity: str
    mu: NDArray[np.float32]
    kappa: float
    images: int
    media: int
    facts: dict[str, Any] = field(default_factory=dict)
    row: int = 0
    """Row number in the store. Numbers are never reused."""

    @property
    def only(self) -> Images:
        """The image of a template with one image, which equals the template."""
        facts = self.facts
        kappa = np.array([self.kappa], np.float32)
        return Images(self.mu[None], kappa, (facts["medium"],), (facts["source"],))


def template_id(identity: str, images: Images, mu: NDArray[np.float32], kappa: float) -> str:
    """128-bit hash of name, media, direction and kappa. The same enrolment has the same id in every gallery.

    Example:
        >>> mu, kappa = np.eye(2, dtype=np.float32)[:1], np.array([3.0], np.float32)
        >>> template_id("Ann", Images(mu, kappa, ("a",), ("a.jpg",)), mu[0], 3.0)
        'b054b924f1d4757788b29947e6773583'
    """
    digest = hashlib.blake2b(json.dumps([identity, *images.media]).encode(), digest_size=16)
    digest.update(np.append(mu, np.float32(kappa)).astype("<f4").tobytes())
    return digest.hexdigest()


_MAX_CHARACTERS = 512  # maximum length of a source or medium


def check_images(
    mu: ArrayLike,
    kappa: ArrayLike,
    dim: int,
    media: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> Images:
    """Check images and normalise their directions. Missing media and sources become empty strings.

    Raises:
        InputError: there is no image, an array has the wrong shape or NaN, directions are not unit vectors,
            or a kappa is negative.
    """
    directions, kappas = as_array(mu, "mu", np.float32), as_array(kappa, "kappa", np.float32)
    if directions.ndim != 2 or directions.shape[1] != dim or not len(directions):
        raise InputError(f"mu: expected (n, {dim}) directions, n >= 1, got {directions.shape}")
    n = len(directions)
    media, sources = ([""] * n if column is None else column for column in (media, sources))
    if kappas.shape != (n,) or len(media) != n or len(sources) != n:
        raise InputError(
            f"expected a kappa, medium and source for each of {n} directions, got {kappas.shape}, "
            f"{len(media)} and {len(sources)}"
        )
    check_directions(directions, "mu", keys=sources if any(sources) else ())
    check_kappa(kappas, "kappa")
    norm = np.linalg.norm(directions.astype(np.float64), axis=1)
    unit = (directions / norm[:, None]).astype(np.float32)
    return Images(
        unit, kappas, *(tuple(str(text)[:_MAX_CHARACTERS] for text in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """Check the direction and concentration of a probe.

    Raises:
        InputError: as in `check_images`.
    """
    direction = as_array(mu, "mu", np.float32)
    if direction.shape != (dim,):
        raise InputError(f"mu: expected one direction of shape ({dim},), got {direction.shape}")
    images = check_images(direction[None], [kappa], dim)
    return images.mu[0], float(images.kappa[0])


_MAX_SOURCES = 5  # sources stored in the facts of a template

Review = Callable[[Images, NDArray[np.float32], float], tuple[str, ...]]


def pooled_template(
    name: str, images: Images, before: Template | None = None, review: Review | None = None
) -> Template:
    """Pool images: mean of kappa mu within each medium, sum over media. A single image is not changed.

    Args:
        name: name of the person.
        images: all images of the person.
        before: template that is being replaced.
        review: returns warnings about the images, direction and kappa.
    """
    mu, kappa = images.mu[0], float(images.kappa[0])
    if len(images) > 1:
        pooled = pool_templates(images.mu, images.kappa, np.zeros(len(images), np.int64), images.medium)
        mu, kappa = pooled.mu[0], float(pooled.kappa[0])
    time = now()
    facts = {
        "medium": images.media[0],
        "source": images.sources[0],
        "sources": list(images.sources[:_MAX_SOURCES]),
        "warnings": [] if review is None else list(review(images, mu, kappa)),
        "enrolled": time if before is None else before.facts["enrolled"],
        "changed": time,
        "spherecf": __version__,
    }
    media = len(set(images.media))
    return Template(template_id(name, images, mu, kappa), name, mu, kappa, len(images), media, facts)


def no_images(dim: int) -> Images:
    """An empty set of images."""
    return Images(np.empty((0, dim), np.float32), np.empty(0, np.float32), (), ())
