"""Pool photos of one person into a template: pooled kappa, contributions of photos, suspected strangers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import Calibration
from spherecf.common.version import environment
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.gallery import find_strangers, group_by_person, pooled, several_people
from spherecf.photos.comparison import calibrated
from spherecf.scoring import natural_parameter

Array = NDArray[Any]


class TemplateFace(Protocol):
    """The attributes of a face that a template needs. `AssessedFace` implements it."""

    @property
    def mu(self) -> NDArray[np.float32]: ...
    @property
    def kappa(self) -> float: ...
    @property
    def quality(self) -> int: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def picture(self) -> str: ...


class TemplateSource(Protocol):
    """The attributes of a photo that a template needs. `AssessedPhoto` implements it."""

    @property
    def name(self) -> str: ...
    @property
    def usable_face(self) -> TemplateFace | None: ...
    @property
    def problem(self) -> str: ...


@dataclass(frozen=True, eq=False)
class FaceSet:
    """The usable main faces of a list of photos, in order.

    Attributes:
        photo_indices: (n,) index of the photo of each face.
        faces: the faces.
        mu: (n, dim) float64 unit directions.
        kappa: (n,) concentrations.
        media: (n,) row of the first face with the same image; the row itself if there is no earlier one.
    """

    photo_indices: list[int]
    faces: list[TemplateFace]
    mu: Array
    kappa: Array
    media: Array

    @classmethod
    def of(cls, photos: Sequence[TemplateSource]) -> "FaceSet":
        """Collect the main faces that have a direction.

        Raises:
            InputError: there is none; the message gives the reason for the first photo.
        """
        usable = [
            (index, photo.usable_face) for index, photo in enumerate(photos) if photo.usable_face is not None
        ]
        if not usable:
            first = f" The first, {photos[0].name}: {photos[0].problem}" if photos else ""
            raise InputError(f"none of the {len(photos)} photos has a usable face.{first}")
        faces = [face for _, face in usable]
        first_row_of: dict[str, int] = {}
        media = [first_row_of.setdefault(face.picture, row) for row, face in enumerate(faces)]
        mu = np.stack([face.mu for face in faces]).astype(np.float64)
        kappa = np.array([face.kappa for face in faces], np.float64)
        return cls([index for index, _ in usable], faces, mu, kappa, np.array(media, np.int64))

    def _is_first(self) -> NDArray[np.bool_]:
        """(n,) mask of the faces that are not duplicates of an earlier face."""
        return np.asarray(self.media == np.arange(len(self.media)))

    def _summands(self, included: NDArray[np.bool_]) -> Array:
        """(n, dim) ``kappa_i mu_i``, with zeros for faces that are not included and for duplicates."""
        counts = included & self._is_first()
        return np.asarray(natural_parameter(self.mu, self.kappa) * counts[:, None])

    def gains(self, included: NDArray[np.bool_]) -> Array:
        """(n,) difference of the pooled kappa with and without each face; 0 for duplicates."""
        natural = natural_parameter(self.mu, self.kappa)  # (n, dim)
        summands = self._summands(included)
        total = summands.sum(0)  # (dim,)
        total_with = np.where(included[:, None], total, total + natural)  # (n, dim)
        total_without = np.where(included[:, None], total - summands, total)
        gain = np.linalg.norm(total_with, axis=1)
        gain -= np.linalg.norm(total_without, axis=1)
        return np.where(self._is_first(), gain, 0.0)

    def weights(self, included: NDArray[np.bool_]) -> Array:
        """(n,) share of each face in the summed kappa of the included faces."""
        kappa = self.kappa * included * self._is_first()
        return np.asarray(kappa / kappa.sum())

    def grown(self, included: NDArray[np.bool_]) -> tuple[float, ...]:
        """Pooled kappa after each included face."""
        lengths: Array = np.linalg.norm(np.cumsum(self._summands(included), axis=0), axis=1)[included]
        return tuple(lengths.tolist())


_MIN_GAIN_RATIO = 0.25  # a photo helps if its gain is at least this fraction of the mean gain


@dataclass(frozen=True)
class TemplatePhoto:
    """Contribution of one photo to a template.

    Attributes:
        name: name of the photo.
        kappa: concentration of the main face; None if there is no usable face.
        quality: quality of the main face, 0 .. 100; -1 if there is no usable face.
        weight: share of the photo in the summed kappa of the template, 0 .. 1.
        gain: decrease of the pooled kappa if the photo were left out; negative if the photo lowers it.
        helps: whether the gain is at least a quarter of the mean gain, and the photo is neither a duplicate
            nor a suspected stranger.
        stranger: whether the photo looks like a different person from most of the photos.
        group: photos with the same number look like the same person; 0 is the largest group, -1 means no
            usable face.
        same_as: name of an earlier photo that is the same image; duplicates count once.
        reason: why there is no usable face, or why the photo is a suspected stranger; "" otherwise.
        reasons: capture problems.
    """

    name: str
    kappa: float | None = None
    quality: int = -1
    weight: float = 0.0
    gain: float = 0.0
    helps: bool = False
    stranger: bool = False
    group: int = -1
    same_as: str | None = None
    reason: str = ""
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {**vars(self), "reasons": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class PhotoTemplate:
    """Photos of one person, pooled into one distribution.

    Attributes:
        mu: (dim,) unit direction.
        kappa: pooled concentration: the length of the sum of ``kappa_i mu_i`` over distinct images.
        photos: contribution of each photo, in the order given.
        grown: pooled kappa after each pooled photo, in the order given.
        groups: number of different people that the faces seem to show.
        pooled: names of the photos that were pooled into ``mu`` and ``kappa``.
        warnings: problems to check before the template is used.
    """

    mu: NDArray[np.float32]
    kappa: float
    photos: tuple[TemplatePhoto, ...]
    grown: tuple[float, ...]
    groups: int
    pooled: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary without the direction."""
        return {
            "kappa": self.kappa,
            "photos": [photo.to_dict() for photo in self.photos],
            "grown": list(self.grown),
            "groups": self.groups,
            "pooled": list(self.pooled),
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path, name: str, *, provenance: dict[str, Any] | None = None) -> Path:
        """Write the template as an embeddings file with one row, which `spherecf evaluate` can read.

        Args:
            path: file to write.
            name: key of the row.
            provenance: additional entries of the provenance.

        Raises:
            StorageError: the disk is full or not writable.
        """
        row = Embeddings(
            mu=self.mu[None],
            log_kappa=np.log([self.kappa]),
            keys=[name],
            extras={"photos": np.array([len(self.pooled)])},
            skipped=[(photo.name, photo.reason) for photo in self.photos if photo.kappa is None],
            provenance={"pooled": list(self.pooled), "environment": environment(), **(provenance or {})},
        )
        row.save(path)
        return Path(path)


