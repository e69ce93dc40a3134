"""A gallery and probes with their subjects: checked, searched, and divided by subjects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.evaluation._uncertainty import Searched, probe_confidences
from spherecf.scoring import Templates, fit_gallery_kappa, mean_cosine_kappa, open_set_posterior

Array = NDArray[Any]

KAPPA_CHOICES = ("likelihood", "cosine")


@dataclass(eq=False)
class OpenSet:
    """Who is enrolled and who is searched; a probe whose subject is not enrolled is non-mated.

    Args:
        gallery: one template per subject.
        gallery_subjects: (k,) subject of each, all different.
        probes: templates to search.
        probe_subjects: (n,) subject of each.
        extras: confidences of the probes by name, (n,) each, larger = surer: "norm", "detector_score", ...

    Raises:
        InputError: shapes that disagree, a subject enrolled twice, dimensions that differ, NaN confidences,
            or only one kind of probe.

    Example:
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(4, dtype=np.float32), np.ones(4), [0, 1, 2, 3])
        >>> world = OpenSet(t.select([0, 1]), ["ann", "bo"], t.select([2, 3]), ["bo", "cy"])
        >>> world.truth.tolist()
        [1, -1]
    """

    gallery: Templates
    gallery_subjects: ArrayLike
    probes: Templates
    probe_subjects: ArrayLike
    extras: Mapping[str, ArrayLike] | None = None

    def __post_init__(self) -> None:
        for name in ("gallery", "probe"):
            side = self.gallery if name == "gallery" else self.probes
            subjects = np.asarray(getattr(self, f"{name}_subjects"))
            if subjects.shape != (len(side),):
                raise InputError(
                    f"{name}_subjects: expected one per template ({len(side)},), got {subjects.shape}"
                )
            setattr(self, f"{name}_subjects", subjects)
        names, counts = np.unique(self.gallery_subjects, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"gallery: {int((counts > 1).sum())} subjects are enrolled more than once, first "
                f"{names[counts > 1][0]}; pool their images into one template each"
            )
        if self.gallery.dim != self.probes.dim:
            raise InputError(
                f"gallery templates have dimension {self.gallery.dim}, probes {self.probes.dim}: "
                "not the same recogniser"
            )
        self.extras = self._columns()
        mated = int((self.truth >= 0).sum())
        if not 0 < mated < len(self.probes):
            raise InputError(
                f"probes: {mated} of {len(self.probes)} are of enrolled subjects; open-set rates need mated "
                "and non-mated probes"
            )

    def _columns(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, values in (self.extras or {}).items():
            column = np.asarray(values, np.float64)
            if column.shape != (len(self.probes),) or np.isnan(column).any():
                raise InputError(
                    f"confidence {name!r}: expected {len(self.probes)} numbers, got shape {column.shape} "
                    f"with {int(np.isnan(column).sum())} NaN"
                )
            found[name] = column
        if self.probes.log_precision is not None:
            found.setdefault("precision", self.probes.log_precision.mean(1, dtype=np.float64))
        return found

    @property
    def truth(self) -> NDArray[np.int64]:
        """(n,) gallery position of each probe's subject, -1 where it is not enrolled."""
        subjects = np.asarray(self.gallery_subjects)
        order = np.argsort(subjects)
        place = np.searchsorted(subjects, self.probe_subjects, sorter=order)
        row = order[np.minimum(place, len(order) - 1)]
        return np.where(subjects[row] == self.probe_subjects, row, -1).astype(np.int64)

    def divide(self, share: float, seed: int) -> tuple["OpenSet", "OpenSet"]:
        """Two worlds without a common subject, the first with this share of enrolled and of other people.

        Raises:
            InputError: the share is not between 0 and 1, or a part has no mated or no non-mated probe.
        """
        if not 0 < share < 1:
            raise InputError(f"validation share: expected 0 < share < 1, got {share}")
        rng = np.random.default_rng(seed)
        enrolled = np.unique(self.gallery_subjects)
        others = np.setdiff1d(self.probe_subjects, enrolled)
        first = np.concatenate(
            [rng.permutation(people)[: round(share * people.size)] for people in (enrolled, others)]
        )
        inside = np.isin(self.gallery_subjects, first), np.isin(self.probe_subjects, first)
        return self._part(*inside), self._part(*(~mask for mask in inside))

    def _part(self, gallery: Array, probes: Array) -> "OpenSet":
        subjects = np.asarray(self.gallery_subjects)[gallery], np.asarray(self.probe_subjects)[probes]
        if not gallery.any() or not probes.any():
            raise InputError(
                f"open set: too few subjects to divide ({gallery.size} enrolled, {probes.size} probes); "
                "give validation data of other people instead"
            )
        return OpenSet(
            self.gallery.select(np.flatnonzero(gallery)), subjects[0],
            self.probes.select(np.flatnonzero(probes)), subjects[1],
            {name: column[probes] for name, column in self._columns().items()},
        )  # fmt: skip

    def gallery_kappas(self, choice: str | float, beta: float) -> tuple[float, float]:
        """kappa_g of the posterior at the mean direction, and of the one over the probe's distribution.

        Args:
            choice: a number for both, "cosine" (`mean_cosine_kappa`) or "likelihood" (`fit_gallery_kappa`).
            beta: prior of unknown.
        """
        if not isinstance(choice, str):
            return float(choice), float(choice)
        if choice not in KAPPA_CHOICES:
            raise InputError(f"kappa_gallery: expected a number or one of {KAPPA_CHOICES}, got {choice!r}")
        mu = self.probes.mu, self.gallery.mu, self.truth
        if choice == "cosine":
            return (mean_cosine_kappa(*mu),) * 2
        kappa = self.probes.kappa.astype(np.float64)
        return fit_gallery_kappa(*mu, beta), fit_gallery_kappa(*mu, beta, probe_kappa=kappa)

    def search(self, kappas: tuple[float, float], beta: float, seed: int) -> Searched:
        """Posteriors and the confidences that see the probe alone."""
        kappa = self.probes.kappa.astype(np.float64)
        mu = self.probes.mu, self.gallery.mu
        return Searched(
            open_set_posterior(*mu, kappas[0], beta),
            open_set_posterior(*mu, kappas[1], beta, probe_kappa=kappa),
            kappa,
            self.probes.dim,
            probe_confidences(kappa, self.probes.dim, self._columns(), seed),
        )
