"""The main faces of a person's photos as arrays: pooled, grouped, and each weighed against the rest."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration, Decision, DecisionRule
from spherecf.errors import InputError
from spherecf.photos._assess import AssessedFace, AssessedPhoto
from spherecf.photos._groups import group_by_likelihood
from spherecf.scoring import mutual_likelihood_matrix, mutual_likelihood_score, pool

STRANGER_FMR = 1e-2  # the rule that says whether a photo is a clear non-match to the rest

NO_DIRECTION = "the recogniser gives no direction for this face"

Array = NDArray[Any]


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
    faces: list[AssessedFace]
    mu: Array
    kappa: Array
    media: Array

    @classmethod
    def of(cls, photos: Sequence[AssessedPhoto]) -> "FaceSet":
        """The main faces that have a direction.

        Raises:
            InputError: there is none; the first reason is told.
        """
        usable = [
            (place, photo.main)
            for place, photo in enumerate(photos)
            if photo.main is not None and math.isfinite(photo.main.kappa)
        ]
        if not usable:
            first = f" The first, {photos[0].name}: {photos[0].reason or NO_DIRECTION}" if photos else ""
            raise InputError(f"none of the {len(photos)} photos has a usable face.{first}")
        faces = [face for _, face in usable]
        digests = [hashlib.sha256(face.captured.crop.tobytes()).hexdigest() for face in faces]
        first_with: dict[str, int] = {}
        media = [first_with.setdefault(digest, row) for row, digest in enumerate(digests)]
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
        found = group_by_likelihood(calibration.llr(PAIR_SCORE, score, radius))
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
            decided = rule.decide(score.numpy(), np.minimum(total, self.kappa[others]))
            found[others] = decided == Decision.NON_MATCH.value
        return found

    def _parts(self, kept: NDArray[np.bool_]) -> Array:
        """(n, dim) ``kappa_i mu_i``, zeros for what is not kept or shows a picture that was there before."""
        counts = kept & (self.media == np.arange(len(kept)))
        return np.asarray(self.kappa[:, None] * self.mu * counts[:, None])

    def gains(self, kept: NDArray[np.bool_]) -> Array:
        """(n,) how much longer the sum of those kept is with the face than without it."""
        own = self.kappa[:, None] * self.mu
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
    known = {rule.score for rule in calibration.decisions}
    score = TEMPLATE_SCORE if pooled and TEMPLATE_SCORE in known else PAIR_SCORE
    return calibration.decision(score, error="fmr", alpha=STRANGER_FMR)