def build_template(
    photos: Sequence[TemplateSource],
    calibration: Calibration | None,
    *,
    radius: float,
    exclude_strangers: bool = False,
) -> PhotoTemplate:
    """Pool the main faces of a person's photos (paper equation 14), and measure the contribution of each.

    Duplicate images count once. Faces are grouped by their mean likelihood ratio. A photo outside the largest
    group is a suspected stranger if the rule for FMR 1e-2 decides on a non-match with the pooled template of
    that group.

    Args:
        photos: photos from a `FaceAssessor`. Their order matters only for ``grown`` and for duplicates.
        calibration: calibration of the assessor's model.
        radius: radius r of the assessor's model.
        exclude_strangers: leave suspected strangers out of the template. By default they are pooled, with a
            warning.

    Raises:
        ModelError: the model is not calibrated, or a photo was assessed by another model than that of the
            calibration.
        InputError: no photo has a usable face, or the directions cancel each other.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import FaceAssessor
        >>> assess, people = FaceAssessor(), orl_faces()
        >>> photos = [assess(people.image(row), people.keys[row]) for row in (0, 1, 2)]
        >>> template = build_template(photos, assess.model.calibration, radius=assess.model.radius)
        >>> template.groups, len(template.grown)
        (1, 3)
        >>> template.kappa > max(photo.kappa for photo in template.photos)
        True
    """
    calibration = calibrated(calibration, photos)
    faces = FaceSet.of(photos)
    columns = faces.mu, faces.kappa, faces.media
    groups = group_by_person(*columns, calibration, radius)
    is_stranger = find_strangers(*columns, groups[0], calibration, radius)
    included = ~is_stranger if exclude_strangers else np.ones(len(is_stranger), np.bool_)
    gain, weight = faces.gains(included), faces.weights(included)
    contributions = [TemplatePhoto(photo.name, reason=photo.problem) for photo in photos]
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    min_gain = _MIN_GAIN_RATIO * float(gain[included].mean())
    for row, (index, face) in enumerate(zip(faces.photo_indices, faces.faces)):
        stranger, duplicate = bool(is_stranger[row]), faces.media[row] != row
        contributions[index] = TemplatePhoto(
            photos[index].name, face.kappa, face.quality, float(weight[row]), float(gain[row]),
            bool(gain[row] >= min_gain) and not stranger and not duplicate, stranger, group_of[row],
            photos[faces.photo_indices[faces.media[row]]].name if duplicate else None,
            "looks like a different person from most of the photos" if stranger else "", face.reasons,
        )  # fmt: skip
    direction, kappa = pooled(*(column[included] for column in columns))
    return PhotoTemplate(
        direction.astype(np.float32), kappa, tuple(contributions), faces.grown(included), len(groups),
        tuple(photos[faces.photo_indices[row]].name for row in np.flatnonzero(included)),
        _warnings(
            contributions, [len(np.unique(faces.media[group])) for group in groups], exclude_strangers
        ),
    )  # fmt: skip


def _warnings(photos: Sequence[TemplatePhoto], group_sizes: Sequence[int], excluded: bool) -> tuple[str, ...]:
    """Warnings about a template.

    Args:
        photos: contributions of the photos.
        group_sizes: number of distinct images of each group, largest group first.
        excluded: whether suspected strangers were left out.
    """
    total, warnings = len(photos), []
    if count := sum(photo.stranger for photo in photos):
        status = "left out" if excluded else "still in the template: exclude them if they are strangers"
        verb = "looks" if count == 1 else "look"
        warnings.append(f"{count} of {total} photos {verb} like a different person; {status}")
    warnings += several_people(group_sizes)
    if count := sum(photo.kappa is None for photo in photos):
        warnings.append(f"{count} of {total} photos {'has' if count == 1 else 'have'} no usable face")
    if count := sum(photo.same_as is not None for photo in photos):
        noun = "image was" if count == 1 else "images were"
        warnings.append(f"{count} duplicate {noun} ignored")
    return tuple(warnings)
