"""Pool photos of one person: pooled kappa, contribution of each photo, suspected strangers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import Calibration, Decision, DecisionRule
from spherecf.common.version import environment
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.photos.comparison import calibrated
from spherecf.scoring import mutual_likelihood_matrix, mutual_likelihood_score, natural_parameter, pool


def group_by_likelihood(llr: NDArray[np.floating]) -> list[list[int]]:
    """Groups of rows that more likely than not show one person, largest first.

    Average linkage: the two groups whose pairs have the highest mean log-likelihood ratio are joined, as long
    as it is above 0.

    Args:
        llr: (n, n) symmetric log-likelihood ratios; the diagonal is not looked at.

    Example:
        >>> alike = np.full((3, 3), -4.0)
        >>> alike[0, 2] = alike[2, 0] = 3.0
        >>> group_by_likelihood(alike)
        [[0, 2], [1]]
    """
    from scipy.cluster.hierarchy import linkage

    n = len(llr)
    groups = {row: [row] for row in range(n)}
    distances = -np.asarray(llr, np.float64)[np.triu_indices(n, 1)]  # (n (n - 1) / 2,), nearest = most alike
    for step, (a, b, distance, _) in enumerate(linkage(distances, "average") if n > 1 else ()):
        if not distance < 0:  # means never rise from one join to the next
            break
        groups[n + step] = groups.pop(int(a)) + groups.pop(int(b))
    return sorted(map(sorted, groups.values()), key=lambda rows: (-len(rows), rows[0]))


STRANGER_FMR = 1e-2  # the rule that says whether a photo is a clear non-match to the rest

Array = NDArray[Any]


class TemplateFace(Protocol):
    """What a template needs of a face; `AssessedFace` has it."""

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
    """What a template needs of a photo; `AssessedPhoto` has it."""

    @property
    def name(self) -> str: ...
    @property
    def usable_face(self) -> TemplateFace | None: ...
    @property
    def problem(self) -> str: ...


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Faces in the order of their photos.

    Attributes:
        places: (n,) which photo each is of.
        faces: the faces.
        mu: (n, dim) float64 unit directions.
        kappa: (n,) concentrations.
        media: (n,) the first face with the same picture, itself where there is none before it.
    """

    places: list[int]
    faces: list[TemplateFace]
    mu: Array
    kappa: Array
    media: Array

    @classmethod
    def of(cls, photos: Sequence[TemplateSource]) -> "FaceSet":
        """The main faces that have a direction.

        Raises:
            InputError: there is none; the message gives the first reason.
        """
        usable = [
            (place, photo.usable_face) for place, photo in enumerate(photos) if photo.usable_face is not None
        ]
        if not usable:
            first = f" The first, {photos[0].name}: {photos[0].problem}" if photos else ""
            raise InputError(f"none of the {len(photos)} photos has a usable face.{first}")
        faces = [face for _, face in usable]
        first_with: dict[str, int] = {}
        media = [first_with.setdefault(face.picture, row) for row, face in enumerate(faces)]
        mu = np.stack([face.mu for face in faces]).astype(np.float64)
        kappa = np.array([face.kappa for face in faces], np.float64)
        return cls([place for place, _ in usable], faces, mu, kappa, np.array(media, np.int64))

    def pooled(self, rows: Sequence[int] | Array) -> tuple[Array, float]:
        """(direction (dim,), kappa) of these faces, the same pictures counted once."""
        at = np.asarray(rows)
        group = torch.zeros(len(at), dtype=torch.int64)
        mu, kappa, media = (torch.from_numpy(column[at]) for column in (self.mu, self.kappa, self.media))
        one = pool(mu, kappa, group, media)
        return one.mu[0].numpy(), float(one.kappa[0])

    def groups(self, calibration: Calibration, radius: float) -> list[list[int]]:
        """Faces that look like one person; the group with the most distinct pictures first."""
        mu, kappa = torch.from_numpy(self.mu), torch.from_numpy(self.kappa)
        score = mutual_likelihood_matrix(mu, kappa, mu, kappa, radius=radius).double().numpy()
        kappas = self.kappa[:, None], self.kappa[None]
        found = group_by_likelihood(calibration.llr(calibration.best_score(), score, radius, kappas=kappas))
        return sorted(found, key=lambda rows: -len(np.unique(self.media[rows])))

    def strangers(
        self, groups: Sequence[Sequence[int]], calibration: Calibration, radius: float
    ) -> NDArray[np.bool_]:
        """(n,) faces outside the first group that are a clear non-match with it, pooled."""
        found = np.zeros(len(self.kappa), np.bool_)
        others = np.setdiff1d(np.arange(len(found)), groups[0])
        if len(others):
            direction, total = self.pooled(groups[0])
            kappa = torch.from_numpy(self.kappa[others])
            score = mutual_likelihood_score(
                torch.from_numpy(direction)[None], torch.full_like(kappa[:1], total),
                torch.from_numpy(self.mu[others]), kappa, radius=radius,
            )  # fmt: skip
            rule = stranger_rule(calibration, pooled=len(np.unique(self.media[groups[0]])) > 1)
            kappas = total, self.kappa[others]
            evidence = calibration.evidence(rule.score, score.numpy(), self.mu[others] @ direction, kappas)
            decided = rule.decide(evidence, np.minimum(*kappas))
            found[others] = decided == Decision.NON_MATCH.value
        return found

    def _parts(self, kept: NDArray[np.bool_]) -> Array:
        """(n, dim) ``kappa_i mu_i``, zeros for what is not kept or shows a picture that was there before."""
        counts = kept & (self.media == np.arange(len(kept)))
        return np.asarray(natural_parameter(self.mu, self.kappa) * counts[:, None])

    def gains(self, kept: NDArray[np.bool_]) -> Array:
        """(n,) how much longer the sum of those kept is with the face than without it."""
        own = natural_parameter(self.mu, self.kappa)  # (n, dim)
        part = self._parts(kept)
        total = part.sum(0)
        without = np.where(kept[:, None], total - part, total)
        gain = np.linalg.norm(np.where(kept[:, None], total, total + own), axis=1)
        gain -= np.linalg.norm(without, axis=1)
        return np.where(self.media == np.arange(len(kept)), gain, 0.0)

    def weights(self, kept: NDArray[np.bool_]) -> Array:
        """(n,) shares of the summed kappa of those kept."""
        counts = self.kappa * kept * (self.media == np.arange(len(kept)))
        return np.asarray(counts / counts.sum())

    def grown(self, kept: NDArray[np.bool_]) -> tuple[float, ...]:
        """Length of the sum after each face that is kept."""
        lengths: Array = np.linalg.norm(np.cumsum(self._parts(kept), axis=0), axis=1)[kept]
        return tuple(lengths.tolist())


