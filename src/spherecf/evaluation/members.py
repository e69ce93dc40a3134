"""Check decision rules on the members of a gallery, by searches like those of ``Gallery.identify``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import GALLERY_SCORES, Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.people import (
    PeoplePairs,
    RuleCount,
    RuleCounter,
    check_rules,
    count_rule,
    in_turns,
)
from spherecf.scoring import (
    cosine_matrix,
    cosine_score,
    mutual_likelihood_matrix,
    mutual_likelihood_score,
    pool,
    without_each,
)

Array = NDArray[Any]

MIN_MEMBERS = 20
_PROBES = 2000  # maximum number of images to search
_ROWS = 256  # images searched at once
_ALIKE = 5  # maximum number of pairs of similar members in the report


@dataclass(frozen=True)
class MembersReport:
    """Result of `check_members`; `to_dict` is JSON-serialisable.

    Attributes:
        counts: ``members``, searched ``images``, ``mated`` and ``non_mated`` comparisons.
        rules: results of the rules for templates of one image, then for templates of several images.
        alike: (name, name, evidence) of the most similar members that the strictest counted rule calls a
            match: look-alikes, or one person under two names.
    """

    counts: dict[str, int]
    rules: tuple[RuleCount, ...]
    alike: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        rules = [count.to_dict() for count in self.rules]
        return {"counts": self.counts, "rules": rules, "alike": [list(pair) for pair in self.alike]}


def check_members(
    members: Embeddings, calibration: Calibration, *, draws: int = 1000, seed: int = 0
) -> MembersReport:
    """Check the decision rules of a gallery by searching its members' images in it.

    Each image is compared with the templates of all other members (non-mated comparisons). If its member has
    further images, it is also compared with the template of these (a mated comparison). At most 2,000 images
    are searched: the first of every member, then the second, and so on. If one person is enrolled under two
    names, both count as members.

    Args:
        members: embeddings of the members' images, with names (`spherecf.gallery.Gallery.members`).
        calibration: calibration of the model that made the embeddings.
        draws: bootstrap draws of members, for the intervals; with 0 there are no intervals, and no rule is
            reported as broken.
        seed: seed of the draws.

    Raises:
        InputError: there are fewer than 20 members, no names or no rule to check, or the radius of the rules
            differs from that of the embeddings.

    Example:
        >>> from spherecf.calibration import Calibration, DecisionRule
        >>> from spherecf.embeddings import Embeddings
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(60, 64))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> images = Embeddings(
        ...     mu,
        ...     np.full(60, 5.0),
        ...     list(map(str, range(60))),
        ...     labels=np.arange(60),
        ...     identities=list(map(str, range(60))),
        ... )
        >>> rule = DecisionRule("mls", 64.0, "kappa", -1e3, -1e3, 0.0, "fmr", 0.01, 0.05)
        >>> report = check_members(images, Calibration("m", "d", decisions=(rule,)), draws=100)
        >>> report.counts["non_mated"], report.rules[0].verdict
        (1770, 'broken')
    """
    if members.labels is None or not members.identities or np.min(members.labels, initial=0) < 0:
        raise InputError("check_members: the embeddings have no names of members")
    n_members = np.unique(members.labels).size
    if n_members < MIN_MEMBERS:
        raise InputError(f"check_members: expected at least {MIN_MEMBERS} members, got {n_members}")
    # Rules for templates of one image, and for templates of several images.
    rules = [_rules_of_best_score(calibration, names) for names in GALLERY_SCORES]
    for kind_rules in rules:
        check_rules("check_members", kind_rules, members.radius, "the gallery has")
    search = _GallerySearch.of(members)
    rule_counts: list[RuleCount] = []
    pairs_by_kind: list[PeoplePairs] = []
    for several, kind_rules in enumerate(rules):
        pairs = search.pairs(bool(several), kind_rules[0].score, calibration)
        pairs_by_kind.append(pairs)
        if pairs.counts["non_mated"]:
            counter = RuleCounter(pairs, kind_rules, draws, seed)
            rule_counts += [count_rule(rule, counter) for rule in kind_rules]
    counts = {"members": n_members, "images": search.probes.size}
    counts |= {name: sum(pairs.counts[name] for pairs in pairs_by_kind) for name in ("mated", "non_mated")}
    names = list(members.identities)
    alike = sorted(
        (triple for pairs, kind_rules in zip(pairs_by_kind, rules) for triple in _alike(pairs, kind_rules)),
        key=lambda triple: -triple[2],
    )
    most_alike = tuple((names[left], names[right], value) for left, right, value in alike[:_ALIKE])
    return MembersReport(counts, tuple(rule_counts), most_alike)


def _rules_of_best_score(calibration: Calibration, scores: tuple[str, ...]) -> list[DecisionRule]:
    """FMR rules of the first of these scores that has any."""
    by_score = (
        [r for r in calibration.decisions if (r.score, r.error) == (score, "fmr")] for score in scores
    )
    return next((rules for rules in by_score if rules), [])


def _alike(pairs: PeoplePairs, rules: list[DecisionRule]) -> Iterator[tuple[int, int, float]]:
    """(member, member, evidence) of pairs that the strictest counted rule calls a match, highest first."""
    counted = [rule for rule in rules if rule.extrapolated is None and rule.accept is not None]
    if not counted:
        return
    rule = min(counted, key=lambda rule: rule.alpha)
    values = pairs.values[rule.score]
    rows = np.flatnonzero(~pairs.mated & (values >= rule.accept) & (pairs.confidence >= rule.min_confidence))
    yielded: set[tuple[int, int]] = set()
    for row in rows[np.argsort(-values[rows], kind="stable")].tolist():
        both = int(min(pairs.left[row], pairs.right[row])), int(max(pairs.left[row], pairs.right[row]))
        if both not in yielded and len(yielded) < _ALIKE:
            yielded.add(both)
            yield *both, float(values[row])


@dataclass(frozen=True, eq=False)
class _GallerySearch:
    """A gallery of t templates made from n images, and the images to search in it."""

    members: Embeddings
    probes: NDArray[np.int64]
    """(p,) rows of the images to search."""
    mu: torch.Tensor
    """(t, dim) directions of the templates."""
    kappa: torch.Tensor
    """(t,) concentrations of the templates."""
    person: NDArray[np.int64]
    """(t,) label of each template's member, ascending."""
    size: NDArray[np.int64]
    """(t,) number of images of each template."""
    rest: tuple[torch.Tensor, torch.Tensor]
    """(n, dim) directions and (n,) concentrations of the image's member without the image."""

    @classmethod
    def of(cls, members: Embeddings) -> "_GallerySearch":
        person = np.asarray(members.labels)
        mu, kappa = _tensors(members)
        groups = torch.from_numpy(person)
        pooled, rest = pool(mu, kappa, groups), without_each(mu, kappa, groups)
        size = np.unique(person, return_counts=True)[1]
        probes = np.sort(in_turns(person)[:_PROBES])
        return cls(members, probes, pooled.mu, pooled.kappa, pooled.groups.numpy(), size, rest)

    def pairs(self, several: bool, score: str, calibration: Calibration) -> PeoplePairs:
        """All comparisons with templates of one image or, if ``several``, of several images."""
        blocks = [*self._non_mated(several), self._mated(several)]
        mls, cosines, template_kappa, image_kappa, left, right = (
            np.concatenate(part) for part in zip(*blocks)
        )
        values = calibration.evidence(score, mls, cosines, (template_kappa, image_kappa)).astype(np.float32)
        confidence = np.minimum(template_kappa, image_kappa).astype(np.float32)
        return PeoplePairs({score: values}, confidence, left, right, left == right)

    def _non_mated(self, several: bool) -> Iterator[tuple[Array, ...]]:
        """(score, cosine, kappa of template and image, member of template and image), in blocks."""
        mu, kappa = _tensors(self.members)
        labels = np.asarray(self.members.labels)
        chosen = np.flatnonzero((self.size > 1) == several)
        template_member = self.person[chosen]
        is_single = self.size[np.searchsorted(self.person, labels)] == 1
        index = torch.from_numpy(chosen)
        for start in range(0, self.probes.size if chosen.size else 0, _ROWS):
            rows = self.probes[start : start + _ROWS]
            image_member = labels[rows]
            # Two members with one image each are compared once, not in both directions.
            is_repeat = is_single[rows, None] & (template_member < image_member[:, None]) & (not several)
            image, template = np.nonzero((template_member != image_member[:, None]) & ~is_repeat)
            image_mu, image_kappa = mu[torch.from_numpy(rows)], kappa[torch.from_numpy(rows)]
            template_mu, template_kappa = self.mu[index], self.kappa[index]
            mls = mutual_likelihood_matrix(
                image_mu, image_kappa, template_mu, template_kappa, self.members.radius
            )
            cosines = cosine_matrix(image_mu, template_mu)
            yield (
                mls.numpy()[image, template], cosines.numpy()[image, template],
                template_kappa.numpy()[template], image_kappa.numpy()[image],
                template_member[template], image_member[image],
            )  # fmt: skip

    def _mated(self, several: bool) -> tuple[Array, ...]:
        """The same for each image and the template of its member without the image."""
        labels = np.asarray(self.members.labels)
        rest_size = self.size[np.searchsorted(self.person, labels)] - 1
        rows = self.probes[(rest_size[self.probes] > 1) == several]
        index = torch.from_numpy(rows[rest_size[rows] > 0])
        mu, kappa = (column[index] for column in _tensors(self.members))
        rest_mu, rest_kappa = (column[index] for column in self.rest)
        mls = mutual_likelihood_score(rest_mu, rest_kappa, mu, kappa, radius=self.members.radius)
        cosines, member = cosine_score(rest_mu, mu), labels[index.numpy()]
        return mls.numpy(), cosines.numpy(), rest_kappa.numpy(), kappa.numpy(), member, member


def _tensors(members: Embeddings) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, dim) directions and (n,) concentrations, in float64."""
    return torch.from_numpy(np.asarray(members.mu, np.float64)), torch.from_numpy(
        np.asarray(members.kappa, np.float64)
    )
