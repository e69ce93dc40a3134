"""What a gallery holds: header, templates and images; how images are checked, pooled and reviewed."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_directions, check_kappa
from spherecf.common.parsing import composed
from spherecf.common.version import __version__
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.gallery.identification import Candidate, Limit
from spherecf.scoring import mutual_likelihood_score, pool_templates, without_each

FORMAT, VERSION = "spherecf.gallery", 1


@dataclass(frozen=True)
class Header:
    """Facts about a gallery.

    Attributes:
        model: fingerprint of the model whose directions and kappas it holds.
        backbone: sha256 of its recogniser; "" if unknown.
        dim, radius: of the directions and of the score.
        salt: of the keys on a server, so that a name has different keys in different galleries; else "".
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
    def new(cls, model: str, backbone: str, dim: int, radius: float, salt: str) -> "Header":
        """Header of a new gallery."""
        return cls(model, backbone, dim, radius, salt, now(), __version__)

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

    @property
    def medium(self) -> NDArray[np.int64]:
        """(n,) number of each image's medium, in the order of their first images."""
        number = {medium: place for place, medium in enumerate(dict.fromkeys(self.media))}
        return np.array([number[medium] for medium in self.media], np.int64)

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

    id: str
    identity: str
    mu: NDArray[np.float32]
    kappa: float
    images: int
    media: int
    facts: dict[str, Any] = field(default_factory=dict)
    row: int = 0
    """Number in the store; a number is never given twice."""

    @property
    def only(self) -> Images:
        """The image of a template of one image, which is the template itself."""
        facts = self.facts
        kappa = np.array([self.kappa], np.float32)
        return Images(self.mu[None], kappa, (facts["medium"],), (facts["source"],))


def template_id(identity: str, images: Images, mu: NDArray[np.float32], kappa: float) -> str:
    """128-bit hash of name, media, direction and kappa: the same enrolment has the same id everywhere.

    Example:
        >>> mu, kappa = np.eye(2, dtype=np.float32)[:1], np.array([3.0], np.float32)
        >>> template_id("Ann", Images(mu, kappa, ("a",), ("a.jpg",)), mu[0], 3.0)
        'b054b924f1d4757788b29947e6773583'
    """
    digest = hashlib.blake2b(json.dumps([identity, *images.media]).encode(), digest_size=16)
    digest.update(np.append(mu, np.float32(kappa)).astype("<f4").tobytes())
    return digest.hexdigest()


_MAX_CHARACTERS = 512  # of a source or medium


def check_images(
    mu: ArrayLike,
    kappa: ArrayLike,
    dim: int,
    media: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> Images:
    """Convert to arrays with unit directions; missing media and sources become empty strings.

    Raises:
        InputError: no image, wrong shapes, NaN, directions that are not unit vectors, negative kappa.
    """
    directions, lengths = as_array(mu, "mu", np.float32), as_array(kappa, "kappa", np.float32)
    if directions.ndim != 2 or directions.shape[1] != dim or not len(directions):
        raise InputError(f"mu: expected (n, {dim}) directions, n >= 1, got {directions.shape}")
    n = len(directions)
    media, sources = ([""] * n if column is None else column for column in (media, sources))
    if lengths.shape != (n,) or len(media) != n or len(sources) != n:
        raise InputError(
            f"expected a kappa, medium and source for each of {n} directions, got {lengths.shape}, "
            f"{len(media)} and {len(sources)}"
        )
    check_directions(directions, "mu", keys=sources if any(sources) else ())
    check_kappa(lengths, "kappa")
    norm = np.linalg.norm(directions.astype(np.float64), axis=1)
    unit = (directions / norm[:, None]).astype(np.float32)
    return Images(
        unit, lengths, *(tuple(str(text)[:_MAX_CHARACTERS] for text in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """Check one direction and concentration.

    Raises:
        InputError: as in `check_images`.
    """
    direction = as_array(mu, "mu", np.float32)
    if direction.shape != (dim,):
        raise InputError(f"mu: expected one direction ({dim},), got {direction.shape}")
    images = check_images(direction[None], [kappa], dim)
    return images.mu[0], float(images.kappa[0])


_SOURCES = 5  # listed for a template

Review = Callable[[Images, NDArray[np.float32], float], tuple[str, ...]]


def pooled_template(
    name: str, images: Images, before: Template | None = None, review: Review | None = None
) -> Template:
    """Pool images: mean within each medium, sum over media. A single image is kept bit for bit.

    Args:
        name: of the person.
        images: all of them.
        before: the template that this one replaces.
        review: returns warnings for images, direction and kappa.
    """
    mu, kappa = images.mu[0], float(images.kappa[0])
    if len(images) > 1:
        pooled = pool_templates(images.mu, images.kappa, np.zeros(len(images), np.int64), images.medium)
        mu, kappa = pooled.mu[0], float(pooled.kappa[0])
    when = now()
    facts = {
        "medium": images.media[0],
        "source": images.sources[0],
        "sources": list(images.sources[:_SOURCES]),
        "warnings": [] if review is None else list(review(images, mu, kappa)),
        "enrolled": when if before is None else before.facts["enrolled"],
        "changed": when,
        "spherecf": __version__,
    }
    media = len(set(images.media))
    return Template(template_id(name, images, mu, kappa), name, mu, kappa, len(images), media, facts)


def no_images(dim: int) -> Images:
    """An empty set of images."""
    return Images(np.empty((0, dim), np.float32), np.empty(0, np.float32), (), ())


_NAMED = 5  # photos named in one warning


def review(
    images: Images, kappa: float, others: Sequence[Candidate], limits: tuple[Limit, Limit] | None,
    radius: float,
) -> tuple[str, ...]:  # fmt: skip
    """Warnings: low quality, photos of different people, resemblance to another enrolled person.

    Args:
        images: of the template.
        kappa: of the template.
        others: most similar templates of other people.
        limits: for templates of one image and of several; None without calibration, which gives no warnings.
        radius: r of the scores.
    """
    if limits is None:
        return ()
    single, pooled = limits
    warnings = []
    if kappa < single.min_kappa:
        warnings.append(f"low quality: kappa {kappa:.1f}, identification requires {single.min_kappa:.1f}")
    if len(images) > 1:
        scores = against_the_rest(images, radius)
        limit = single if len(images) == 2 else pooled
        strange = np.flatnonzero(scores < limit.reject)
        if len(images) == 2 and strange.size:
            warnings.append("the two photos look like different people")
        elif strange.size:
            names = [images.sources[i] or f"photo {i + 1}" for i in strange[:_NAMED]]
            more = f" and {strange.size - _NAMED} more" if strange.size > _NAMED else ""
            warnings.append(f"photos that do not look like the others: {', '.join(names)}{more}")
    alike = [other for other in others if other.score >= max(single.accept, pooled.accept)]
    if alike:
        warnings.append(
            f"resembles {alike[0].identity} (score {alike[0].score:.1f}); is this one person under two names?"
        )
    return tuple(warnings)


def against_the_rest(images: Images, radius: float) -> NDArray[np.float64]:
    """(n,) score of each image against the pooled template of the others, the sum of kappa_i mu_i."""
    mu, kappa = (torch.from_numpy(column).double() for column in (images.mu, images.kappa))
    rest = without_each(mu, kappa, torch.zeros(len(images), dtype=torch.int64))
    scores: NDArray[np.float64] = mutual_likelihood_score(mu, kappa, *rest, radius=radius).numpy()
    return scores
