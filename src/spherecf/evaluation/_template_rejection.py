"""Risk-controlled recognition on a template benchmark: IJB's galleries and mixed probes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._modes import parse_mode
from spherecf.evaluation._prr import PRR_LIMIT
from spherecf.evaluation._risk import FPIR_TARGETS, evaluate_rejection
from spherecf.evaluation._risk_result import RejectionReport
from spherecf.evaluation._template_set import (
    TemplateImages,
    TemplateSet,
    check_apart,
    find_images,
    missing_file,
    set_facts,
)

Array = NDArray[Any]

_IMAGE_CONFIDENCES = ("norm", "sharpness")


def evaluate_template_rejection(
    embeddings: Embeddings,
    templates: TemplateSet,
    *,
    mode: str = "K1",
    galleries: Sequence[str] = (),
    fpirs: Sequence[float] = FPIR_TARGETS,
    kappa_gallery: str | float = "likelihood",
    beta: float = 0.5,
    limit: float = PRR_LIMIT,
    trials: int = 512,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, RejectionReport]:
    """`evaluate_rejection` of every gallery: probes whose subject is in another gallery are non-mated.

    Confidences of images (norm, sharpness, detector score, precision) become those of templates by the mean
    inside a medium, then over media. Templates without an embedded image are failures to acquire: counted,
    never searched; so are the probes of a subject whose gallery template failed.

    Args:
        embeddings: of the images, keys spelt as the set's file names.
        templates: from `spherecf.data.read_ijb`, with galleries and probes.
        mode: how images become templates, e.g. "N0D0K1"; see docs/ijb.md.
        galleries: names; default: all.
        fpirs: as in `evaluate_rejection`, like all that follow.
        kappa_gallery: see there.
        beta: see there.
        limit: see there.
        trials: see there.
        draws: see there.
        seed: see there.

    Returns:
        Report by name of the gallery.

    Raises:
        InputError: no galleries or probes, no image found, a mode that the embeddings lack, or as in
            `evaluate_rejection`.

    Example:
        >>> from spherecf.data import Enrolled, IjbMeta
        >>> rng = np.random.default_rng(0)
        >>> who = np.repeat(np.arange(40), 3)
        >>> mu = rng.normal(size=(40, 8))[who] + 0.6 * rng.normal(size=(120, 8))
        >>> names = [f"{i}.jpg" for i in range(120)]
        >>> e = Embeddings(mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.uniform(1, 4, 120), names)
        >>> ids = np.arange(120)
        >>> gallery, probes = ids[::3][:20], ids[ids % 3 > 0]
        >>> meta = IjbMeta(
        ...     "toy", names, ids, ids, galleries={"G1": Enrolled(gallery, who[gallery])},
        ...     probes=Enrolled(probes, who[probes]),
        ... )
        >>> reports = evaluate_template_rejection(e, meta, fpirs=[0.2], draws=0, trials=10)
        >>> reports["G1"].counts["mated"], reports["G1"].at("oracle", 0.2).prr.value
        (20, 1.0)
    """  # fmt: skip
    if not templates.galleries or templates.probes is None:
        raise missing_file(templates, "galleries and probes are", "1N")
    unknown = [name for name in galleries if name not in templates.galleries]
    if unknown:
        raise InputError(f"gallery {unknown[0]!r} unknown, expected some of {', '.join(templates.galleries)}")
    images = find_images(embeddings, templates)
    pooling = parse_mode(mode, embeddings, images)
    pooled = pooling.pool(embeddings, images)
    columns = _columns(embeddings, images)
    if pooling.precision:
        del columns["precision"]  # the templates have their own
    facts = {**set_facts(embeddings, templates), "mode": pooling, "pool": f"media-mean+{pooling.pooling}"}
    found = {}
    for name in galleries or templates.galleries:
        enrolled, gallery_subjects, gone = images.split(templates.galleries[name])
        probes, searched, lost = images.split(templates.probes)
        check_apart(f"{templates.name}: gallery {name}", enrolled, probes)
        kept = ~np.isin(searched, gone)
        at = pooled.positions(probes[kept])
        report = evaluate_rejection(
            pooled.select(pooled.positions(enrolled)), gallery_subjects, pooled.select(at), searched[kept],
            name=f"{templates.name}/{name}", confidences={key: column[at] for key, column in columns.items()},
            fpirs=fpirs, kappa_gallery=kappa_gallery, beta=beta, limit=limit, trials=trials, draws=draws,
            seed=seed, facts=facts,
        )  # fmt: skip
        failed = {"failed_gallery": int(gone.size), "failed_probes": int(lost.size + (~kept).sum())}
        found[name] = replace(report, counts=report.counts | failed)
    return found


def _columns(embeddings: Embeddings, images: TemplateImages) -> dict[str, Array]:
    """Confidences of the templates, in ascending order of id."""
    known = {
        name: embeddings.extras[name][images.rows] for name in _IMAGE_CONFIDENCES if name in embeddings.extras
    }
    if embeddings.log_precision is not None:
        known["precision"] = embeddings.log_precision.mean(1)[images.rows]
    if images.detector_score is not None:
        known["detector_score"] = images.detector_score
    pairs, medium = np.unique(np.stack([images.templates, images.media]), axis=1, return_inverse=True)
    _, owner = np.unique(pairs[0], return_inverse=True)
    found = {}
    for name, values in known.items():
        of_media = np.bincount(medium, values) / np.bincount(medium)
        found[name] = np.bincount(owner, of_media) / np.bincount(owner)
    return found
