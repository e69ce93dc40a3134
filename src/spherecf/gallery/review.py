"""Which photos of a person look like another person, and whether a person is enrolled under two names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import Calibration, Decision
from spherecf.errors import InputError
from spherecf.gallery.identification import Candidate
from spherecf.gallery.rows import Images
from spherecf.scoring import mutual_likelihood_matrix, mutual_likelihood_score, pool

Array = NDArray[Any]

STRANGER_FMR = 1e-2  # false match rate of the rule that decides whether a photo is a non-match with the rest
_MAX_GROUPED = 1000  # images of a member that are compared with each other, which takes quadratic memory
_MAX_NAMED = 5  # photos named in a warning


def group_by_likelihood(llr: NDArray[np.floating]) -> list[list[int]]:
    """Group faces by person with average linkage; returns lists of rows, largest group first.

    The two groups with the highest mean log-likelihood ratio between them are merged, as long as this mean is
    above 0.

    Args:
        llr: (n, n) symmetric log-likelihood ratios; the diagonal is ignored.

    Example:
        >>> llr = np.full((3, 3), -4.0)
        >>> llr[0, 2] = llr[2, 0] = 3.0
        >>> group_by_likelihood(llr)
        [[0, 2], [1]]
    """
    from scipy.cluster.hierarchy import linkage

    n = len(llr)
    groups = {row: [row] for row in range(n)}
    distances = -np.asarray(llr, np.float64)[np.triu_indices(n, 1)]  # (n (n - 1) / 2,)
    for step, (a, b, distance, _) in enumerate(linkage(distances, "average") if n > 1 else ()):
        if not distance < 0:  # distances never decrease from one merge to the next
            break
        groups[n + step] = groups.pop(int(a)) + groups.pop(int(b))
    return sorted(map(sorted, groups.values()), key=lambda rows: (-len(rows), rows[0]))


def group_by_person(
    mu: Array, kappa: Array, media: Array, calibration: Calibration, radius: float
) -> list[list[int]]:
    """Group images by person; the group with the most media comes first.

    Args:
        mu: (n, dim) float64 unit directions.
        kappa: (n,) float64 concentrations.
        media: (n,) integer id of the medium of each image.
        calibration: calibration of the model.
        radius: radius r of the scores.

    Raises:
        InputError: the calibration has no likelihood ratio.
    """
    tensors = torch.from_numpy(mu), torch.from_numpy(kappa)
    score = mutual_likelihood_matrix(*tensors, *tensors, radius=radius).double().numpy()
    kappas = kappa[:, None], kappa[None]
    groups = group_by_likelihood(calibration.llr(calibration.best_score(), score, radius, kappas=kappas))
    return sorted(groups, key=lambda rows: -len(np.unique(media[rows])))


def find_strangers(
    mu: Array, kappa: Array, media: Array, group: Sequence[int], calibration: Calibration, radius: float
) -> NDArray[np.bool_]:
    """(n,) mask of the images outside a group that are a non-match with its pooled template.

    Args:
        mu: as in `group_by_person`.
        kappa: likewise.
        media: likewise.
        group: rows of the group: the first of `group_by_person`.
        calibration: likewise.
        radius: likewise.

    Raises:
        InputError: the calibration has no rule for `STRANGER_FMR`, or the group has no direction.
    """
    is_stranger = np.zeros(len(kappa), np.bool_)
    others = np.setdiff1d(np.arange(len(kappa)), group)
    if len(others):
        direction, pooled_kappa = pooled(mu[group], kappa[group], media[group])
        score = mutual_likelihood_score(
            torch.from_numpy(direction)[None], torch.tensor([pooled_kappa], dtype=torch.float64),
            torch.from_numpy(mu[others]), torch.from_numpy(kappa[others]), radius=radius,
        )  # fmt: skip
        rule = calibration.best_decision(STRANGER_FMR, int(len(np.unique(media[group])) > 1))
        kappas = pooled_kappa, kappa[others]
        evidence = calibration.evidence(rule.score, score.numpy(), mu[others] @ direction, kappas)
        decisions = rule.decide(evidence, np.minimum(*kappas))
        is_stranger[others] = decisions == Decision.NON_MATCH.value
    return is_stranger


def pooled(mu: Array, kappa: Array, media: Array) -> tuple[Array, float]:
    """Pool images of one person; returns (direction (dim,), kappa)."""
    columns = (torch.from_numpy(column) for column in (mu, kappa, np.zeros(len(kappa), np.int64), media))
    template = pool(*columns)
    return template.mu[0].numpy(), float(template.kappa[0])


def several_people(group_sizes: Sequence[int]) -> list[str]:
    """The warning about a second group of at least half the size of the first.

    Args:
        group_sizes: number of media of each group, largest group first.
    """
    if len(group_sizes) < 2 or 2 * group_sizes[1] < group_sizes[0]:
        return []
    listing = ", ".join(map(str, group_sizes))
    return [
        f"the photos seem to show several people (groups of {listing} images); check which person is meant"
    ]


def review(
    images: Images, kappa: float, min_kappa: float, alike: Sequence[Candidate], calibration: Calibration,
    radius: float,
) -> tuple[str, ...]:  # fmt: skip
    """Warnings about a template: low quality, photos of different people, resemblance to another member.

    Args:
        images: images of the template.
        kappa: concentration of the template.
        min_kappa: minimum kappa for an identification.
        alike: other members that the template matches, the most similar first.
        calibration: calibration of the model.
        radius: radius r of the scores.
    """
    warnings = []
    if kappa < min_kappa:
        warnings.append(f"low quality: kappa {kappa:.1f}, identification requires {min_kappa:.1f}")
    warnings += _review_photos(images, calibration, radius)
    if alike:
        measure = "score" if alike[0].evidence is None else "evidence"
        warnings.append(
            f"resembles {alike[0].identity} ({measure} {alike[0].measure:.1f}); is this one person under two "
            "names?"
        )
    return tuple(warnings)


def _review_photos(images: Images, calibration: Calibration, radius: float) -> list[str]:
    """Warnings about photos of different people; none if the calibration has no rule for them."""
    mu, kappa, media = images.mu.astype(np.float64), images.kappa.astype(np.float64), images.medium
    first = slice(_MAX_GROUPED)
    try:
        groups = group_by_person(mu[first], kappa[first], media[first], calibration, radius)
        strangers = np.flatnonzero(find_strangers(mu, kappa, media, groups[0], calibration, radius))
    except InputError:
        return []
    if len(images) == 2 and len(strangers):
        return ["the two photos look like different people"]
    warnings = []
    if len(strangers):
        names = [images.sources[i] or f"photo {i + 1}" for i in strangers[:_MAX_NAMED]]
        more = f" and {len(strangers) - _MAX_NAMED} more" if len(strangers) > _MAX_NAMED else ""
        warnings.append(f"photos that do not look like the others: {', '.join(names)}{more}")
    return warnings + several_people([len(np.unique(media[group])) for group in groups])
