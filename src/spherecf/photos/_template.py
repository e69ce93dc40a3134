"""Which photos should be in the template? Pooled confidence, what each adds, and who does not belong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import Calibration
from spherecf.common.version import environment
from spherecf.embeddings import Embeddings
from spherecf.photos._assess import AssessedPhoto
from spherecf.photos._compare import calibrated
from spherecf.photos._face_set import NO_DIRECTION, FaceSet

_LEAST_SHARE = 0.25  # of what an average photo of the set adds: a photo that adds less hardly helps


@dataclass(frozen=True)
class TemplatePhoto:
    """One photo of the set.

    Attributes:
        name: of the photo.
        kappa, quality: of its face; None and -1 where there is none.
        weight: share of the template's summed kappa, 0 .. 1.
        gain: what the pooled kappa would lose without it; below 0 it pulls the template away.
        helps: it adds at least a quarter of what an average photo adds, and is no suspected stranger.
        stranger: it looks like another person than most of the set.
        group: photos of one number look like one person, 0 the largest group; -1 without a face.
        same_as: name of an earlier photo with the same picture; the two count as one.
        reason: why there is no face, or why it is suspected; "" otherwise.
        reasons: what is conspicuous about the picture.
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
        """JSON-able."""
        return {**vars(self), "reasons": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class PhotoTemplate:
    """Many photos of one person as one distribution.

    Attributes:
        mu: (dim,) unit direction.
        kappa: pooled concentration: the length of the sum of ``kappa_i mu_i`` over distinct pictures.
        photos: what each is worth, in the order given.
        grown: pooled kappa after each photo that is in the template, in the order given.
        groups: how many people the faces look like.
        pooled: names of the photos that are in ``mu`` and ``kappa``.
        warnings: what should be looked at before it is used.
    """

    mu: NDArray[np.float32]
    kappa: float
    photos: tuple[TemplatePhoto, ...]
    grown: tuple[float, ...]
    groups: int
    pooled: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the direction."""
        return {
            "kappa": self.kappa,
            "photos": [photo.to_dict() for photo in self.photos],
            "grown": list(self.grown),
            "groups": self.groups,
            "pooled": list(self.pooled),
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path, name: str, *, provenance: dict[str, Any] | None = None) -> Path:
        """Write it as an embeddings file of one row, which every command of the right half reads.

        Raises:
            StorageError: the disk is full or not writable.
        """
        row = Embeddings(
            mu=self.mu[None],
            log_kappa=np.log([self.kappa]),
            keys=[name],
            extras={"photos": np.array([len(self.pooled)])},
            skipped=[(one.name, one.reason) for one in self.photos if one.kappa is None],
            provenance={"pooled": list(self.pooled), "environment": environment(), **(provenance or {})},
        )
        row.save(path)
        return Path(path)


def build_template(
    photos: Sequence[AssessedPhoto],
    calibration: Calibration | None,
    *,
    radius: float,
    exclude_strangers: bool = False,
) -> PhotoTemplate:
    """Pool the main faces of a person's photos (paper equation 14) and say what each is worth.

    Identical pictures count as one. Faces are grouped by average likelihood ratio; a photo outside the
    largest group is a suspected stranger if the rule for FMR 1e-2 calls it a non-match with that group's
    pooled template.

    Args:
        photos: from `FaceAssessor`, by one model, in the order in which the template should grow.
        calibration: of that model.
        radius: r of that model.
        exclude_strangers: leave suspected strangers out of the template; otherwise they are pooled, with a
            warning.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no photo with a face, or directions that cancel each other.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import FaceAssessor
        >>> assess, people = FaceAssessor(), orl_faces()
        >>> photos = [assess(people.image(row), people.keys[row]) for row in (0, 1, 2)]
        >>> template = build_template(photos, assess.model.calibration, radius=assess.model.radius)
        >>> template.groups, len(template.grown), template.kappa > max(one.kappa for one in template.photos)
        (1, 3, True)
    """
    known = calibrated(calibration)
    faces = FaceSet.of(photos)
    groups = faces.groups(known, radius)
    stranger = faces.strangers(groups, known, radius)
    kept = ~stranger if exclude_strangers else np.ones(len(stranger), np.bool_)
    gain, weight = faces.gains(kept), faces.weights(kept)
    rows = [TemplatePhoto(photo.name, reason=_faceless(photo)) for photo in photos]
    number = {row: place for place, group in enumerate(groups) for row in group}
    least = _LEAST_SHARE * float(gain[kept].mean())
    for row, (place, face) in enumerate(zip(faces.places, faces.faces)):
        suspected, same = bool(stranger[row]), faces.media[row] != row
        rows[place] = TemplatePhoto(
            photos[place].name, face.kappa, face.quality, float(weight[row]), float(gain[row]),
            bool(gain[row] >= least) and not suspected and not same, suspected, number[row],
            photos[faces.places[faces.media[row]]].name if same else None,
            "looks like another person than most of the photos" if suspected else "", face.reasons,
        )  # fmt: skip
    direction, total = faces.pooled(np.flatnonzero(kept))
    return PhotoTemplate(
        direction.astype(np.float32), total, tuple(rows), faces.grown(kept), len(groups),
        tuple(photos[faces.places[row]].name for row in np.flatnonzero(kept)),
        _warnings(rows, [len(np.unique(faces.media[group])) for group in groups], exclude_strangers),
    )  # fmt: skip


def _faceless(photo: AssessedPhoto) -> str:
    return photo.reason or NO_DIRECTION


def _warnings(rows: Sequence[TemplatePhoto], sizes: Sequence[int], excluded: bool) -> tuple[str, ...]:
    """``sizes``: distinct pictures of each group."""
    found = []
    if count := sum(row.stranger for row in rows):
        what = "left out" if excluded else "pooled nevertheless: leave them out if they are strangers"
        found.append(f"like another person look {count} of {len(rows)} photos; {what}")
    if len(sizes) > 1 and 2 * sizes[1] >= sizes[0]:
        listing = ", ".join(map(str, sizes))
        found.append(f"the photos look like two people or more: groups of {listing}; which one is meant?")
    if count := sum(row.kappa is None for row in rows):
        found.append(f"{count} of {len(rows)} photos have no usable face")
    if count := sum(row.same_as is not None for row in rows):
        found.append(f"pictures that are there already, and add nothing: {count}")
    return tuple(found)