def stranger_rule(calibration: Calibration, *, pooled: bool) -> DecisionRule:
    """The rule for a template of several pictures, or of one, against one picture.

    Raises:
        InputError: the calibration has no rule for `STRANGER_FMR`.
    """
    return calibration.best_decision(STRANGER_FMR, int(pooled))


_MIN_GAIN_SHARE = 0.25  # of the mean gain in the set; a photo that adds less hardly helps


@dataclass(frozen=True)
class TemplatePhoto:
    """One photo of the set.

    Attributes:
        name: name of the photo.
        kappa, quality: of its main face; None and -1 if there is none.
        weight: share of the template's summed kappa, 0 .. 1.
        gain: decrease of the pooled kappa if the photo were left out; negative if the photo lowers it.
        helps: its gain is at least a quarter of the mean gain, and it is not a suspected stranger.
        stranger: it looks like a different person than most of the photos.
        group: photos with the same number look like one person, 0 is the largest group; -1 without a face.
        same_as: name of an earlier photo with the same picture; the two count once.
        reason: why there is no face, or why it is a suspected stranger; "" otherwise.
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
        """JSON-able."""
        return {**vars(self), "reasons": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class PhotoTemplate:
    """Many photos of one person as one distribution.

    Attributes:
        mu: (dim,) unit direction.
        kappa: pooled concentration: the length of the sum of ``kappa_i mu_i`` over distinct pictures.
        photos: contribution of each photo, in the order given.
        grown: pooled kappa after each photo in the template, in the order given.
        groups: number of people that the faces look like.
        pooled: names of the photos that were pooled into ``mu`` and ``kappa``.
        warnings: what to check before the template is used.
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
        """Write it as an embeddings file of one row, which every `spherecf evaluate` command reads.

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
    """Pool the main faces of a person's photos (paper equation 14) and measure what each contributes.

    Identical pictures count as one. Faces are grouped by average likelihood ratio; a photo outside the
    largest group is a suspected stranger if the rule for FMR 1e-2 calls it a non-match with that group's
    pooled template.

    Args:
        photos: from one `FaceAssessor`, in the order in which ``grown`` counts them.
        calibration: of the assessor's model.
        radius: r of the assessor's model.
        exclude_strangers: leave suspected strangers out of the template; otherwise they are pooled, and a
            warning is given.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no photo has a face, or the directions cancel each other.

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
    rows = [TemplatePhoto(photo.name, reason=photo.problem) for photo in photos]
    number = {row: place for place, group in enumerate(groups) for row in group}
    min_gain = _MIN_GAIN_SHARE * float(gain[kept].mean())
    for row, (place, face) in enumerate(zip(faces.places, faces.faces)):
        suspected, same = bool(stranger[row]), faces.media[row] != row
        rows[place] = TemplatePhoto(
            photos[place].name, face.kappa, face.quality, float(weight[row]), float(gain[row]),
            bool(gain[row] >= min_gain) and not suspected and not same, suspected, number[row],
            photos[faces.places[faces.media[row]]].name if same else None,
            "looks like a different person than most of the photos" if suspected else "", face.reasons,
        )  # fmt: skip
    direction, total = faces.pooled(np.flatnonzero(kept))
    return PhotoTemplate(
        direction.astype(np.float32), total, tuple(rows), faces.grown(kept), len(groups),
        tuple(photos[faces.places[row]].name for row in np.flatnonzero(kept)),
        _warnings(rows, [len(np.unique(faces.media[group])) for group in groups], exclude_strangers),
    )  # fmt: skip


def _warnings(rows: Sequence[TemplatePhoto], sizes: Sequence[int], excluded: bool) -> tuple[str, ...]:
    """``sizes``: distinct pictures of each group."""
    total, warnings = len(rows), []
    if count := sum(row.stranger for row in rows):
        status = "left out" if excluded else "still in the template: exclude them if they are strangers"
        verb = "looks" if count == 1 else "look"
        warnings.append(f"{count} of {total} photos {verb} like a different person; {status}")
    if len(sizes) > 1 and 2 * sizes[1] >= sizes[0]:
        listing = ", ".join(map(str, sizes))
        warnings.append(f"the photos seem to show several people (groups of {listing}); check whom you mean")
    if count := sum(row.kappa is None for row in rows):
        warnings.append(f"{count} of {total} photos {'has' if count == 1 else 'have'} no usable face")
    if count := sum(row.same_as is not None for row in rows):
        plural = "picture was" if count == 1 else "pictures were"
        warnings.append(f"{count} duplicate {plural} ignored")
    return tuple(warnings)
